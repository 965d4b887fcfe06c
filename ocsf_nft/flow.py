"""Kernel counters of the packets that a fence refused, and the keys of these counters.

Each rule of a fence has three nftables sets of counters: ``flows4``, ``flows6`` and ``others``. A
key in ``flows4`` (IPv4) or ``flows6`` (IPv6) has user, protocol, destination address and port. A
key in ``others`` has user, ethertype and protocol. :func:`flow` decodes a key.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from ocsf_nft.ip_text import packed, text_of
from ocsf_nft.record import PERMISSIVE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ocsf_nft.record import Record

#: Sets of a rule: IPv4 flows, IPv6 flows, and packets that are neither or that found no free slot.
Kind: TypeAlias = Literal["flows4", "flows6", "others"]
KINDS: Final[tuple[Kind, ...]] = ("flows4", "flows6", "others")

#: User id in the key of a packet that no socket sent.
_NO_UID: Final = 0xFFFFFFFF
#: Layouts of a key in nftables. Each field is padded to a multiple of four bytes. The user id is in
#: the machine's byte order, all other fields are in network byte order.
_FLOW4: Final = struct.Struct("=IB3x4s2s2x")
_FLOW6: Final = struct.Struct("=IB3x16s2s2x")
_UID: Final = struct.Struct("=I")
_OTHER: Final = struct.Struct("=I2s2xB3x")
#: tcp, udp, dccp, sctp, udplite: protocols with ports in their first bytes, as in accounting.nft.
_WITH_PORTS: Final = frozenset({6, 17, 33, 132, 136})
_ETHERTYPES: Final = {4: 0x0800, 6: 0x86DD}
#: Names of these fields in ``Record.details``.
_FRAGMENT: Final = frozenset({"fragment_offset", "more_fragments"})


class Key(NamedTuple):
    """Key of a packet counter.

    ``kind`` is the kind of its nftables set, such as ``flows4``. ``data`` has the bytes of the key.
    """

    kind: Kind
    data: bytes


class Count(NamedTuple):
    """Number of packets, and their total size in bytes (whole IP packets or frames)."""

    packets: int = 0
    bytes: int = 0


class Element(NamedTuple):
    """Element of an nftables set: a key (``data``), and the counter of the packets with this key.

    ``packets`` and ``bytes`` are counted since the kernel created the element. ``idle_ms`` is the
    time since the last packet with this key, in milliseconds.
    """

    data: bytes
    packets: int
    bytes: int
    idle_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleReading:
    """Values of the kernel counters of one firewall rule, from one reading of these counters.

    ``elements`` maps each kind of nftables set, such as ``flows4``, to its elements: the counters
    of single flows. ``refused_before`` is the counter of all refused packets, read before the
    elements. ``refused`` is the same counter, read after the elements, because packets may arrive
    in between. ``overflow`` counts packets that found no free slot in a set. ``logged`` counts
    packets that the kernel logged. If the fence is permissive, "refused" packets are those that the
    rule would have refused.
    """

    refused_before: Count
    refused: Count
    overflow: Count
    logged: int = 0
    elements: Mapping[Kind, Sequence[Element]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Values of all packet counters of a fence, read from ``began_ns`` to ``ended_ns``.

    Both times are in ns since the epoch. ``rules`` maps the name of a firewall rule's counters (see
    :func:`account_name`), such as ``egress``, to their values. ``epochs`` maps the same name to a
    text that identifies these counters. The text changes if the counters were created again and
    began at zero.
    """

    epochs: Mapping[str, str]
    began_ns: int
    ended_ns: int
    rules: Mapping[str, RuleReading]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """User, protocol and destination of packets that have the same kernel counter.

    - ``uid`` is None if no socket sent the packets.
    - ``protocol`` is None if unknown.
    - ``destination`` is None in the nftables set ``others``. This set counts packets that are not
      IP, and IP packets for which the other sets have no free slot.
    - ``port`` is the destination port. It is 0 if the packets were counted without ports. It is
      None if the protocol has no ports, and in the set ``others``.
    - ``ethertype`` is None except in the set ``others``.
    """

    uid: int | None
    protocol: int | None
    destination: str | None = None
    port: int | None = None
    ethertype: int | None = None


def account_name(rule: str, *, is_permissive: bool) -> str:
    """Return the name under which the packets of a firewall rule are counted, such as ``egress``.

    If the fence is permissive, the name is, for example, ``egress:permissive``.
    """
    return f"{rule}:{PERMISSIVE}" if is_permissive else rule


def counter_suffix(rule: str, *, is_permissive: bool) -> str:
    """Return the suffix of the names of a rule's nftables counters and sets, such as ``egress``.

    The suffix is the rule's name. If the fence is permissive, ``_permissive`` is appended. A
    permissive fence allows the packets that it would otherwise refuse. So the counters of allowed
    packets have other names than the counters of refused packets.
    """
    return f"{rule}_{PERMISSIVE}" if is_permissive else rule


