"""Decoder of packet bytes to the header values that the kernel prints in its text log.

The result, ``Facts``, is a dictionary of names and values, for example ``source_port`` and 443. The
values are those of a kernel log line with all log flags (net/netfilter/nf_log_syslog.c).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, TypeAlias

from ocsf_nft.ip_text import text_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.sources.packet_fields import Facts

# Decode no header that the kernel does not print: all transports must give an equal Record.

# IANA protocol numbers, IPv6 extension headers included (include/uapi/linux/in.h, in6.h).
HOP_BY_HOP: Final = 0
ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ROUTING: Final = 43
FRAGMENT: Final = 44
ESP: Final = 50
AH: Final = 51
ICMPV6: Final = 58
DESTINATION_OPTIONS: Final = 60
UDPLITE: Final = 136

_EXTENSIONS: Final = frozenset({HOP_BY_HOP, ROUTING, FRAGMENT, ESP, AH, DESTINATION_OPTIONS})

# ICMP types that quote a packet, and the kernel's minimum lengths (RFC 792, 950).
ICMP_ECHO: Final = frozenset({0, 8})
ICMP_QUOTES: Final = frozenset({3, 4, 5, 11})
ICMP_REDIRECT: Final = 5
ICMP_PARAMETER_PROBLEM: Final = 12
_ICMP_MINIMUM_BYTES: Final = {3: 28, 4: 28, 5: 28, 11: 28, 12: 28, 13: 20, 14: 20, 17: 12, 18: 12}
# ICMPv6 likewise (RFC 4443).
ICMPV6_ECHO: Final = frozenset({128, 129})
ICMPV6_QUOTES: Final = frozenset({1, 2, 3, 4})
ICMPV6_TOO_BIG: Final = 2
ICMPV6_PARAMETER_PROBLEM: Final = 4

_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_IPV6: Final = struct.Struct("!IHBB16s16s")
_TCP: Final = struct.Struct("!HHIIHHHH")
_UDP: Final = struct.Struct("!HHH")
_ICMP: Final = struct.Struct("!BBxxHH")
_ARP: Final = struct.Struct("!HHBBH")
_WORD: Final = struct.Struct("!I")
_ETHERNET_ARP: Final = struct.Struct("!6s4s6s4s")
#: Size of an ARP packet with all values that :func:`arp_facts` decodes.
ARP_BYTES: Final = _ARP.size + _ETHERNET_ARP.size


class _CaptureCut(Exception):  # noqa: N818 - it ends the decoding, it is no error
    """Signal that the captured bytes end too early, although the packet itself is long enough."""


class _EndOfPrint(Exception):  # noqa: N818 - it ends the decoding, it is no error
    """Signal that the kernel's text log prints no more values of this packet."""


class _Packet:
    """Captured first bytes (``data``) of a packet, and the full size of the packet (``length``).

    ``in_quote`` is true while the packet inside an ICMP error is decoded. ``header_bytes`` is the
    number of bytes up to the end of the last decoded header.
    """

    __slots__ = ("data", "header_bytes", "in_quote", "length")

    def __init__(self, data: bytes, length: int) -> None:
        self.data = data
        self.length = length
        self.header_bytes = 0
        self.in_quote = False

    def require(self, at: int, size: int, facts: Facts, *, counts_bytes: bool = False) -> None:
        """Check that all ``size`` bytes of a header, which begins at ``at``, were captured.

        Raises _CaptureCut if only the captured bytes end too early. If the packet itself ends
        inside the header, stores ``incomplete``, or ``incomplete_bytes``, and raises _EndOfPrint.
        """
        if at + size <= len(self.data):
            self.header_bytes = max(self.header_bytes, at + size)
            return
        if at + size <= self.length:
            raise _CaptureCut
        if counts_bytes:
            self.set_incomplete(facts, at)
        else:
            facts["incomplete"] = True
        raise _EndOfPrint

    def set_incomplete(self, facts: Facts, at: int) -> None:
        """Store the number of bytes from an incomplete header, at ``at``, to the packet's end."""
        # As in the kernel: the number wraps around if ``at`` is after the end of the packet.
        facts["incomplete_bytes"] = (self.length - at) & 0xFFFFFFFF


def ip_facts(data: bytes, version: int) -> Facts:
    """Decode the headers of an IP packet to values by name, as :func:`ip_headers` does."""
    return ip_headers(data, version)[0]


def ip_headers(data: bytes, version: int) -> tuple[Facts, int]:
    """Decode the headers of an IP packet to values by name; never raises.

    ``data`` may have only the first bytes of the packet. ``version`` is 4 or 6, from the ethertype.
    Return the values, and the number of bytes up to the end of the last decoded header.
    """
    # A packet may end inside a header. Where the kernel prints ``TRUNCATED`` for this, the facts
    # have ``incomplete``. For ``INCOMPLETE [n bytes]`` they have ``incomplete_bytes``, which is n.
    # If only the captured bytes end too early, they have ``truncated``.
    facts: Facts = {}
    packet = _Packet(data, max(len(data), _total_length(data, version)))
    try:
        # Like the kernel, the decoder ignores the version field in the packet.
        (_ipv4 if version == 4 else _ipv6)(packet, 0, facts)
    except _CaptureCut:
        facts["truncated"] = True
    except _EndOfPrint:
        pass
    return facts, packet.header_bytes


