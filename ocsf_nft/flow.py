"""What the kernel counts refused packets by, and what it has counted.

A rule of a fence has three sets of counters (``rules/accounting.nft``). Their keys are the bytes
that nftables has: each field padded to four bytes; user and group ids in the machine's byte order,
the rest as in the packet. They are dictionary keys here as they are, because there may be tens of
thousands of them a second; :func:`flow` says in words what one means.
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

#: The sets of a rule: flows over IPv4, flows over IPv6, and what is neither or found no place.
Kind: TypeAlias = Literal["flows4", "flows6", "others"]
KINDS: Final[tuple[Kind, ...]] = ("flows4", "flows6", "others")

#: The user of a packet that no socket has sent.
_NO_UID: Final = 0xFFFFFFFF
_FLOW4: Final = struct.Struct("=IB3x4s2s2x")
_FLOW6: Final = struct.Struct("=IB3x16s2s2x")
_UID: Final = struct.Struct("=I")
_OTHER: Final = struct.Struct("=I2s2xB3x")
#: tcp, udp, dccp, sctp, udplite: whose first bytes are ports, as in accounting.nft.
_WITH_PORTS: Final = frozenset({6, 17, 33, 132, 136})
_ETHERTYPES: Final = {4: 0x0800, 6: 0x86DD}
#: The names that sources give these fields in ``Record.details``.
_FRAGMENT: Final = frozenset({"fragment_offset", "more_fragments"})


class Key(NamedTuple):
    """One element: its set, and its key there."""

    kind: Kind
    data: bytes


class Count(NamedTuple):
    """Packets, and their bytes as the kernel counts them: of the IP packet, or of the frame."""

    packets: int = 0
    bytes: int = 0


class Element(NamedTuple):
    """An element of a set: its key, its count since it is there, and how long ago the last was."""

    data: bytes
    packets: int
    bytes: int
    idle_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleReading:
    """The counters of one rule, of one of its modes.

    ``refused`` is all that the rule refused, or would have, being permissive; ``refused_before``
    the same counter as it was before the elements were read, so that what they hold lies between
    the two. ``overflow`` is what found no place in any set. ``logged`` is of how many packets a
    record was written by then, whether or not anybody has read it.
    """

    refused_before: Count
    refused: Count
    overflow: Count
    logged: int = 0
    elements: Mapping[Kind, Sequence[Element]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The counters of a fence, read from ``began_ns`` to ``ended_ns`` (since the epoch, UTC).

    Both are by :func:`account_name`. ``epochs`` tells which counters these are: another value means
    that they have begun anew.
    """

    epochs: Mapping[str, str]
    began_ns: int
    ended_ns: int
    rules: Mapping[str, RuleReading]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """What an element counts: who sent what, where to.

    ``destination`` is None where the key has none; ``port`` where the protocol has none, or the
    packet is a fragment. ``ethertype`` is known for ``others`` alone.
    """

    uid: int | None
    protocol: int | None
    destination: str | None = None
    port: int | None = None
    ethertype: int | None = None


def account_name(rule: str, *, is_permissive: bool) -> str:
    """What the account of a rule is called: a permissive rule has another one, as its log prefix.

    Nothing else has a colon in its name.
    """
    return f"{rule}:{PERMISSIVE}" if is_permissive else rule


def counter_suffix(rule: str, *, is_permissive: bool) -> str:
    """How the counters and sets end that count what a rule refuses, or lets pass.

    They are others: whatever becomes of the fence, no count is of both.
    """
    return f"{rule}_{PERMISSIVE}" if is_permissive else rule


def flow(key: Key) -> Flow:
    """What a key says, in words; raises ``struct.error`` when it has the wrong length."""
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
    """A reading with its users' numbers as they are ``map_uid``."""
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
        # Users without a number of their own share one.
        found[data] = Element(
            data,
            element.packets + other.packets,
            element.bytes + other.bytes,
            min(element.idle_ms, other.idle_ms),
        )
    return tuple(found.values())


def keys(record: Record) -> tuple[Key, ...]:
    """Where the kernel may have counted the packet of a record, the likeliest first."""
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
    """Whether the kernel may have counted a packet by a port that its record doesn't tell.

    It reads a port wherever there are four bytes, and logs one where the header is whole.
    """
    return (
        record.protocol in _WITH_PORTS
        and record.destination_port is None
        and not record.details.keys() & _FRAGMENT
    )


def without_port(key: Key) -> Key:
    """The key that all ports of a destination have in common."""
    return key if key.kind == "others" else Key(key.kind, key.data[:-4] + bytes(4))


def user_of(key: Key) -> int | None:
    """The user that a key is of, None for nobody."""
    return _uid_or_none(*_UID.unpack_from(key.data))


def fallback_keys(key: Key) -> tuple[Key, ...]:
    """Where a rule counts what would have this key and finds no place there, in this order."""
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
