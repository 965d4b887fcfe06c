"""Kernel counters of the packets that a fence refused, and the keys of these counters.

Each rule of a fence has three nftables sets of counters: ``flows4``, ``flows6`` and ``others``.
:func:`flow` decodes a key.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self, TypeAlias

from ocsf_nft.ip_text import packed, text_of
from ocsf_nft.record import PERMISSIVE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from ocsf_nft.record import Record, Verdict

#: Sets of a rule: IPv4 flows, IPv6 flows, and packets that are neither or that found no free slot.
Kind: TypeAlias = Literal["flows4", "flows6", "others"]
#: Mode of a fence: it refuses packets, or only reports them.
Mode: TypeAlias = Literal["enforcing", "permissive"]
KINDS: Final[tuple[Kind, ...]] = ("flows4", "flows6", "others")

#: User id in the key of a packet that no socket sent.
_NO_UID: Final = 0xFFFFFFFF
#: Layouts of a key in nftables: user, protocol, destination address and port; in ``others``: user,
#: ethertype and protocol. Each field is padded to a multiple of four bytes. The user id is in the
#: machine's byte order, all other fields are in network byte order.
_FLOW4: Final = struct.Struct("=IB3x4s2s2x")
_FLOW6: Final = struct.Struct("=IB3x16s2s2x")
_UID: Final = struct.Struct("=I")
_OTHER: Final = struct.Struct("=I2s2xB3x")
#: tcp, udp, dccp, sctp, udplite: protocols with ports in their first bytes, as in accounting.nft.
_WITH_PORTS: Final = frozenset({6, 17, 33, 132, 136})
#: Kind and layout of a flow's key, by the length of its address.
_FLOWS: Final[dict[int, tuple[Kind, struct.Struct]]] = {
    4: ("flows4", _FLOW4),
    16: ("flows6", _FLOW6),
}
_ETHERTYPES: Final = {4: 0x0800, 6: 0x86DD}
#: Names of these fields in ``Record.details``.
_FRAGMENT: Final = frozenset({"fragment_offset", "more_fragments"})


class Key(NamedTuple):
    """Key of a packet counter, which is an element of an nftables set.

    Each firewall rule has one set of each ``kind``: ``flows4`` for IPv4 flows, ``flows6`` for IPv6
    flows, and ``others``. ``others`` counts packets that are not IP, and IP packets without a free
    slot in the other sets. ``data`` has the key's bytes.
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

    A permissive fence allows all packets. Its "refused" packets are those that an enforcing fence
    would refuse.
    """

    #: All refused packets, read before the elements.
    refused_before: Count
    #: The same counter, read after the elements, because packets may arrive in between.
    refused: Count
    #: Packets that found no free slot in a set.
    overflow: Count
    #: Packets that the kernel logged.
    logged: int = 0
    #: Counters of single flows, by the kind of their nftables set. None if they were not read,
    #: because the total has not changed since the last reading.
    elements: Mapping[Kind, Sequence[Element]] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Values of all packet counters of a fence, read from ``began_ns`` to ``ended_ns``.

    Both times are in ns since 1970 (UTC). ``began_ms`` and ``ended_ms`` are the same times by the
    monotonic clock, which no process can set. The keys of ``rules`` and ``epochs`` are results of
    :func:`account_name`, such as ``egress``.
    """

    #: Texts that identify the counters: a text changes if its counters are created again, at zero.
    epochs: Mapping[str, str]
    began_ns: int
    ended_ns: int
    began_ms: int
    ended_ms: int
    rules: Mapping[str, RuleReading]
    #: Rules that were left out, because their totals have grown by packets of known log records.
    explained: Collection[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """User, protocol and destination shared by all packets that one kernel counter counts.

    A value is None if it is unknown or absent.
    """

    #: None if no socket sent the packets.
    uid: int | None
    protocol: int | None
    #: None in the nftables set ``others``, see :class:`Key`.
    destination: str | None = None
    #: Destination port; 0 if the packets were counted without ports. None if the protocol has no
    #: ports, and in the set ``others``.
    port: int | None = None
    #: None except in the set ``others``.
    ethertype: int | None = None


class CounterId(NamedTuple):
    """Identity of the packet counters of one firewall rule in one sandbox.

    ``epoch`` is a text that changes each time the counters restart at zero. A permissive fence
    allows the packets that these counters count.
    """

    sandbox: str
    rule: str
    epoch: str
    is_permissive: bool = False

    @classmethod
    def named(cls, sandbox: str, name: str, epoch: str) -> Self:
        """Create the identity of counters from their :func:`account_name`, such as ``egress``."""
        rule, colon, _ = name.partition(":")
        return cls(sandbox, rule, epoch, bool(colon))

    @property
    def name(self) -> str:
        """Return the :func:`account_name` of the counters."""
        return account_name(self.rule, is_permissive=self.is_permissive)

    @property
    def mode(self) -> Mode:
        """Return the mode of the fence that has these counters."""
        return "permissive" if self.is_permissive else "enforcing"

    @property
    def verdict(self) -> Verdict | None:
        """Return the verdict on the counted packets: ``permit``, or None if they were refused."""
        return "permit" if self.is_permissive else None


def account_name(rule: str, *, is_permissive: bool) -> str:
    """Return the name under which a rule's packets are counted: egress, or egress:permissive."""
    return f"{rule}:{PERMISSIVE}" if is_permissive else rule


def counter_suffix(rule: str, *, is_permissive: bool) -> str:
    """Return the suffix of a rule's nftables counters and sets: egress, or egress_permissive."""
    # A permissive fence allows the packets, so they have other counters than refused packets.
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

    ``map_uid`` converts an id from the sandbox's user namespace to the user namespace of this
    process. If keys become equal, their counters are added up.
    """
    if reading.elements is None:
        return reading
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


def key_of(record: Record) -> Key:
    """Return the counter key under which the kernel normally counts the packet of a log record.

    Without a free slot, it counts the packet under one of the :func:`fallback_keys`.
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
        kind, layout = _FLOWS[len(address)]
        return Key(kind, layout.pack(uid, record.protocol, address, port.to_bytes(2, "big")))
    ethertype = record.ethertype or _ETHERTYPES.get(record.ip_version or 0, 0)
    return Key("others", _OTHER.pack(uid, ethertype.to_bytes(2, "big"), record.protocol or 0))


def lacks_port(record: Record) -> bool:
    """Return True if a log record has no port, but the kernel may have counted its packet by port.

    This happens if a packet's transport header is cut off after the ports: the kernel's log needs
    the complete header.
    """
    return (
        record.protocol in _WITH_PORTS
        and record.destination_port is None
        and not record.details.keys() & _FRAGMENT
    )


def without_port(key: Key) -> Key:
    """Return a copy of a counter key with port 0; keys of the set ``others`` have no port."""
    return key if key.kind == "others" else Key(key.kind, key.data[:-4] + bytes(4))


def user_of(key: Key) -> int | None:
    """Return the user id in a counter's key; None if no socket sent the counted packets."""
    return _uid_or_none(*_UID.unpack_from(key.data))


def fallback_keys(key: Key) -> tuple[Key, ...]:
    """Return the keys that the kernel tries, in this order, if a set has no free slot for ``key``.

    Each key lacks one more part of ``key``: the port, then the destination, then the protocol.
    """
    if key.kind == "others":
        uid, ethertype, protocol = _OTHER.unpack(key.data)
        return (Key("others", _OTHER.pack(uid, ethertype, 0)),) if protocol else ()
    layout = _FLOW4 if key.kind == "flows4" else _FLOW6
    uid, protocol, _, port = layout.unpack(key.data)
    ethertype = _ETHERTYPES[4 if key.kind == "flows4" else 6].to_bytes(2, "big")
    other = Key("others", _OTHER.pack(uid, ethertype, protocol))
    found = (without_port(key),) if port != b"\0\0" else ()
    return *found, other, *fallback_keys(other)


def _uid_or_none(uid: int) -> int | None:
    return None if uid == _NO_UID else uid
