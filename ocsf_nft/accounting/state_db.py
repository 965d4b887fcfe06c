"""What is kept of an account while nobody runs: SQLite, one file for each sandbox.

Written in one transaction: what has been told, and the events that tell it. So whoever is killed
between the two tells them once more, word for word, when it is started again: nothing is missing,
and what comes twice has the same uid. The kernel's counters don't outlive the machine, so a
transaction need not either: it is written, and not forced to the disk.

Everything here blocks: call it from one thread at a time.
"""

from __future__ import annotations

import json
import sqlite3
import struct
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, cast

from ocsf_nft.accounting import incident_codec
from ocsf_nft.accounting.counter_id import CounterId
from ocsf_nft.accounting.flow_counter import FlowCounter
from ocsf_nft.accounting.flow_report import FlowAggregate
from ocsf_nft.database import Database
from ocsf_nft.flow import Count, Key, flow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ocsf_nft.accounting.rule_accounting import RuleAccount
    from ocsf_nft.accounting.sandbox_accounting import SandboxAccount

#: Another version of the program that keeps its things otherwise gives its file another name.
FILE: Final = "accounts-1.sqlite3"

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS rule (name TEXT PRIMARY KEY, epoch TEXT, state TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counted (
    rule TEXT, kind TEXT, data BLOB, since_ns INTEGER, last_ns INTEGER,
    seen_packets INTEGER, seen_bytes INTEGER, owed_packets INTEGER, owed_bytes INTEGER,
    PRIMARY KEY (rule, kind, data)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS opened (identity TEXT PRIMARY KEY, rule TEXT, epoch TEXT, state TEXT);
CREATE TABLE IF NOT EXISTS outbox (id INTEGER PRIMARY KEY, event BLOB);
CREATE TABLE IF NOT EXISTS cursor (source TEXT PRIMARY KEY, position TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lost (source TEXT PRIMARY KEY, gaps INTEGER, records INTEGER)
    WITHOUT ROWID;
"""

#: What a file raises whose pages are broken, or whose rows are not those of an account.
_DAMAGE: Final = (
    sqlite3.DatabaseError, KeyError, TypeError, ValueError, AttributeError, RecursionError,
    struct.error,
)  # fmt: skip

#: Counters taken down before other tasks get a turn.
_SLICE: Final = 1000
#: The same for what is open, of which there is more to write.
_FEW: Final = 100

_Row = tuple[str, str, bytes, int, int, int, int, int, int]


class DroppedRecords(NamedTuple):
    """Records that a source could not read: in how many gaps, and how many at least."""

    source: str
    gaps: int
    records: int


class Changes:
    """What has changed in a ledger: rules, counters, what is open, and what of it is no more."""

    def __init__(self) -> None:
        self.rules: list[tuple[str, str, str]] = []
        self.counters: list[_Row] = []
        self.removed: list[tuple[str, str, bytes]] = []
        self.renewed_rules: list[tuple[str]] = []
        self.opened: list[tuple[str, str, str, str]] = []
        self.closed: list[tuple[str]] = []

    def collect(self, account: SandboxAccount) -> Iterator[None]:
        """Take out what has changed since the last time; yields now and then.

        Nothing else may be done with the ledger until it is through.
        """
        for name, rule_account in account.rules.items():
            if rule_account.stored is None:
                self.renewed_rules.append((name,))
            touched = iter(rule_account.touched)
            while some := tuple(islice(touched, _SLICE)):
                for key in some:
                    counter = rule_account.entries[key.kind].get(key.data)
                    if counter is None:
                        self.removed.append((name, *key))
                    else:
                        self.counters.append((name, *key, *_columns(counter)))
                yield
            rule_account.touched.clear()
            state = _state(rule_account)
            if state != rule_account.stored:
                rule_account.stored = state
                self.rules.append((name, rule_account.epoch, json.dumps(state)))
        changed = iter(account.opened.changed.items())
        while some_open := tuple(islice(changed, _FEW)):
            for identity, each in some_open:
                if each is None:
                    self.closed.append((identity,))
                else:
                    self.opened.append(
                        (
                            identity,
                            each.counter_id.name,
                            each.counter_id.epoch,
                            incident_codec.encode(each),
                        )
                    )
            yield
        account.opened.changed.clear()


class StateDatabase:
    """The file of one sandbox."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = Database(path, _SCHEMA)
        self._is_read_only = False

    def open(self, *, read_only: bool = False) -> Self:
        """Open the file; raises as :meth:`Database.open` does."""
        self._is_read_only = read_only
        self._file.open(read_only=read_only)
        return self

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def remove(self) -> None:
        """Close the file and remove it."""
        self._file.remove()

    def fault(self) -> str | None:
        """What was the matter with the file, since this was asked last."""
        fault, self._file.fault = self._file.fault, None
        return fault

    def load(self, account: SandboxAccount) -> None:
        """Take up an account where it was left.

        One that is damaged, or makes no sense, is set aside, and the account begins anew. Raises
        DeliveryError, or SourceError where the file is only to be read.
        """
        try:
            self._load(account)
        except _DAMAGE as error:
            if isinstance(error, sqlite3.OperationalError) or self._is_read_only:
                raise self._file.failure(error) from error
            account.rules.clear()
            account.opened.clear()
            self._file.quarantine(f"{type(error).__name__}: {error}")

    def _load(self, account: SandboxAccount) -> None:
        with self._file.raw_transaction() as connection:
            for name, epoch, state in connection.execute("SELECT * FROM rule"):
                account.rules[name] = _restore_rule_account(account, name, epoch, json.loads(state))
            for name, kind, data, *columns in connection.execute("SELECT * FROM counted"):
                key = Key(kind, data)
                flow(key)
                account.rules[name].restore(key, _counter(columns))
            # Who only reads tells nothing, and may read what an earlier version keeps.
            if not self._is_read_only:
                for columns in connection.execute("SELECT * FROM opened"):
                    _reopen(account, *columns)

    def position(self, source: str) -> str | None:
        """Where a source is to go on, None where another one, or none, was read before."""
        with self._file.transaction() as connection:
            row = connection.execute(
                "SELECT position FROM cursor WHERE source = ?", (source,)
            ).fetchone()
        return None if row is None else str(row[0])

    def commit(
        self, changed: Changes, events: Sequence[bytes], position: tuple[str, str] | None = None
    ) -> None:
        """Keep what has changed and the events that tell it; the events before were delivered.

        ``position`` is that of a source, by its name, behind all records that were taken in.
        """
        with self._file.transaction() as connection:
            connection.executemany("DELETE FROM counted WHERE rule = ?", changed.renewed_rules)
            connection.executemany("REPLACE INTO rule VALUES (?, ?, ?)", changed.rules)
            connection.executemany(
                "REPLACE INTO counted VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", changed.counters
            )
            connection.executemany(
                "DELETE FROM counted WHERE rule = ? AND kind = ? AND data = ?", changed.removed
            )
            connection.executemany("DELETE FROM opened WHERE identity = ?", changed.closed)
            connection.executemany("REPLACE INTO opened VALUES (?, ?, ?, ?)", changed.opened)
            connection.execute("DELETE FROM outbox")
            connection.executemany(
                "INSERT INTO outbox (event) VALUES (?)", [(event,) for event in events]
            )
            if position is not None:
                # One alone: what another one would read again has been told.
                connection.execute("DELETE FROM cursor")
                connection.execute("INSERT INTO cursor VALUES (?, ?)", position)

    def undelivered(self) -> tuple[bytes, ...]:
        """The events that may not have been delivered: the last that were kept."""
        with self._file.transaction() as connection:
            return tuple(event for (event,) in connection.execute("SELECT event FROM outbox"))

    def add_dropped(self, source: str, records: int) -> None:
        """Count a gap of a source, and the records that it lost."""
        with self._file.transaction() as connection:
            connection.execute(
                "INSERT INTO lost VALUES (?, 1, ?) ON CONFLICT DO UPDATE SET "
                "gaps = gaps + 1, records = records + excluded.records",
                (source, records),
            )

    def dropped_records(self) -> tuple[DroppedRecords, ...]:
        """What each source has lost since the account was begun."""
        with self._file.transaction() as connection:
            return tuple(DroppedRecords(*row) for row in connection.execute("SELECT * FROM lost"))


def _columns(counter: FlowCounter) -> tuple[int, int, int, int, int, int]:
    return (
        counter.since_ns,
        counter.last_ns,
        counter.seen_packets,
        counter.seen_bytes,
        counter.unreported_packets,
        counter.unreported_bytes,
    )


def _whole(numbers: Sequence[object]) -> tuple[int, ...]:
    """Numbers as they were kept; raises TypeError when they are not."""
    if not all(type(number) is int for number in numbers):
        raise TypeError("not a whole number")
    return cast("tuple[int, ...]", tuple(numbers))


def _counter(columns: Sequence[int]) -> FlowCounter:
    since_ns, last_ns, seen_packets, seen_bytes, unreported_packets, unreported_bytes = _whole(
        columns
    )
    return FlowCounter(
        since_ns=since_ns,
        last_ns=last_ns,
        seen_packets=seen_packets,
        seen_bytes=seen_bytes,
        unreported_packets=unreported_packets,
        unreported_bytes=unreported_bytes,
    )


def _state(rule_account: RuleAccount) -> dict[str, Any]:
    return {
        "refused": rule_account.refused,
        "placed": rule_account.in_sets,
        "reported": rule_account.reported,
        "overflowed": rule_account.overflowed,
        "received": rule_account.received,
        "read_ns": rule_account.read_ns,
        "named_from_ns": rule_account.late_records_until_ns,
        "overflow": _columns(rule_account.overflow.counter),
        "forgotten": _columns(rule_account.evicted.counter),
        "many": [
            (uid, aggregate.flows, _columns(aggregate.counter))
            for uid, aggregate in rule_account.by_user.items()
            if aggregate.counter.unreported_packets
        ],
    }


def _restore_rule_account(
    account: SandboxAccount, name: str, epoch: str, state: Mapping[str, Any]
) -> RuleAccount:
    rule_account = account.new_rule_account(name, epoch, begun_ns=_whole([state["read_ns"]])[0])
    rule_account.refused = Count(*_whole(state["refused"]))
    rule_account.in_sets = Count(*_whole(state["placed"]))
    totals = (state["reported"], state["overflowed"], state["received"])
    rule_account.reported, rule_account.overflowed, rule_account.received = _whole(totals)
    (rule_account.late_records_until_ns,) = _whole([state["named_from_ns"]])
    rule_account.overflow = FlowAggregate(_counter(state["overflow"]))
    rule_account.evicted = FlowAggregate(_counter(state["forgotten"]))
    for uid, flows, columns in state["many"]:
        rule_account.by_user[uid] = FlowAggregate(_counter(columns))
        (rule_account.by_user[uid].flows,) = _whole([flows])
    rule_account.stored = _state(rule_account)
    return rule_account


def _reopen(account: SandboxAccount, identity: str, name: str, epoch: str, state: str) -> None:
    """Go on with what was open, if its counters are still those of its rule."""
    counter_id = CounterId.named(account.sandbox, name, epoch)
    found = incident_codec.decode(counter_id, state)
    if found.identity != identity:
        raise ValueError("kept under the name of another")
    rule_account = account.rules[name]
    if rule_account.epoch != epoch:
        account.opened.orphan(found)
    else:
        rule_account.resume(found)
