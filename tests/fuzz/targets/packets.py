"""Targets: NFLOG messages and the packets in them, which any sandboxed program can send."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Final

from ocsf_nft import netlink
from ocsf_nft.log_prefixes import PREFIX_CHARACTERS
from ocsf_nft.sources import dns, packet
from ocsf_nft.sources.base import MalformedError
from ocsf_nft.sources.nflog import datagram as nflog
from ocsf_nft.sources.nflog import line as nflog_line
from tests.fuzz import parts, seeds
from tests.fuzz.target import HOSTILE_TEXT, Target, require

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ocsf_nft.record import Record

_HEADER_BYTES: Final = 16
_GROUP: Final = 4001
_NOW_NS: Final = 1_764_000_000_123_456_789
_IDENTITY: Final = "nflog:0123456789abcdef:1"
_NAMES: Final = {1: "lo", 2: "eth0", 3: "a\udcffb", 4: 'x" uid=0'}
_MOST_NAME: Final = 1011
_DNS_CHARACTERS: Final = frozenset(string.ascii_letters + string.digits + string.punctuation)
_LIMITS: Final = {
    "source_port": 0xFFFF,
    "destination_port": 0xFFFF,
    "protocol": 0xFF,
    "tcp_flags": 0x1FF,
    "ttl": 0xFF,
    "uid": 0xFFFFFFFF,
    "gid": 0xFFFFFFFF,
    "mark": 0xFFFFFFFF,
    "icmp_type": 0xFF,
    "incomplete_bytes": 0xFFFFFFFF,
}


def check_numbers(facts: Mapping[str, Any]) -> None:
    """Require that the header values of a packet are in their ranges."""
    for name, limit in _LIMITS.items():
        value = facts.get(name, 0)
        require(value is None or 0 <= value <= limit, f"{name} is {value}")
    if "quoted" in facts:
        check_numbers(facts["quoted"])


def check_record(record: Record) -> None:
    """Require that the values of a record are in their ranges."""
    for name in ("source_port", "destination_port", "protocol", "tcp_flags", "uid", "gid"):
        value = getattr(record, name)
        require(value is None or 0 <= value <= _LIMITS[name], f"{name} is {value}")
    check_numbers(record.details)
    if record.question is not None:
        _check_name(record.question.name)


def _check_name(name: str) -> None:
    require(0 < len(name) <= _MOST_NAME, f"a name has {len(name)} characters")
    require(_DNS_CHARACTERS.issuperset(name), f"a name is {name!r}")


def _nflog(data: bytes) -> None:
    for _, payload in netlink.messages(memoryview(data)):
        nflog.sequence(payload)
        found = nflog.decode(payload, _GROUP, _NAMES.get, _NOW_NS)
        line = nflog_line.render(found, _IDENTITY)
        require(line.isascii() and "\n" not in line, "a line is not one line of ASCII")
        if len(found.prefix) <= PREFIX_CHARACTERS:
            require(
                nflog_line.parse(line) == (found, _IDENTITY), "a line is read as another packet"
            )
        record = nflog.record(
            found, transport="nflog", identity=_IDENTITY, log_source="nflog", raw=line
        )
        check_record(record)


def _nflog_line(data: bytes) -> None:
    parsed = nflog_line.parse(data.decode("utf-8", "backslashreplace"))
    if parsed is None:
        return
    found, identity = parsed
    again = nflog_line.parse(nflog_line.render(found, identity or _IDENTITY))
    require(again == (found, identity or _IDENTITY), "a line is read as another packet")
    record = nflog.record(
        found, transport="replay", identity="i", log_source="nflog", raw=data.decode("latin-1")
    )
    check_record(record)


def _packet(data: bytes) -> None:
    kind, data = data[:1], data[1:]
    if kind == b"a":
        check_numbers(packet.arp_facts(data).get("arp", {}))  # type: ignore[arg-type] # a mapping
        return
    facts, header_bytes = packet.ip_headers(data, 6 if kind == b"6" else 4)
    require(0 <= header_bytes <= len(data), "the headers are longer than the packet")
    check_numbers(facts)


def _dns(data: bytes) -> None:
    found = dns.question(data[1:], is_tcp=data[:1] == b"t")
    if found is not None:
        _check_name(found.name)
        require(0 <= found.type <= 0xFFFF, "the type of a question is not a number of 16 bits")


def _payloads() -> list[bytes]:
    """Return the packets in the NFLOG messages, after a letter with their kind."""
    found = []
    for message in seeds.nflog_messages():
        for _, payload in netlink.messages(memoryview(message)):
            datagram = nflog.decode(payload, _GROUP, _NAMES.get, _NOW_NS)
            kinds = {nflog.ETH_P_IPV6: b"6", nflog.ETH_P_ARP: b"a"}
            found.append(kinds.get(datagram.hardware_protocol, b"4") + datagram.captured)
    return found


def _lines() -> list[bytes]:
    return [
        nflog_line.render(nflog.decode(payload, _GROUP, _NAMES.get, _NOW_NS), _IDENTITY).encode()
        for message in seeds.nflog_messages()
        for _, payload in netlink.messages(memoryview(message))
    ]


def _messages() -> list[bytes]:
    """Return the NFLOG messages, and one with a DNS query."""
    query = _dns_seeds()[0][1:]
    udp = (40000).to_bytes(2) + (53).to_bytes(2) + (8 + len(query)).to_bytes(2) + b"\0\0" + query
    header = bytes.fromhex("4500003c05954000401100000aca0002cb007107")
    payload = (
        bytes((2, 0))
        + _GROUP.to_bytes(2)
        + b"".join(
            netlink.attribute(kind, value)
            for kind, value in (
                (nflog.NFULA_PACKET_HDR, bytes.fromhex("08000300")),
                (nflog.NFULA_PREFIX, b"ocsf-nft:lab:egress:\0"),
                (nflog.NFULA_TIMESTAMP, (1_764_000_000).to_bytes(8) + (5).to_bytes(8)),
                (
                    nflog.NFULA_VLAN,
                    netlink.attribute(1, b"\x81\0") + netlink.attribute(2, b"\0\x05"),
                ),
                (nflog.NFULA_HWADDR, bytes.fromhex("000600000200000000010000")),
                (nflog.NFULA_IFINDEX_OUTDEV, bytes((0, 0, 0, 2))),
                (nflog.NFULA_PAYLOAD, header + udp),
            )
        )
    )
    return [*seeds.nflog_messages(), netlink.message(0x400, 0, payload)]


def _dns_seeds() -> list[bytes]:
    head = bytes.fromhex("1234010000010000000000")
    names = (
        b"\x03www\x07example\x03com\0",
        b"\x3f" + b"a" * 63 + b"\x3f" + b"b" * 63 + b"\0",
        b"\xc0\x0c",
        b"\x01.\x01\\\x02\xff\0\0",
    )
    queries = [head + b"\0" + name + b"\0\x01\0\x01" for name in names]
    return [
        *(b"u" + query for query in queries),
        *(b"t" + len(query).to_bytes(2) + query for query in queries),
    ]


TARGETS: Final = (
    Target(
        name="nflog",
        parse=_nflog,
        seeds=_messages,
        parts=parts.netlink_messages,
        documented=(MalformedError,),
        hostile=HOSTILE_TEXT,
        limit=4096,
        share=15,
    ),
    Target(
        name="nflog-line",
        parse=_nflog_line,
        seeds=_lines,
        parts=parts.words,
        hostile=(*HOSTILE_TEXT, b'"\\ud800"', b"omitted=65535", b"id="),
        limit=70_000,
        share=3,
    ),
    Target(name="packet", parse=_packet, seeds=_payloads, parts=parts.none, limit=2048, share=25),
    Target(
        name="dns",
        parse=_dns,
        seeds=_dns_seeds,
        parts=lambda data: parts.dns_labels(data, 13),
        hostile=(b"\xc0\x0c", b"\x3f" + b"a" * 63, b"\x40" + b"a" * 64, b"\xff"),
        limit=2048,
        share=25,
    ),
)
