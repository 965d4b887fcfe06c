"""Comparison of a packet's fields with the values in firewall rules.

For example, the match ``tcp dport 22`` of a rule has the field ``tcp dport`` (left side) and the
value 22 (right side).
"""

from __future__ import annotations

import ipaddress
import operator
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeAlias

from ocsf_nft.check.packet import (
    ANY_INTERFACE,
    ARP,
    ICMPV6,
    TCP,
    UDP,
    UNSEEN,
    UNTRACKED,
    Bits,
    InterfaceName,
    Packet,
    Span,
    Truth,
    bits,
    exactly,
)

#: Test of one value of the right side: a number, a name, a prefix or a range.
Operand: TypeAlias = Callable[[Any], Truth]
#: A number, a name or flags; None if nothing is known about it.
Value: TypeAlias = Span | InterfaceName | Bits | Operand | None


class Absent:
    """Placeholder for the value of a field that the packet doesn't have."""


_ABSENT: Final = Absent()

#: IPv4's fragment field. No packet here is a fragment; its DF bit may be set.
_FRAGMENT: Final = {"payload": {"protocol": "ip", "field": "frag-off"}}
_DF: Final = 0x4000
_PROTOCOLS: Final = {"tcp": TCP, "udp": UDP, "ipv6-icmp": ICMPV6, "icmpv6": ICMPV6}
_FAMILIES: Final = {4: ("ipv4", 2), 6: ("ipv6", 10)}
_ETHER: Final = {4: ("ip", "0x0800", 0x0800), 6: ("ip6", "0x86dd", 0x86DD)}
_ETHER_OF_ARP: Final = ("arp", "0x0806", ARP)
#: Headers that only packets of other protocols have.
_OTHER_HEADERS: Final = frozenset(
    {"icmp", "igmp", "ah", "esp", "comp", "udplite", "dccp", "sctp", "arp", "vlan", "gre"}
)
#: States of packets without an entry in the connection tracking table.
_WITHOUT_ENTRY: Final = UNSEEN.alternatives | UNTRACKED.alternatives
_MASKS: Final = {"&": operator.and_, "|": operator.or_, "^": operator.xor}
_EXTENSION_HEADERS: Final = frozenset({"rt", "rt0", "rt2", "srh", "hbh", "frag", "dst", "mh"})


def value(left: Any, packet: Packet) -> Value | Absent:
    """Return the value that a field, such as ``tcp dport``, has in a packet.

    ``left`` is the field in nft's JSON. Return None if the value is unknown, and an
    :class:`Absent` if the packet doesn't have the field.
    """
    if not isinstance(left, dict) or len(left) != 1:
        return None
    ((kind, body),) = left.items()
    if kind in _MASKS and isinstance(body, list) and len(body) == 2:
        return _masked(kind, body[0], body[1], packet)
    if kind == "concat" and isinstance(body, list):
        return _concatenated(body, packet)
    reader = _READERS.get(kind)
    return reader(body, packet) if reader is not None and isinstance(body, dict) else None


def operand(left: Any, packet: Packet) -> Operand | None:
    """Return a function that tests if a packet's field matches a value from a firewall rule.

    ``left`` is the field in nft's JSON. The returned function takes the rule's value in nft's JSON,
    such as a number or a range. It returns YES or NO, or MAYBE if that is unknown. If the packet
    doesn't have the field, return None instead of a function.
    """
    match value(left, packet):
        case Absent():
            return None
        case None:
            return lambda _: Truth.MAYBE
        case Span() as number:
            return partial(_number_matches, number)
        case InterfaceName() as name:
            return partial(_name_matches, name)
        case Bits() as flags:
            return partial(_flags_match, flags)
        case test:
            return test


def _meta(body: dict[str, Any], packet: Packet) -> Value | Absent:
    match body.get("key"):
        case "iifname" | "iif":
            return packet.input_interface
        case "oifname" | "oif":
            return packet.output_interface
        case "mark":
            return packet.mark
        case "l4proto":
            return partial(_protocol_matches, packet.protocol)
        case "pkttype" if not packet.is_resolution:
            return partial(_is_one_of, ("host", "unicast", 0))
        case "nfproto":
            return partial(_is_one_of, _FAMILIES[packet.version])
        case "protocol":
            return partial(_is_one_of, _ether_type(packet))
        case _:
            return None


