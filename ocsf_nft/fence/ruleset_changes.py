"""Decoder of the kernel's messages about changes to a fence's nftables tables; runs on any OS.

The kernel sends one message for each object that a transaction changes. Then a last message has the
number of the new ruleset, and the sending thread's id and name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from ocsf_nft import netlink, nfnetlink
from ocsf_nft.fence.surroundings import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ocsf_nft.fence.spec import TableId

_HEADER: Final = struct.Struct("!BBH")  # family, version, last 16 bits of the ruleset's number

# include/uapi/linux/netfilter/nf_tables.h
_NEWTABLE: Final = 0
_DELTABLE: Final = 2
_NEWGEN: Final = 15
_TABLE_NAME: Final = 1  # of all kinds alike
_GEN_ID: Final = 1
_GEN_PROC_PID: Final = 2
_GEN_PROC_NAME: Final = 3

#: By message type, for objects with a name: the kind, the change, and the attribute with the name.
_NAMED: Final = {
    3: ("chain", "created or changed", 3),
    5: ("chain", "deleted, or detached from an interface", 3),
    9: ("set", "created", 2),
    11: ("set", "deleted", 2),
    18: ("object", "created or changed", 2),
    20: ("object", "deleted", 2),
    22: ("flowtable", "created or changed", 2),
    24: ("flowtable", "deleted", 2),
}
#: The same for objects without a name: the attribute has the name of the containing chain or set.
_NAMELESS: Final = {
    6: ("rule", "added to chain", 2),
    8: ("rule", "removed from chain", 2),
    12: ("element", "added to set", 2),
    14: ("element", "removed from set", 2),
}
_PARTS: Final = {**_NAMED, **_NAMELESS}
#: Message types about tables, chains and rules: in other tables they may weaken a fence.
_STRUCTURE: Final = frozenset({_NEWTABLE, _DELTABLE, 3, 5, 6, 8})
#: Maximum of different changes that are described for a transaction; the others are counted. A
#: process with CAP_NET_ADMIN over the namespace can cause any number, with long names.
_MAX_CHANGES: Final = 8
_NAME_CHARACTERS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """nftables transaction that changed a fence's tables, and the process that made the change.

    ``generation``, ``pid`` and ``comm`` are None if the kernel's last message about the transaction
    is missing.
    """

    #: Number of the resulting ruleset.
    generation: int | None = None
    #: Netlink port (address) of the socket that sent the transaction.
    port: int | None = None
    #: Id of the sending thread in the initial pid namespace.
    pid: int | None = None
    #: Name of the sending thread, which the thread can choose.
    comm: str | None = None
    #: Description for people.
    changes: str
    #: The fence's tables that were created, or whose flags were changed: both have the same message
    #: of the kernel.
    created: frozenset[TableId] = frozenset()


@dataclass(slots=True)
class _Unfinished:
    """Changes of a transaction, of which the last message has not been received yet."""

    port: int | None = None
    created: set[TableId] = field(default_factory=set)
    deleted: set[TableId] = field(default_factory=set)
    parts: dict[tuple[TableId, int, str], int] = field(default_factory=dict)
    unnamed: dict[TableId, int] = field(default_factory=dict)
    deletes_others: bool = False
    creates_others: bool = False
    #: Whether tables, chains or rules of others have changed.
    is_foreign: bool = False

    @property
    def concerns_fence(self) -> bool:
        return bool(self.created or self.deleted or self.parts or self.unnamed)


class ChangeReader:
    """Decoder of the kernel's messages about changes to ``tables``, one datagram at a time."""

    def __init__(self, tables: Iterable[TableId]) -> None:
        self._tables = {
            (nfnetlink.FAMILIES[table_id.family], table_id.name.encode() + b"\0"): table_id
            for table_id in tables
        }
        self._unfinished = _Unfinished()
        #: Last 16 bits of the number of the latest ruleset.
        self.number = 0
        #: Transactions that changed tables, chains or rules of other tables: the latest one of each
        #: sender, of the first few senders.
        self._foreign: dict[tuple[int | None, str | None], Transaction] = {}

    def take_foreign(self) -> tuple[Transaction, ...]:
        """Return transactions on the structure of other tables, each only once.

        The result has the latest one of each sender, of the first few senders.
        """
        found = tuple(self._foreign.values())
        self._foreign.clear()
        return found

    def read(self, datagram: memoryview) -> Iterator[Transaction]:
        """Decode a datagram; yield each transaction that changed the fence's tables.

        A transaction is yielded when its last message arrives. If the kernel dropped this message,
        the received part of the transaction is yielded when the next transaction begins.
        """
        for message in netlink.messages_with_headers(datagram):
            kind = message.kind - nfnetlink.SUBSYSTEM
            if len(message.payload) < _HEADER.size:
                continue
            family, _, number = _HEADER.unpack_from(message.payload)
            attributes = netlink.attributes(message.payload[_HEADER.size :])
            if kind == _NEWGEN:
                yield from self._finish(dict(attributes), message.port)
                continue
            if number != self.number:
                # Another transaction: the last message of the previous one is missing.
                yield from self.take_unfinished()
                self.number = number
            if kind in {_NEWTABLE, _DELTABLE} or kind in _PARTS:
                self._unfinished.port = message.port
                self._add(kind, family, dict(attributes))

    def take_unfinished(self) -> Iterator[Transaction]:
        """Yield the received part of an incomplete transaction on the tables, if there is one.

        Call this method if the rest of the transaction will not arrive any more. The part is
        yielded only once.
        """
        found, self._unfinished = self._unfinished, _Unfinished()
        if found.is_foreign:
            self._add_foreign(Transaction(port=found.port, changes=""))
        if found.concerns_fence:
            yield Transaction(
                port=found.port, changes=_describe(found), created=frozenset(found.created)
            )

    @property
    def is_incomplete(self) -> bool:
        """Return True if the last message of a transaction on the tables is still missing."""
        return self._unfinished.concerns_fence

    @property
    def awaits_end(self) -> bool:
        """Do the same as :attr:`is_incomplete`, also for structural changes of other tables."""
        return self._unfinished.concerns_fence or self._unfinished.is_foreign

    def _add_foreign(self, transaction: Transaction) -> None:
        sender = transaction.pid, transaction.comm
        if sender in self._foreign or len(self._foreign) < _MAX_CHANGES:
            self._foreign[sender] = transaction

    def _add(self, kind: int, family: int, attributes: dict[int, memoryview]) -> None:
        table_id = self._tables.get((family, bytes(attributes.get(_TABLE_NAME, b""))))
        found = self._unfinished
        if table_id is None:
            found.deletes_others |= kind == _DELTABLE
            found.creates_others |= kind == _NEWTABLE
            found.is_foreign |= kind in _STRUCTURE
        elif kind == _NEWTABLE:
            found.created.add(table_id)
        elif kind == _DELTABLE:
            found.deleted.add(table_id)
        else:
            name = names.text(attributes.get(_PARTS[kind][2], memoryview(b"")))
            key = table_id, kind, names.shown(name)
            if key in found.parts or len(found.parts) < _MAX_CHANGES:
                found.parts[key] = found.parts.get(key, 0) + 1
            else:
                found.unnamed[table_id] = found.unnamed.get(table_id, 0) + 1

    def _finish(self, attributes: dict[int, memoryview], port: int) -> Iterator[Transaction]:
        generation = _number(attributes.get(_GEN_ID))
        is_known = generation is not None and generation & 0xFFFF == self.number
        comm = attributes.get(_GEN_PROC_NAME)
        if self._unfinished.is_foreign:
            pid = _number(attributes.get(_GEN_PROC_PID)) if is_known else None
            sender = _name(comm) if is_known and comm is not None else None
            self._add_foreign(Transaction(port=port, pid=pid, comm=sender, changes=""))
            self._unfinished.is_foreign = False
        for found in self.take_unfinished():
            yield (
                found
                if not is_known
                else replace(
                    found,
                    generation=generation,
                    port=port,
                    pid=_number(attributes.get(_GEN_PROC_PID)),
                    comm=None if comm is None else _name(comm),
                )
            )


