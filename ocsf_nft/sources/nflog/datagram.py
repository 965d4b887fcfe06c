"""Decoder of an NFLOG message: the kernel's log of one packet (NFULNL_MSG_PACKET), to a Record.

The payload of the message is a ``nfgenmsg`` header, followed by attributes.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft import netlink
from ocsf_nft.record import Origin
from ocsf_nft.sources import dns, packet
from ocsf_nft.sources import packet_fields as fact
from ocsf_nft.sources.base import MalformedError
from ocsf_nft.sources.nflog.payload import without_payload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ocsf_nft.record import DnsQuestion, Record, Transport
    from ocsf_nft.sources.packet_fields import Facts

# Attributes (include/uapi/linux/netfilter/nfnetlink_log.h); all numbers in them are in network byte
# order. net/netfilter/nfnetlink_log.c decides which attributes the kernel sends.
NFULA_PACKET_HDR: Final = 1
NFULA_MARK: Final = 2
NFULA_TIMESTAMP: Final = 3
NFULA_IFINDEX_INDEV: Final = 4
NFULA_IFINDEX_OUTDEV: Final = 5
NFULA_IFINDEX_PHYSINDEV: Final = 6
NFULA_IFINDEX_PHYSOUTDEV: Final = 7
NFULA_HWADDR: Final = 8
NFULA_PAYLOAD: Final = 9
NFULA_PREFIX: Final = 10
NFULA_UID: Final = 11
NFULA_SEQ: Final = 12
NFULA_SEQ_GLOBAL: Final = 13
NFULA_GID: Final = 14
NFULA_HWTYPE: Final = 15
NFULA_HWHEADER: Final = 16
NFULA_VLAN: Final = 20
NFULA_L2HDR: Final = 21
NFULA_VLAN_PROTO: Final = 1
NFULA_VLAN_TCI: Final = 2

_NFGENMSG_BYTES: Final = 4
#: First bytes of a packet in its checksum, as in the BPF programs (``COPIED`` in refused.h).
_SUMMED: Final = 128
_PACKET_HDR: Final = struct.Struct("!HBx")
_TIMESTAMP: Final = struct.Struct("!QQ")
#: First second of the year 10000: a stamp from then on is invalid.
_SECONDS_LIMIT: Final = 253_402_300_800

# Families that nf_tables logs (include/uapi/linux/netfilter.h).
NFPROTO_IPV4: Final = 2
NFPROTO_ARP: Final = 3
NFPROTO_NETDEV: Final = 5
NFPROTO_BRIDGE: Final = 7
NFPROTO_IPV6: Final = 10
NF_NETDEV_EGRESS: Final = 1  # enum nf_dev_hooks

# Ethertypes (include/uapi/linux/if_ether.h).
#: Smaller values are lengths of IEEE 802.3 frames (ETH_P_802_3_MIN).
_FIRST_ETHERTYPE: Final = 0x0600
ETH_P_IP: Final = 0x0800
ETH_P_ARP: Final = 0x0806
ETH_P_RARP: Final = 0x8035
ETH_P_IPV6: Final = 0x86DD
#: Ethertypes of the families of one protocol.
_ETHERTYPES: Final = {NFPROTO_IPV4: ETH_P_IP, NFPROTO_ARP: ETH_P_ARP, NFPROTO_IPV6: ETH_P_IPV6}


class Interface(NamedTuple):
    """Network interface; ``name`` is ``None`` if it is unknown, for example after a deletion."""

    ifindex: int
    name: str | None


# One object for each packet: creating a tuple takes a third of the time of a frozen dataclass.
class Datagram(NamedTuple):
    """One packet that the kernel logged by NFLOG.

    Absent attributes are ``None``, or empty. The order of the fields is that of a text line
    (``line.py``).
    """

    group: int
    family: int
    #: Ethertype of the frame.
    hardware_protocol: int
    hook: int
    received_ns: int
    sequence: int | None = None
    global_sequence: int | None = None
    #: Kernel's timestamp, in microseconds since the epoch; absent on the output hook.
    time_us: int | None = None
    prefix: str = ""
    input: Interface | None = None
    output: Interface | None = None
    physical_input: Interface | None = None
    physical_output: Interface | None = None
    hardware_type: int | None = None
    hardware_header: bytes | None = None
    hardware_address: bytes | None = None
    link_header: bytes | None = None
    #: Protocol and tag control field.
    vlan: tuple[int, int] | None = None
    mark: int | None = None
    uid: int | None = None
    gid: int | None = None
    #: First bytes of the packet, as the hook received it.
    captured: bytes = b""


def sequence(payload: memoryview) -> int | None:
    """Return the sequence number of an NFLOG message (NFULA_SEQ); None if the message has none.

    ``payload`` is the message without its netlink header.
    """
    for kind, value in netlink.attributes(payload[_NFGENMSG_BYTES:]):
        if kind == NFULA_SEQ and len(value) == 4:
            return int.from_bytes(value, "big")
    return None


def decode(
    payload: memoryview, group: int, interface_name: Callable[[int], str | None], received_ns: int
) -> Datagram:
    """Decode an NFLOG message of the group ``group``; raises MalformedError if that is impossible.

    ``payload`` is the message without its netlink header. ``interface_name`` maps an interface's
    index to its name. ``received_ns`` is the time of receipt, since the epoch.
    """
    if len(payload) < _NFGENMSG_BYTES:
        raise MalformedError("the NFLOG message is shorter than its header")
    found = dict(netlink.attributes(payload[_NFGENMSG_BYTES:]))
    header = found.get(NFULA_PACKET_HDR)
    if header is None or len(header) != _PACKET_HDR.size:
        raise MalformedError("the NFLOG message has no packet header attribute")
    protocol, hook = _PACKET_HDR.unpack(header)
    return Datagram(
        group=group,
        family=payload[0],
        hardware_protocol=protocol,
        hook=hook,
        received_ns=received_ns,
        sequence=_number(found, NFULA_SEQ),
        global_sequence=_number(found, NFULA_SEQ_GLOBAL),
        time_us=_time_us(found.get(NFULA_TIMESTAMP)),
        prefix=_text(found.get(NFULA_PREFIX)),
        input=_device(found, NFULA_IFINDEX_INDEV, interface_name),
        output=_device(found, NFULA_IFINDEX_OUTDEV, interface_name),
        physical_input=_device(found, NFULA_IFINDEX_PHYSINDEV, interface_name),
        physical_output=_device(found, NFULA_IFINDEX_PHYSOUTDEV, interface_name),
        hardware_type=_number(found, NFULA_HWTYPE, 2),
        hardware_header=_octets(found.get(NFULA_HWHEADER)),
        hardware_address=_hardware_address(found.get(NFULA_HWADDR)),
        link_header=_octets(found.get(NFULA_L2HDR)),
        vlan=_vlan(found.get(NFULA_VLAN)),
        mark=_number(found, NFULA_MARK),
        uid=_number(found, NFULA_UID),
        gid=_number(found, NFULA_GID),
        captured=bytes(found.get(NFULA_PAYLOAD, b"")),
    )


def _number(found: Mapping[int, memoryview], kind: int, size: int = 4) -> int | None:
    value = found.get(kind)
    if value is None:
        return None
    if len(value) != size:
        raise MalformedError(f"NFLOG attribute {kind} has {len(value)} bytes, not {size}")
    return int.from_bytes(value, "big")


def _device(
    found: Mapping[int, memoryview], kind: int, interface_name: Callable[[int], str | None]
) -> Interface | None:
    index = _number(found, kind)
    if index is None:
        return None
    name = interface_name(index)
    if name is not None and not name.isascii():
        name = fact.readable(name.encode("utf-8", "surrogateescape"))
    return Interface(index, name)


def _octets(value: memoryview | None) -> bytes | None:
    return None if value is None else bytes(value)


def _text(value: memoryview | None) -> str:
    return "" if value is None else fact.readable(bytes(value).partition(b"\0")[0])


def _time_us(value: memoryview | None) -> int | None:
    if value is None:
        return None
    if len(value) != _TIMESTAMP.size:
        raise MalformedError(f"the NFLOG timestamp has {len(value)} bytes, not {_TIMESTAMP.size}")
    seconds, microseconds = _TIMESTAMP.unpack(value)
    if seconds >= _SECONDS_LIMIT or microseconds >= 1_000_000:
        raise MalformedError(f"the NFLOG timestamp {seconds}.{microseconds} is not a valid time")
    return int(seconds) * 1_000_000 + int(microseconds)


def _hardware_address(value: memoryview | None) -> bytes | None:
    if value is None:
        return None
    if len(value) != 12:
        raise MalformedError(f"the NFLOG hardware address has {len(value)} bytes, not 12")
    # struct nfulnl_msg_packet_hw: length (2 bytes), padding (2 bytes), address (8 bytes).
    return bytes(value[4 : 4 + min(int.from_bytes(value[:2], "big"), 8)])


def _vlan(value: memoryview | None) -> tuple[int, int] | None:
    if value is None:
        return None
    nested = dict(netlink.attributes(value))
    protocol = _number(nested, NFULA_VLAN_PROTO, 2)
    tag = _number(nested, NFULA_VLAN_TCI, 2)
    return None if protocol is None or tag is None else (protocol, tag)


def stamp(time_us: int) -> str:
    """Return a time in microseconds since the epoch as seconds with six decimals."""
    return f"{time_us // 1_000_000}.{time_us % 1_000_000:06d}"


def record(
    datagram: Datagram, *, transport: Transport, identity: str, log_source: str, raw: str
) -> Record:
    """Convert an NFLOG message to a Record.

    The record's time is the kernel's timestamp, or the time of receipt if the message has no
    timestamp. The other arguments are fields of the record's :class:`Origin`. ``raw`` is a line
    (``line.py``); the record's has no payload.
    """
    facts = _interface_facts(datagram)
    if (datagram.family, datagram.hook) == (NFPROTO_NETDEV, NF_NETDEV_EGRESS):
        ethertype, header, data = _egress_frame(datagram)
        if ethertype != datagram.hardware_protocol and ethertype >= _FIRST_ETHERTYPE:
            facts["claimed_protocol"] = datagram.hardware_protocol
    else:
        ethertype, data = _ethertype(datagram), datagram.captured
        header = datagram.hardware_header or b""
    question, header_bytes = None, 0
    if ethertype in {ETH_P_IP, ETH_P_IPV6}:
        found, header_bytes = packet.ip_headers(data, 4 if ethertype == ETH_P_IP else 6)
        facts.update(found)
        question = _question(facts, data[header_bytes:])
    elif ethertype == ETH_P_ARP:
        facts.update(packet.arp_facts(data))
        header_bytes = packet.ARP_BYTES
    raw, raw_bytes = without_payload(raw, max(0, len(data) - header_bytes))
    # The kernel's text has the link header of an IP packet only if the packet has an input device.
    if datagram.input is not None or ethertype not in {ETH_P_IP, ETH_P_IPV6}:
        facts.update(fact.link_facts(header))
        if datagram.vlan is not None:
            facts.update(fact.vlan_facts(*datagram.vlan))
    if datagram.uid is not None:
        facts["uid"] = datagram.uid
    if datagram.gid is not None:
        facts["gid"] = datagram.gid
    if datagram.mark is not None:
        facts["mark"] = datagram.mark
    # At a low rate, the time of receipt is about 0.1 ms after the packet.
    time_us = datagram.time_us
    origin = Origin(
        transport=transport,
        identity=identity,
        log_source=log_source,
        log_format="nfnetlink_log",
        raw=raw,
        raw_bytes=raw_bytes,
        sequence=datagram.sequence,
        original_time=None if time_us is None else stamp(time_us),
    )
    return fact.record(
        datagram.prefix,
        facts,
        time_ns=datagram.received_ns if time_us is None else time_us * 1000,
        received_ns=datagram.received_ns,
        origin=origin,
        captured_sum=zlib.adler32(datagram.captured[:_SUMMED]) if datagram.captured else None,
        question=question,
    )


def _question(facts: Facts, payload: bytes) -> DnsQuestion | None:
    if facts.get("destination_port") not in dns.PORTS:
        return None
    return dns.question(payload, is_tcp=facts.get("protocol") == packet.TCP)


def _ethertype(datagram: Datagram) -> int:
    protocol = datagram.hardware_protocol
    # The kernel parses RARP like ARP.
    other = ETH_P_ARP if protocol == ETH_P_RARP else protocol
    return _ETHERTYPES.get(datagram.family, other)


def _egress_frame(datagram: Datagram) -> tuple[int, bytes, bytes]:
    """Split a packet of the netdev egress hook into ethertype, Ethernet header, network packet.

    On this hook, the captured bytes begin with the link-layer header. Only Ethernet is supported.
    """
    captured = datagram.captured
    header = captured[: fact.ETHERNET_BYTES]
    if len(header) < fact.ETHERNET_BYTES:
        return datagram.hardware_protocol, header, b""
    # A frame that bypassed the qdisc (PACKET_QDISC_BYPASS) has no ``link_header``.
    end = len(datagram.link_header or header)
    # Not ``hardware_protocol``: a sender with an AF_PACKET socket chooses its value.
    return int.from_bytes(header[12:14], "big"), header, captured[end:]


def _interface_facts(datagram: Datagram) -> Facts:
    facts: Facts = {}
    bridged = datagram.family == NFPROTO_BRIDGE
    for side, device, physical in (
        ("in", datagram.input, datagram.physical_input),
        ("out", datagram.output, datagram.physical_output),
    ):
        # In the bridge family the hook's device is the port, which netlink calls the physical
        # device; the kernel's text names the port only.
        shown = physical if bridged and physical is not None else device
        if shown is not None:
            _add_interface(facts, side, shown)
        if not bridged and physical is not None and physical != shown:
            _add_interface(facts, f"physical_{side}", physical)
    return facts


def _add_interface(facts: Facts, side: str, interface: Interface) -> None:
    if interface.name is None:
        facts[f"{side}_ifindex"] = interface.ifindex
    else:
        facts[f"{side}_interface"] = interface.name