def _ether_type(packet: Packet) -> tuple[str, str, int]:
    return _ETHER_OF_ARP if packet.protocol == ARP else _ETHER[packet.version]


def _payload(body: dict[str, Any], packet: Packet) -> Value | Absent:
    protocol, name = body.get("protocol"), body.get("field")
    if not isinstance(protocol, str) or not isinstance(name, str):
        return None
    if protocol == "ether" and name == "type" and packet.input_interface == ANY_INTERFACE:
        return partial(_is_one_of, _ether_type(packet))  # at a hook of a bridge
    if packet.protocol == ARP:
        return None if protocol in {"arp", "ether"} else _ABSENT
    if protocol == f"ip{'' if packet.version == 4 else 6}":
        return _ip_header(name, packet)
    if protocol in {"ip", "ip6"} or protocol in _OTHER_HEADERS:
        return _ABSENT
    if protocol in _PROTOCOLS and _PROTOCOLS[protocol] != packet.protocol:
        return _ABSENT
    if packet.protocol == ICMPV6:  # its type is one of several, and it has no ports
        return None
    if protocol in {"tcp", "udp", "th"} and name in {"sport", "dport"}:
        return packet.source_port if name == "sport" else packet.destination_port
    if protocol == "tcp" and name == "flags" and packet.is_first:
        return bits("syn") if packet.protocol == TCP else _ABSENT
    return None


def _ip_header(name: Any, packet: Packet) -> Value:
    match name:
        case "saddr":
            return packet.source
        case "daddr":
            return packet.destination
        case "protocol" | "nexthdr":
            return partial(_protocol_matches, packet.protocol)
        case "version":
            return exactly(packet.version)
        case "hdrlength":
            return exactly(5)
        case _:
            return None


def _conntrack(body: dict[str, Any], packet: Packet) -> Value | Absent:
    key = body.get("key")
    if key == "state":
        return packet.state
    # An untracked packet has no such fields (nft_ct_get_eval).
    alternatives = packet.state.alternatives
    if alternatives <= _WITHOUT_ENTRY:
        return _ABSENT
    if "dir" in body or alternatives & _WITHOUT_ENTRY:
        return None
    match key:
        case "direction":
            return partial(_is_one_of, (packet.direction,))
        case "status" if packet.state == bits("new"):
            return bits("")  # not confirmed yet, and its addresses not translated yet
        case _:
            return None


def _fib(body: dict[str, Any], packet: Packet) -> Value | Absent:
    flags, result = body.get("flags"), body.get("result")
    known = flags if isinstance(flags, list) else [flags]
    if not all(isinstance(each, str) for each in known):
        return None
    selectors = frozenset(known) - {"mark"}
    if packet.is_resolution:  # it may be sent to a multicast address
        return None
    if result == "type":
        if "saddr" in selectors:
            is_narrowed = bool(selectors - {"saddr"})
            return partial(_address_type_matches, packet.is_source_local, is_narrowed)
        is_narrowed = bool(selectors - {"daddr"})
        return partial(_address_type_matches, packet.is_destination_local, is_narrowed)
    if result in ("oif", "oifname") and selectors == {"saddr", "iif"}:
        return partial(_exists, packet.has_reverse_route)
    return None


def _address_type_matches(is_local: Truth, is_narrowed: bool, item: Any) -> Truth:
    match item:
        case "local":
            return is_local
        case "unicast":
            # There may be no route to the address through that one interface.
            return min(is_local.inverted(), Truth.MAYBE if is_narrowed else Truth.YES)
        case "broadcast" | "multicast" | "anycast":
            return Truth.NO
        case _:
            return Truth.MAYBE


def _exists(known: Truth, item: Any) -> Truth:
    if item is True:
        return known
    return known.inverted() if item in (False, "0") else Truth.MAYBE


def _extension_header(body: dict[str, Any], packet: Packet) -> Value | Absent:
    name = body.get("name")
    if not isinstance(name, str) or name not in _EXTENSION_HEADERS:
        return None
    # For IPv4, even a test for a missing header doesn't match (nft_exthdr_ipv6_eval).
    if "field" in body or packet.version == 4:
        return _ABSENT
    return partial(_exists, Truth.NO)


_READERS: Final[dict[str, Callable[[dict[str, Any], Packet], Value | Absent]]] = {
    "meta": _meta,
    "payload": _payload,
    "ct": _conntrack,
    "fib": _fib,
    "exthdr": _extension_header,
}