def _number(value: memoryview | None) -> int | None:
    return None if value is None or len(value) != 4 else int.from_bytes(value, "big")


def _name(value: memoryview) -> str:
    name = bytes(value).split(b"\0", 1)[0].decode("utf-8", "replace")
    return name if len(name) <= _NAME_CHARACTERS else f"{name[: _NAME_CHARACTERS - 1]}…"


def _describe(found: _Unfinished) -> str:
    deleted = found.deleted - found.created
    clauses = []
    if deleted and found.deletes_others and not found.creates_others and not found.created:
        clauses.append("the whole ruleset was flushed")
    else:
        clauses += _describe_tables(deleted, "deleted")
    clauses += _describe_tables(found.deleted & found.created, "deleted and created again")
    clauses += _describe_tables(found.created - found.deleted, "created or changed")
    for (table_id, kind, name), times in found.parts.items():
        if table_id in found.deleted:  # its contents were deleted with it
            continue
        noun, what, _ = _PARTS[kind]
        if kind in _NAMED:
            clause = f"{noun} {name} was {what} in"
        elif times == 1:
            clause = f"{'an' if noun == 'element' else 'a'} {noun} was {what} {name} of"
        else:
            clause = f"{times} {noun}s were {what} {name} of"
        clauses.append(f"{clause} table {table_id.family} {table_id.name}")
    more = sum(times for table_id, times in found.unnamed.items() if table_id not in found.deleted)
    if more:
        clauses.append(f"{more} more change{' was' if more == 1 else 's were'} made")
    return "; ".join(clauses)


def _describe_tables(tables: set[TableId], what: str) -> list[str]:
    return [f"table {table_id.family} {table_id.name} was {what}" for table_id in sorted(tables)]