def arp_facts(data: bytes) -> Facts:
    """Decode an ARP packet to values by name.

    The addresses are decoded only for IPv4 over Ethernet (RFC 826).
    """
    if len(data) < _ARP.size:
        return {"incomplete": True}
    hardware, protocol, hardware_bytes, protocol_bytes, operation = _ARP.unpack_from(data)
    arp: Facts = {"hardware_type": hardware, "protocol_type": protocol, "operation": operation}
    if (hardware, hardware_bytes, protocol_bytes) == (1, 6, 4):
        if len(data) < ARP_BYTES:
            arp["incomplete_bytes"] = len(data) - _ARP.size
        else:
            mac, address, target_mac, target = _ETHERNET_ARP.unpack_from(data, _ARP.size)
            arp["mac_source"] = mac.hex(":")
            arp["source"] = text_of(address)
            arp["mac_destination"] = target_mac.hex(":")
            arp["destination"] = text_of(target)
    return {"arp": arp}


def _total_length(data: bytes, version: int) -> int:
    if version == 4:
        return int.from_bytes(data[2:4], "big") if len(data) >= 20 else 0
    return 40 + int.from_bytes(data[4:6], "big") if len(data) >= 40 else 0


def _ipv4(packet: _Packet, at: int, facts: Facts) -> None:
    packet.require(at, _IPV4.size, facts)
    first, tos, length, ident, fragment, ttl, protocol, _checksum, source, destination = (
        _IPV4.unpack_from(packet.data, at)
    )
    facts["ip_version"] = 4
    facts["source"] = text_of(source)
    facts["destination"] = text_of(destination)
    facts["length"] = length
    facts["tos"] = tos & 0xFE  # IPTOS_TOS_MASK | IPTOS_PREC_MASK: the lowest bit is not printed
    facts["ttl"] = ttl
    facts["ip_id"] = ident
    facts["protocol"] = protocol
    if fragment & 0x8000:
        facts["congestion"] = True
    if fragment & 0x4000:
        facts["dont_fragment"] = True
    if fragment & 0x2000:
        facts["more_fragments"] = True
    offset = (fragment & 0x1FFF) * 8
    if offset:
        facts["fragment_offset"] = offset
    header = (first & 0xF) * 4
    if header > _IPV4.size:
        packet.require(at + _IPV4.size, header - _IPV4.size, facts)
        facts["ip_options"] = packet.data[at + _IPV4.size : at + header].hex()
    if not offset:
        _transport(packet, at + header, facts, protocol)


def _ipv6(packet: _Packet, at: int, facts: Facts) -> None:
    packet.require(at, _IPV6.size, facts)
    word, payload, following, hops, source, destination = _IPV6.unpack_from(packet.data, at)
    facts["ip_version"] = 6
    facts["source"] = text_of(source)
    facts["destination"] = text_of(destination)
    facts["length"] = payload + _IPV6.size
    facts["traffic_class"] = word >> 20 & 0xFF
    facts["hop_limit"] = hops
    facts["flow_label"] = word & 0xFFFFF
    at, protocol, later_fragment = _extensions(packet, at + _IPV6.size, facts, following)
    facts["protocol"] = protocol
    if not later_fragment:
        _transport(packet, at, facts, protocol)


def _extensions(packet: _Packet, at: int, facts: Facts, following: int) -> tuple[int, int, bool]:
    """Decode the IPv6 extension headers of a packet, and store their values in ``facts``.

    The first extension header is at the offset ``at`` and has the type ``following``. Return the
    offset and the type of the header after the last extension header. The third returned value is
    True for a fragment other than the first.
    """
    headers = 0
    later_fragment = False
    while following in _EXTENSIONS:
        packet.require(at, 2, facts)
        headers += 1
        facts["extension_headers"] = headers
        size = (packet.data[at + 1] + 1) * 8
        if following == FRAGMENT:
            later_fragment = _fragment(packet, at, facts) or later_fragment
            size = 8
        elif later_fragment and following != ESP:
            raise _EndOfPrint  # the kernel prints no further header of a later fragment
        elif following in {AH, ESP}:
            _security(packet, at, facts, following, later_fragment=later_fragment)
            size = (packet.data[at + 1] + 2) * 4
        following = packet.data[at]
        at += size
    return at, following, later_fragment