def _masked(kind: str, left: Any, mask: Any, packet: Packet) -> Value | Absent:
    found = value(left, packet)
    if isinstance(found, Absent):
        return found
    if kind == "&" and left == _FRAGMENT and is_number(mask) and not mask & _DF:
        return exactly(0)
    if kind == "&" and isinstance(found, Bits):
        return found.masked(flags_of(mask))
    if isinstance(found, Span) and found.single is not None and is_number(mask):
        return exactly(_MASKS[kind](found.single, mask))
    return None


def _concatenated(fields: list[Any], packet: Packet) -> Operand | Absent:
    parts = []
    for field in fields:
        part = operand(field, packet)
        if part is None:
            return _ABSENT
        parts.append(part)
    return partial(_concatenation_matches, parts)


def _concatenation_matches(parts: list[Operand], item: Any) -> Truth:
    values = item.get("concat") if isinstance(item, dict) else None
    if not isinstance(values, list) or len(values) != len(parts):
        return Truth.MAYBE
    pairs = zip(parts, values, strict=True)
    answers = (Truth.YES if each == "*" else part(each) for part, each in pairs)
    return min(answers, default=Truth.MAYBE)


def flags_of(item: Any) -> frozenset[str]:
    """Return the names of the flags in a value of nft's JSON.

    The value is one flag, a list of flags, or an object such as ``{"|": ["syn", "ack"]}``.
    """
    if isinstance(item, dict) and "|" in item:
        return flags_of(item["|"])
    if isinstance(item, list):
        return frozenset().union(*map(flags_of, item))
    return frozenset() if str(item) == "0" else frozenset({str(item)})


def is_number(item: Any) -> bool:
    """Return true if a JSON value is a number; ``true`` and ``false`` are not."""
    return isinstance(item, int) and not isinstance(item, bool)


def _is_one_of(names: tuple[Any, ...], item: Any) -> Truth:
    return Truth.YES if item in names else Truth.NO


def _flags_match(flags: Bits, item: Any) -> Truth:
    is_unknown = isinstance(item, dict) and "|" not in item
    return Truth.MAYBE if is_unknown else flags.equals(flags_of(item))


def _name_matches(name: InterfaceName, item: Any) -> Truth:
    if not isinstance(item, str):
        return Truth.MAYBE
    if item.endswith("\\*"):  # nft's escape for a name that ends with an asterisk
        return name.equals(f"{item[:-2]}*")
    if item.endswith("*"):
        return name.starts_with(item[:-1])
    # A decimal number is an interface's index, or an interface with that name.
    return max(name.equals(item), Truth.MAYBE if item.isdecimal() and name.is_prefix else Truth.NO)


def _protocol_matches(protocol: int, item: Any) -> Truth:
    if isinstance(item, str) and not item.isdecimal():
        return Truth.YES if _PROTOCOLS.get(item) == protocol else Truth.NO
    return _number_matches(exactly(protocol), item)


def _number_matches(number: Span, item: Any) -> Truth:
    found = span(item)
    return Truth.MAYBE if found is None else number.within(found)


def span(item: Any) -> Span | None:
    """Return the lowest and the highest number that a number, range, IP address or prefix covers.

    ``item`` is in nft's JSON. An address counts as a number. Returns None for any other value.
    """
    if is_number(item):
        return exactly(item)
    if isinstance(item, str):
        return _number_in_text(item)
    if isinstance(item, dict) and len(item) == 1:
        ((kind, body),) = item.items()
        if kind == "prefix" and isinstance(body, dict):
            return _prefix(body.get("addr"), body.get("len"))
        if kind == "range" and isinstance(body, list) and len(body) == 2:
            low, high = span(body[0]), span(body[1])
            return None if low is None or high is None else Span(low.low, high.high)
    return None


def _number_in_text(text: str) -> Span | None:
    if text.isascii() and text.isdecimal():
        return exactly(int(text[:40]))
    try:
        return exactly(int(ipaddress.ip_address(text)))
    except ValueError:
        return None


def _prefix(address: Any, length: Any) -> Span | None:
    try:  # the prefix of a mark or a port is no address
        network = ipaddress.ip_network(f"{address}/{length}", strict=False)
    except ValueError:
        return None
    return Span(int(network.network_address), int(network.broadcast_address))