def flow(key: Key) -> Flow:
    """Decode a counter's key; raises ``struct.error`` if the key has a wrong length."""
    if key.kind == "others":
        uid, ethertype, protocol = _OTHER.unpack(key.data)
        return Flow(
            uid=_uid_or_none(uid),
            protocol=protocol or None,
            ethertype=int.from_bytes(ethertype, "big"),
        )
    layout = _FLOW4 if key.kind == "flows4" else _FLOW6
    uid, protocol, address, port = layout.unpack(key.data)
    return Flow(
        uid=_uid_or_none(uid),
        protocol=protocol,
        destination=text_of(address),
        port=int.from_bytes(port, "big") if protocol in _WITH_PORTS else None,
    )


def map_uids(reading: RuleReading, map_uid: Callable[[int], int]) -> RuleReading:
    """Return a copy of a counter reading in which ``map_uid`` has converted each user id.

    ``map_uid`` takes a user id of the sandbox's user namespace. It returns the id in this process's
    user namespace. If several ids become the same id, counters whose keys then are equal are added
    up to one counter.
    """
    return replace(
        reading,
        elements={
            kind: _map_element_uids(found, map_uid) for kind, found in reading.elements.items()
        },
    )


def _map_element_uids(
    elements: Iterable[Element], map_uid: Callable[[int], int]
) -> tuple[Element, ...]:
    found: dict[bytes, Element] = {}
    for element in elements:
        (uid,) = _UID.unpack_from(element.data)
        data = element.data
        if uid != _NO_UID:
            data = _UID.pack(map_uid(uid)) + data[_UID.size :]
        other = found.get(data, Element(data, 0, 0, element.idle_ms))
        # Users without a mapped id share one id.
        found[data] = Element(
            data,
            element.packets + other.packets,
            element.bytes + other.bytes,
            min(element.idle_ms, other.idle_ms),
        )
    return tuple(found.values())


def keys(record: Record) -> tuple[Key, ...]:
    """Return the counter keys under which the kernel may have counted the packet of a log record.

    The first key is the most likely: it has all details. The :func:`fallback_keys` of this key
    follow.
    """
    uid = _NO_UID if record.uid is None else record.uid
    address = packed(record.destination)
    if address is not None and record.protocol is not None:
        has_port = (
            record.protocol in _WITH_PORTS
            and record.destination_port is not None
            and not record.details.keys() & _FRAGMENT
        )
        port = (record.destination_port or 0) if has_port else 0
        exact = (
            Key("flows4", _FLOW4.pack(uid, record.protocol, address, port.to_bytes(2, "big")))
            if len(address) == 4
            else Key("flows6", _FLOW6.pack(uid, record.protocol, address, port.to_bytes(2, "big")))
        )
    else:
        ethertype = record.ethertype or _ETHERTYPES.get(record.ip_version or 0, 0)
        exact = Key("others", _OTHER.pack(uid, ethertype.to_bytes(2, "big"), record.protocol or 0))
    return exact, *fallback_keys(exact)


def lacks_port(record: Record) -> bool:
    """Return True if a log record has no port, but the kernel may have counted its packet by port.

    This happens if the packet's transport header is cut off. The kernel's counter needs only the
    four bytes of the ports, but the log record needs the complete header.
    """
    return (
        record.protocol in _WITH_PORTS
        and record.destination_port is None
        and not record.details.keys() & _FRAGMENT
    )


def without_port(key: Key) -> Key:
    """Return a copy of a counter key, with its port replaced by 0.

    A key of the set ``others`` has no port, and is returned unchanged.
    """
    return key if key.kind == "others" else Key(key.kind, key.data[:-4] + bytes(4))


def user_of(key: Key) -> int | None:
    """Return the user id in a counter's key; None if no socket sent the counted packets."""
    return _uid_or_none(*_UID.unpack_from(key.data))


def fallback_keys(key: Key) -> tuple[Key, ...]:
    """Return the keys that the kernel tries, in this order, if a set has no free slot for ``key``.

    Each key lacks one more part of ``key``: the port, then the destination, then the protocol. The
    result is empty if ``key`` has none of these parts.
    """
    if key.kind == "others":
        uid, ethertype, protocol = _OTHER.unpack(key.data)
        return (Key("others", _OTHER.pack(uid, ethertype, 0)),) if protocol else ()
    layout = _FLOW4 if key.kind == "flows4" else _FLOW6
    uid, protocol, address, port = layout.unpack(key.data)
    ethertype = _ETHERTYPES[4 if key.kind == "flows4" else 6].to_bytes(2, "big")
    without_port = Key(key.kind, layout.pack(uid, protocol, address, b"\0\0"))
    other = Key("others", _OTHER.pack(uid, ethertype, protocol))
    found = (without_port,) if port != b"\0\0" else ()
    return *found, other, *fallback_keys(other)


def _uid_or_none(uid: int) -> int | None:
    return None if uid == _NO_UID else uid
