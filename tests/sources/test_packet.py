"""Tests that the bytes and the kernel's text of a packet give equal records."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ocsf_nft.record import Origin, Record
from ocsf_nft.sources import packet
from ocsf_nft.sources import packet_fields as fact
from tests.sources import kernel_printer
from tests.sources.corpus_cases import MESSAGES, cases, nflog, record

PREFIX = "ocsf-nft:sb:egress:"
HEAD = f"{PREFIX}IN= OUT=eth0 "
ORIGIN = Origin(
    transport="nflog", identity="i", log_source="test", log_format="nfnetlink_log", raw=""
)


def record_of_facts(facts: fact.Facts) -> Record:
    facts = {"out_interface": "eth0", **facts}
    return fact.record(PREFIX, facts, time_ns=0, received_ns=0, origin=ORIGIN)


def _packets4() -> st.SearchStrategy[bytes]:
    """Return a strategy of mostly valid IPv4 packets, with the real length in the header."""

    def build(
        options: bytes, tos: int, frag: int, ttl: int, protocol: int, payload: bytes, cut: int
    ) -> bytes:
        ihl = 5 + len(options) // 4
        body = options + payload
        header = struct.pack(
            "!BBHHHBBH4s4s", 0x40 | ihl, tos, 20 + len(body), 77, frag, ttl, protocol, 0,
            b"\x0a\0\0\2", b"\xcb\0\x71\x07",
        )  # fmt: skip
        whole = bytearray(header + body)
        whole = whole[: max(20, len(whole) - cut)]
        whole[2:4] = len(whole).to_bytes(2, "big")
        return bytes(whole)

    return st.builds(
        build,
        st.sampled_from([b"", b"", b"", b"\x07\x04\x04\x00", b"\x01" * 40]),
        st.integers(0, 255),
        st.sampled_from([0, 0, 0x4000, 0x2000, 0x8000, 185, 0x2001]),
        st.integers(0, 255),
        st.sampled_from([1, 1, 6, 6, 17, 50, 51, 136, 2, 4, 41, 47, 58, 132, 253]),
        _payloads(4),
        st.integers(0, 30),
    )


def _payloads(version: int) -> st.SearchStrategy[bytes]:
    """Return a strategy of IP payloads: noise, TCP with options, ICMP errors with a quote."""
    quoted4 = bytes.fromhex("4500002800010000400633fccb0071070aca000201bbd903") + bytes(20)
    quoted6 = bytes.fromhex("600000000014064020010db8000000000000000000000007") + bytes(40)
    quoted = quoted4 if version == 4 else quoted6
    kinds = st.sampled_from([0, 3, 4, 5, 8, 11, 12, 13, 17] if version == 4 else range(1, 5))
    error = st.builds(
        lambda kind, code, rest, inner: bytes([kind, code, 0, 0]) + rest + inner,
        kinds,
        st.integers(0, 5),
        st.binary(min_size=4, max_size=4),
        st.just(quoted) | st.binary(max_size=60),
    )
    tcp = st.builds(
        lambda ports, bits, rest, options: ports + bytes(8) + bits + rest + options,
        st.binary(min_size=4, max_size=4),
        st.binary(min_size=2, max_size=2),
        st.binary(min_size=6, max_size=6),
        st.binary(max_size=44),
    )
    return st.binary(max_size=80) | error | tcp


def _packets6() -> st.SearchStrategy[bytes]:
    kinds = st.sampled_from([0, 43, 44, 50, 51, 60, 6, 17, 58, 58, 59, 136, 132, 1])
    extension = st.builds(
        lambda kind, following, size, filling: (kind, following, size, filling),
        st.sampled_from([0, 43, 44, 51, 60]),
        st.just(0),
        st.sampled_from([0, 0, 1]),
        st.sampled_from([bytes(30), b"\x00\x01" * 15, b"\x00\x09\xab\xcd" * 8]),
    )

    def build(
        chain: list[tuple[int, int, int, bytes]], last: int, payload: bytes, word: int, cut: int
    ) -> bytes:
        body = b""
        numbers = [kind for kind, *_ in chain] + [last]
        for (kind, _, size, filling), following in zip(chain, numbers[1:], strict=True):
            length = (size + 2) * 4 if kind == 51 else 8 if kind == 44 else (size + 1) * 8
            body += (bytes([following, size]) + filling)[:length]
        body += payload
        body = body[: max(0, len(body) - cut)]
        header = struct.pack("!IHBB", 0x60000000 | word, len(body), numbers[0], 64)
        return header + bytes(15) + b"\1" + bytes(15) + b"\2" + body

    return st.builds(
        build,
        st.lists(extension, max_size=4),
        kinds,
        _payloads(6),
        st.integers(0, 0xFFFFFFF),
        st.integers(0, 30),
    )


def test_kernel_printer_prints_the_same_as_the_kernel() -> None:
    printed = 0
    for case in cases():
        for payload in case.payloads:
            rendered = _rendered(payload)
            if any(line.endswith(rendered) for line in case.messages):
                printed += 1
    # The MLD report among the prefixes has no line; the two level cases log no owner.
    assert printed == sum(len(case.payloads) for case in cases()) - 3


def _rendered(payload: bytes) -> str:
    found = nflog(payload)
    owner = "" if found.uid is None else f"UID={found.uid} GID={found.gid} "
    mark = found.details.get("mark")
    owner += "" if mark is None else f"MARK=0x{mark:x} "
    # A packet with an input device has an owner only in NFLOG: its socket is in another namespace.
    owner = "" if found.in_interface else owner
    data = _captured(payload)
    if found.ip_version == 4:
        return kernel_printer.ipv4(data, owner)
    if found.ip_version == 6:
        return kernel_printer.ipv6(data, owner)
    return (
        kernel_printer.arp(data) if "arp" in found.details else f"MACPROTO={found.ethertype:04x} "
    )


def _captured(payload: bytes) -> bytes:
    at = 4
    while at < len(payload):
        length, kind = struct.unpack_from("=HH", payload, at)
        if kind == 9:
            return payload[at + 4 : at + length]
        at += length + -length % 4
    return b""


def _quote(of: Record) -> Mapping[str, Any]:
    """Return the details of the packet that an ICMP error quotes; empty if there is none."""
    quoted = of.details.get("quoted")
    return quoted if isinstance(quoted, Mapping) else {}


@settings(max_examples=400, deadline=None)
@given(_packets4())
def test_ipv4_packet_and_its_kernel_text_make_equal_records(data: bytes) -> None:
    from_text = record(HEAD + kernel_printer.ipv4(data))
    from_bytes = record_of_facts(packet.ip_facts(data, 4))
    if from_text.protocol is None:
        # The kernel stops before it prints the protocol: cut options, later AH fragments.
        assert from_bytes.protocol is not None
        details = {name: value for name, value in from_text.details.items() if name != "truncated"}
        from_text = replace(from_text, protocol=from_bytes.protocol, details=details)
    quote, whole = _quote(from_text), _quote(from_bytes)
    if quote and "protocol" not in quote:
        # The same for a packet that an ICMP error quotes.
        details = {**from_text.details, "quoted": {**quote, "protocol": whole["protocol"]}}
        from_text = replace(from_text, details=details)
    assert from_bytes == from_text


def test_ipv4_quote_with_cut_options_has_its_protocol_only_in_the_bytes() -> None:
    quote = struct.pack("!BBHHHBBH4s4s", 0x46, 0, 0, 0, 0, 0, 17, 0, bytes(4), bytes(4))
    icmp = b"\x03" + bytes(7) + quote
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(icmp), 77, 0, 0, 1, 0) + bytes(8)
    from_text = _quote(record(HEAD + kernel_printer.ipv4(header + icmp)))
    from_bytes = _quote(record_of_facts(packet.ip_facts(header + icmp, 4)))
    assert from_bytes == {**from_text, "protocol": 17}
    assert from_bytes["incomplete"]


@settings(max_examples=400, deadline=None)
@given(_packets6())
def test_ipv6_packet_and_its_kernel_text_make_equal_records(data: bytes) -> None:
    from_text = record(HEAD + kernel_printer.ipv6(data))
    assert record_of_facts(packet.ip_facts(data, 6)) == from_text


def test_ipv6_packet_with_two_fragment_headers_has_the_first_and_is_later_if_either_is() -> None:
    for first, second in ((8, 0), (0, 8)):
        chain = struct.pack("!BBHI", 44, 0, first, 1) + struct.pack("!BBHI", 6, 0, second, 2)
        header = struct.pack("!IHBB", 0x60000000, 36, 44, 64)
        data = header + bytes(15) + b"\1" + bytes(15) + b"\2" + chain + bytes(20)
        from_text = record(HEAD + kernel_printer.ipv6(data))
        assert from_text == record_of_facts(packet.ip_facts(data, 6))
        assert (from_text.protocol, from_text.destination_port) == (6, None)
        assert (from_text.details["fragment_offset"], from_text.details["ip_id"]) == (first, 1)
        assert "truncated" not in from_text.details


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40) | st.binary(max_size=30).map(b"\0\1\x08\0\6\4\0".__add__))
def test_arp_packet_and_its_kernel_text_make_equal_records(data: bytes) -> None:
    from_text = record(HEAD + "MACSRC=00:00:00:00:00:01 MACDST=ff:ff:ff:ff:ff:ff MACPROTO=0806 "
                  + kernel_printer.arp(data))  # fmt: skip
    from_bytes = record_of_facts(packet.arp_facts(data))
    assert from_bytes.details == from_text.details


@given(st.binary(max_size=200), st.sampled_from([4, 6]))
def test_packet_decoder_never_raises(data: bytes, version: int) -> None:
    packet.ip_facts(data, version)
    packet.arp_facts(data)


def test_packet_capture_that_is_cut_differs_from_an_incomplete_packet() -> None:
    whole = bytes.fromhex(
        "4500003c059540004006ee530aca0002cb007107a12601bb9eda6bb800000000a002faf04702"
        "0000020405b40402080a3aff2c62000000000103030a"
    )
    assert packet.ip_facts(whole[:30], 4)["truncated"] is True
    short = bytearray(whole[:30])
    short[2:4] = (30).to_bytes(2, "big")
    facts = packet.ip_facts(bytes(short), 4)
    assert facts["incomplete_bytes"] == 10
    assert "truncated" not in facts
    whole6 = struct.pack("!IHBB", 0x60000000, 20, 6, 64) + bytes(15) + b"\1" + bytes(15) + b"\2"
    whole6 += struct.pack("!HHIIHHHH", 41382, 443, 1, 0, 0x5002, 64240, 0, 0)
    assert "truncated" not in packet.ip_facts(whole6, 6)
    assert packet.ip_facts(whole6[:59], 6)["truncated"] is True
    short6 = bytearray(whole6[:50])
    short6[4:6] = (10).to_bytes(2, "big")
    facts = packet.ip_facts(bytes(short6), 6)
    assert facts["incomplete_bytes"] == 10
    assert "truncated" not in facts


def test_packet_decoder_needs_12_bytes_of_ah_and_8_of_esp() -> None:
    for protocol, size, at in ((51, 12, 4), (50, 8, 0)):
        header = bytes(range(1, size + 1))
        for missing in (0, 1):
            length = 20 + size - missing
            start = struct.pack("!BBHHHBBHII", 0x45, 0, length, 1, 0, 64, protocol, 0, 1, 2)
            facts = packet.ip_facts((start + header)[:length], 4)
            spi = int.from_bytes(header[at : at + 4])
            assert facts.get("spi") == (None if missing else spi)
            assert facts.get("incomplete_bytes") == (size - 1 if missing else None)


def test_icmpv6_error_has_numbers_of_32_bits() -> None:
    for kind, field in ((2, "icmp_mtu"), (4, "icmp_pointer")):
        error = struct.pack("!BBHI", kind, 0, 0, 0x12345)
        header = struct.pack("!IHBB", 0x60000000, len(error), 58, 64) + bytes(32)
        assert packet.ip_facts(header + error, 6)[field] == 0x12345


def _icmp(version: int, message: bytes) -> fact.Facts:
    """Return the facts of a packet with an ICMP message, without those of the IP header."""
    addresses = b"\x0a\0\0\2" + b"\xcb\0\x71\x07"
    if version == 4:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(message), 0, 0, 64, 1, 0) + addresses
    else:
        header = struct.pack("!IHBB", 0x60000000, len(message), 58, 64) + bytes(32)
    without = packet.ip_facts(header, version)
    facts = packet.ip_facts(header + message, version)
    shown = {name: value for name, value in facts.items() if name not in without}
    return {**shown, "quoted": bool(shown["quoted"])} if "quoted" in shown else shown


def test_icmp_message_has_the_fields_of_its_type() -> None:
    echo: fact.Facts = {"icmp_id": 0x102, "icmp_sequence": 0x304}
    error: fact.Facts = {"quoted": True}
    fields: dict[tuple[int, int, int], fact.Facts] = {
        (4, 0, 0): echo, (4, 8, 0): echo, (4, 12, 0): {"icmp_parameter": 1},
        (4, 5, 1): {**error, "icmp_gateway": "1.2.3.4"}, (4, 3, 4): {**error, "icmp_mtu": 0x304},
        (4, 3, 3): error, (4, 3, 5): error, (4, 4, 4): error, (4, 11, 0): error,
        (6, 128, 0): echo, (6, 129, 0): echo, (6, 1, 0): error, (6, 3, 0): error,
        (6, 2, 0): {**error, "icmp_mtu": 0x1020304},
        (6, 4, 0): {**error, "icmp_pointer": 0x1020304},
    }  # fmt: skip
    for version, kind in product((4, 6), range(256)):
        if not any(each[:2] == (version, kind) for each in fields):
            fields[version, kind, 0] = {}
    for (version, kind, code), expected in fields.items():
        message = bytes([kind, code, 0, 0, 1, 2, 3, 4]) + bytes(40)
        facts = {"icmp_type": kind, "icmp_code": code, **expected}
        assert _icmp(version, message) == facts, (version, kind, code)


def test_icmp_message_below_the_length_of_its_type_is_incomplete() -> None:
    # required_len of net/netfilter/nf_log_syslog.c
    minimum = {3: 28, 4: 28, 5: 28, 11: 28, 12: 28, 13: 20, 14: 20, 17: 12, 18: 12}
    for kind in range(20):
        for size in range(8, 30):
            facts = _icmp(4, bytes([kind, 0]) + bytes(size - 2))
            incomplete = size if size < minimum.get(kind, 0) else None
            assert facts.get("incomplete_bytes") == incomplete, (kind, size)


def test_kernel_text_of_the_whole_corpus_is_parsed() -> None:
    assert len(MESSAGES) == 76
    for message in MESSAGES:
        assert "unparsed" not in record(message).details