def _fragment(packet: _Packet, at: int, facts: Facts) -> bool:
    packet.require(at, 8, facts)
    field = int.from_bytes(packet.data[at + 2 : at + 4], "big")
    if "fragment_offset" not in facts:
        facts["fragment_offset"] = field & 0xFFF8
        facts["ip_id"] = int.from_bytes(packet.data[at + 4 : at + 8], "big")
        if field & 1:
            facts["more_fragments"] = True
    return field & 0xFFF8 > 0


def _security(packet: _Packet, at: int, facts: Facts, kind: int, *, later_fragment: bool) -> None:
    if kind == ESP:
        facts["protocol"] = ESP
        if later_fragment:
            raise _EndOfPrint
    packet.require(at, 12 if kind == AH else 8, facts, counts_bytes=True)
    _spi(packet, at + (4 if kind == AH else 0), facts)
    if kind == ESP:
        raise _EndOfPrint


def _spi(packet: _Packet, at: int, facts: Facts) -> None:
    facts.setdefault("spi", _WORD.unpack_from(packet.data, at)[0])


def _transport(packet: _Packet, at: int, facts: Facts, protocol: int) -> None:
    found = (_DECODERS4 if facts["ip_version"] == 4 else _DECODERS6).get(protocol)
    if found is None:
        return
    decode, size = found
    packet.require(at, size, facts, counts_bytes=True)
    decode(packet, at, facts)


def _tcp(packet: _Packet, at: int, facts: Facts) -> None:
    source, destination, sequence, acknowledgment, bits, window, _checksum, urgent = (
        _TCP.unpack_from(packet.data, at)
    )
    facts["source_port"] = source
    facts["destination_port"] = destination
    facts["tcp_sequence"] = sequence
    facts["tcp_acknowledgment"] = acknowledgment
    facts["tcp_window"] = window
    facts["tcp_reserved"] = bits >> 9 & 7
    facts["tcp_flags"] = bits & 0x1FF
    facts["tcp_urgent_pointer"] = urgent
    size = (bits >> 12) * 4
    if size > _TCP.size:
        packet.require(at + _TCP.size, size - _TCP.size, facts)
        facts["tcp_options"] = packet.data[at + _TCP.size : at + size].hex()


def _udp(packet: _Packet, at: int, facts: Facts) -> None:
    facts["source_port"], facts["destination_port"], facts["udp_length"] = _UDP.unpack_from(
        packet.data, at
    )


def _icmp(packet: _Packet, at: int, facts: Facts) -> None:
    kind, code, high, low = _ICMP.unpack_from(packet.data, at)
    facts["icmp_type"] = kind
    facts["icmp_code"] = code
    if packet.length - at < _ICMP_MINIMUM_BYTES.get(kind, 0):
        packet.set_incomplete(facts, at)
    elif kind in ICMP_ECHO:
        facts["icmp_id"] = high
        facts["icmp_sequence"] = low
    elif kind == ICMP_PARAMETER_PROBLEM:
        facts["icmp_parameter"] = high >> 8
    elif kind in ICMP_QUOTES:
        if kind == ICMP_REDIRECT:
            facts["icmp_gateway"] = text_of(packet.data[at + 4 : at + 8])
        if (kind, code) == (3, 4):
            facts["icmp_mtu"] = low
        if not packet.in_quote:
            _quote(packet, at + 8, facts)


def _icmpv6(packet: _Packet, at: int, facts: Facts) -> None:
    kind, code, high, low = _ICMP.unpack_from(packet.data, at)
    facts["icmp_type"] = kind
    facts["icmp_code"] = code
    if kind in ICMPV6_ECHO:
        facts["icmp_id"] = high
        facts["icmp_sequence"] = low
    elif kind in ICMPV6_QUOTES:
        if kind == ICMPV6_PARAMETER_PROBLEM:
            facts["icmp_pointer"] = high << 16 | low
        elif kind == ICMPV6_TOO_BIG:
            facts["icmp_mtu"] = high << 16 | low
        if not packet.in_quote:
            _quote(packet, at + 8, facts)


def _quote(packet: _Packet, at: int, facts: Facts) -> None:
    packet.in_quote = True
    quote: Facts = {}
    facts["quoted"] = quote
    (_ipv4 if facts["ip_version"] == 4 else _ipv6)(packet, at, quote)


_Decode: TypeAlias = "Callable[[_Packet, int, Facts], None]"
#: Decoder and least size of the headers that the kernel prints, by protocol.
_DECODERS: Final[dict[int, tuple[_Decode, int]]] = {
    TCP: (_tcp, _TCP.size),
    UDP: (_udp, 8),
    UDPLITE: (_udp, 8),
}
_DECODERS4: Final = _DECODERS | {
    ICMP: (_icmp, 8),
    AH: (lambda packet, at, facts: _spi(packet, at + 4, facts), 12),
    ESP: (_spi, 8),
}
_DECODERS6: Final = _DECODERS | {ICMPV6: (_icmpv6, 8)}
