"""What nf_tables tells of changes to its tables, read for what it says of a fence's.

A transaction is told as a message for each thing that it made, changed or deleted, and one at the
end with the number of the new ruleset and who made it. Whoever has CAP_NET_ADMIN over the namespace
chooses the names and how much there is of it: what is kept has a bound, whatever comes. Numbers:
``include/uapi/linux/netfilter/nf_tables.h``. Pure; runs on any OS.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ocsf_nft import netlink, nfnetlink

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ocsf_nft.fence.replace_keeping_counters import Place

_HEADER: Final = struct.Struct("!BBH")  # family, version, the number of the ruleset's last 16 bits
_NUMBER32: Final = struct.Struct("!I")

_NEWTABLE: Final = 0
_DELTABLE: Final = 2
_NEWGEN: Final = 15
_TABLE_NAME: Final = 1  # of all kinds alike
_GEN_ID: Final = 1
_GEN_PROC_PID: Final = 2
_GEN_PROC_NAME: Final = 3

#: By the type of a message: what became of a part with a name of its own, and the attribute with
#: the name.
_NAMED: Final = {
    3: ("chain", "made or changed", 3),
    5: ("chain", "deleted, or taken off an interface", 3),
    9: ("set", "made", 2),
    11: ("set", "deleted", 2),
    18: ("object", "made or changed", 2),
    20: ("object", "deleted", 2),
    22: ("flowtable", "made or changed", 2),
    24: ("flowtable", "deleted", 2),
}
#: The same of what has none: the attribute names what it is in.
_NAMELESS: Final = {
    6: ("rule", "put into chain", 2),
    8: ("rule", "taken out of chain", 2),
    12: ("element", "put into set", 2),
    14: ("element", "taken out of set", 2),
}
_PARTS: Final = {**_NAMED, **_NAMELESS}
#: So many different changes of a transaction are told; the rest is counted.
_MOST: Final = 8
_NAME_CHARACTERS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """What somebody did to a fence's tables, and by whom the kernel says it was done.

    ``generation`` is the number of the ruleset that came of it, ``port`` that of the netlink socket
    it came by, ``pid`` the thread's in the initial pid namespace, ``comm`` what it called itself.
    Of a transaction whose end was not told ``port`` alone is known of these. ``changes`` is in
    words, for people; ``made`` are the tables that were made or changed as a whole.
    """

    generation: int | None = None
    port: int | None = None
    pid: int | None = None
    comm: str | None = None
    changes: str
    made: frozenset[Place] = frozenset()


@dataclass(slots=True)
class _Open:
    """A transaction whose end has not been told."""

    port: int | None = None
    made: set[Place] = field(default_factory=set)
    deleted: set[Place] = field(default_factory=set)
    parts: dict[tuple[Place, int, str], int] = field(default_factory=dict)
    more: dict[Place, int] = field(default_factory=dict)
    deletes_others: bool = False
    makes_others: bool = False

    @property
    def is_ours(self) -> bool:
        return bool(self.made or self.deleted or self.parts or self.more)


class Changes:
    """Reads notices about some tables, datagram by datagram."""

    def __init__(self, tables: Iterable[Place]) -> None:
        self._tables = {
            (nfnetlink.FAMILIES[place.family], place.table.encode() + b"\0"): place
            for place in tables
        }
        self._open = _Open()
        self._generation = 0

    def read(self, datagram: memoryview) -> Iterator[Transaction]:
        """The transactions that end with a datagram and concern the tables."""
        for message in netlink.headed(datagram):
            kind = message.kind - nfnetlink.SUBSYSTEM
            if len(message.payload) < _HEADER.size:
                continue
            family, _, number = _HEADER.unpack_from(message.payload)
            attributes = netlink.attributes(message.payload[_HEADER.size :])
            if kind == _NEWGEN:
                yield from self._ended(dict(attributes), message.port)
                continue
            if number != self._generation:  # of another one: the end of the last was not told
                yield from self.rest()
                self._generation = number
            if kind in {_NEWTABLE, _DELTABLE} or kind in _PARTS:
                self._open.port = message.port
                self._take(kind, family, dict(attributes))

    def rest(self) -> Iterator[Transaction]:
        """What has been told of a transaction whose end is not on its way any more."""
        found, self._open = self._open, _Open()
        if found.is_ours:
            yield Transaction(port=found.port, changes=_words(found), made=frozenset(found.made))

    @property
    def is_open(self) -> bool:
        """Whether a transaction that concerns the tables has been told in part."""
        return self._open.is_ours

    def _take(self, kind: int, family: int, attributes: dict[int, memoryview]) -> None:
        place = self._tables.get((family, bytes(attributes.get(_TABLE_NAME, b""))))
        found = self._open
        if place is None:
            found.deletes_others |= kind == _DELTABLE
            found.makes_others |= kind == _NEWTABLE
        elif kind == _NEWTABLE:
            found.made.add(place)
        elif kind == _DELTABLE:
            found.deleted.add(place)
        else:
            key = place, kind, _name(attributes.get(_PARTS[kind][2], memoryview(b"")))
            if key in found.parts or len(found.parts) < _MOST:
                found.parts[key] = found.parts.get(key, 0) + 1
            else:
                found.more[place] = found.more.get(place, 0) + 1

    def _ended(self, attributes: dict[int, memoryview], port: int) -> Iterator[Transaction]:
        generation = _number(attributes.get(_GEN_ID))
        if generation is None or generation & 0xFFFF != self._generation:
            yield from self.rest()
            return
        found, self._open = self._open, _Open()
        if found.is_ours:
            comm = attributes.get(_GEN_PROC_NAME)
            yield Transaction(
                generation=generation,
                port=port,
                pid=_number(attributes.get(_GEN_PROC_PID)),
                comm=None if comm is None else _name(comm),
                changes=_words(found),
                made=frozenset(found.made),
            )


def _number(value: memoryview | None) -> int | None:
    if value is None or len(value) != _NUMBER32.size:
        return None
    return int(_NUMBER32.unpack(value)[0])


def _name(value: memoryview) -> str:
    name = bytes(value).split(b"\0", 1)[0].decode("utf-8", "replace")
    return name if len(name) <= _NAME_CHARACTERS else f"{name[: _NAME_CHARACTERS - 1]}…"


def _words(found: _Open) -> str:
    deleted = found.deleted - found.made
    clauses = []
    if deleted and found.deletes_others and not found.makes_others and not found.made:
        clauses.append("the whole ruleset was flushed")
    else:
        clauses += _of_tables(deleted, "deleted")
    clauses += _of_tables(found.deleted & found.made, "deleted and made anew")
    clauses += _of_tables(found.made - found.deleted, "made or changed")
    for (place, kind, name), times in found.parts.items():
        if place in found.deleted:  # with it went what was in it
            continue
        noun, what, _ = _PARTS[kind]
        if kind in _NAMED:
            clause = f"{noun} {name} was {what} in"
        elif times == 1:
            clause = f"{'an' if noun == 'element' else 'a'} {noun} was {what} {name} of"
        else:
            clause = f"{times} {noun}s were {what} {name} of"
        clauses.append(f"{clause} table {place.family} {place.table}")
    more = sum(times for place, times in found.more.items() if place not in found.deleted)
    if more:
        clauses.append(f"{more} more change{' was' if more == 1 else 's were'} made")
    return "; ".join(clauses)


def _of_tables(tables: set[Place], what: str) -> list[str]:
    return [f"table {place.family} {place.table} was {what}" for place in sorted(tables)]
