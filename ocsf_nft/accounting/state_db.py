"""State database of one sandbox: a SQLite file that remains when the service stops.

One transaction stores packet counts, and the events that report the packets. All functions block;
call them from one thread at a time.
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

#: A version of the program with another format uses another file name.
FILE: Final = "accounts-2.sqlite3"

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS rule (name TEXT PRIMARY KEY, epoch TEXT, state TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counted (
    rule TEXT, kind TEXT, data BLOB, since_ns INTEGER, last_ns INTEGER,
    seen_packets INTEGER, seen_bytes INTEGER, unreported_packets INTEGER,
    unreported_bytes INTEGER,
    PRIMARY KEY (rule, kind, data)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS opened (identity TEXT PRIMARY KEY, rule TEXT, epoch TEXT, state TEXT);
CREATE TABLE IF NOT EXISTS outbox (id INTEGER PRIMARY KEY, event BLOB);
CREATE TABLE IF NOT EXISTS cursor (source TEXT PRIMARY KEY, position TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dropped (source TEXT PRIMARY KEY, gaps INTEGER, records INTEGER)
    WITHOUT ROWID;
"""

#: Errors of a file whose pages are damaged, or whose rows are no valid account.
_DAMAGE: Final = (
    sqlite3.DatabaseError, KeyError, TypeError, ValueError, AttributeError, RecursionError,
    struct.error,
)  # fmt: skip

#: Counters processed before other tasks get a turn.
_SLICE: Final = 1000
#: The same for open incidents, which are larger.
_FEW: Final = 100

_Row = tuple[str, str, bytes, int, int, int, int, int, int]


class DroppedRecords(NamedTuple):
    """Number of gaps in one source of log records, and number of missing log records.

    ``records`` is a lower bound, because some sources can't count their missing log records.
    """

    source: str
    gaps: int
    records: int


class Changes:
    """Changes of a sandbox's packet counts since the last commit, as rows of the state database."""

    def __init__(self) -> None:
        self.rules: list[tuple[str, str, str]] = []
        self.counters: list[_Row] = []
        self.removed: list[tuple[str, str, bytes]] = []
        self.renewed_rules: list[tuple[str]] = []
        self.opened: list[tuple[str, str, str, str]] = []
        self.closed: list[tuple[str]] = []

    def collect(self, account: SandboxAccount) -> Iterator[None]:
        """Collect all changes of ``account`` since the last commit, in steps.

        The iterator yields after each step, so that the caller can let other tasks run. Until the
        iterator ends, other tasks must not use ``account``.
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
    """SQLite file with all values of one sandbox that the service needs after a restart.

    The values are packet counts, open incidents, the last commit's events, and the read position in
    the log source.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Not synced to the disk: the kernel's counters don't survive a reboot either.
        self._file = Database(path, _SCHEMA)
        self._is_read_only = False

    def open(self, *, read_only: bool = False) -> Self:
        """Open the SQLite file; raises the same errors as :meth:`Database.open`."""
        self._is_read_only = read_only
        self._file.open(read_only=read_only)
        return self

    def close(self) -> None:
        """Close the database file."""
        self._file.close()

    def remove(self) -> None:
        """Close the database file and delete it."""
        self._file.remove()

    def fault(self) -> str | None:
        """Return a message if a damaged database file was quarantined (renamed), else None.

        Each message is returned only once.
        """
        fault, self._file.fault = self._file.fault, None
        return fault

    def load(self, account: SandboxAccount) -> None:
        """Restore the packet counts and open incidents of ``account`` from the file.

        A damaged file is renamed, and ``account`` stays empty. Raises DeliveryError if the file
        can't be read or renamed. If the file was opened read-only, only the packet counts are
        restored. Then each failure, including damage of the file, raises SourceError.
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
            # A read-only user reports nothing, so it needs no open incidents.
            if not self._is_read_only:
                for columns in connection.execute("SELECT * FROM opened"):
                    _reopen(account, *columns)

    def position(self, source: str) -> str | None:
        """Return the stored read position of a log source; None if no position is stored."""
        with self._file.transaction() as connection:
            row = connection.execute(
                "SELECT position FROM cursor WHERE source = ?", (source,)
            ).fetchone()
        return None if row is None else str(row[0])

    def commit(
        self, changed: Changes, events: Sequence[bytes], position: tuple[str, str] | None = None
    ) -> None:
        """Store changed counts, and the events that report these changes, in one transaction.

        The previous commit's events are deleted: the caller must have delivered them. ``position``
        is a pair: the name of a log source, and its new read position.
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
            # If the service is killed before it delivers these events, it delivers them after its
            # next start. A receiver can recognize a repeated event by its uid.
            connection.executemany(
                "INSERT INTO outbox (event) VALUES (?)", [(event,) for event in events]
            )
            if position is not None:
                # Only one source has a position: records that another source would read again are
                # reported already.
                connection.execute("DELETE FROM cursor")
                connection.execute("INSERT INTO cursor VALUES (?, ?)", position)

    def undelivered(self) -> tuple[bytes, ...]:
        """Return the events of the last commit, which are possibly not delivered yet."""
        with self._file.transaction() as connection:
            return tuple(event for (event,) in connection.execute("SELECT event FROM outbox"))

    def add_dropped(self, source: str, records: int) -> None:
        """Count one more gap of ``source``, in which ``records`` log records are missing."""
        with self._file.transaction() as connection:
            connection.execute(
                "INSERT INTO dropped VALUES (?, 1, ?) ON CONFLICT DO UPDATE SET "
                "gaps = gaps + 1, records = records + excluded.records",
                (source, records),
            )

    def dropped_records(self) -> tuple[DroppedRecords, ...]:
        """Return the numbers of gaps and missing log records of each source.

        The numbers begin at 0 when the file is created.
        """
        with self._file.transaction() as connection:
            rows = connection.execute("SELECT * FROM dropped")
            return tuple(DroppedRecords(*row) for row in rows)


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
    """Return ``numbers`` as a tuple; raise TypeError if one of them is not an integer."""
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
        "in_sets": rule_account.in_sets,
        "reported": rule_account.reported,
        "without_flow": rule_account.without_flow,
        "received": rule_account.received,
        "read_ns": rule_account.read_ns,
        "late_records_until_ns": rule_account.late_records_until_ns,
        "overflow": _columns(rule_account.overflow.counter),
        "evicted": _columns(rule_account.evicted.counter),
        "by_user": [
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
    rule_account.in_sets = Count(*_whole(state["in_sets"]))
    totals = (state["reported"], state["without_flow"], state["received"])
    rule_account.reported, rule_account.without_flow, rule_account.received = _whole(totals)
    (rule_account.late_records_until_ns,) = _whole([state["late_records_until_ns"]])
    rule_account.overflow = FlowAggregate(_counter(state["overflow"]))
    rule_account.evicted = FlowAggregate(_counter(state["evicted"]))
    for uid, flows, columns in state["by_user"]:
        rule_account.by_user[uid] = FlowAggregate(_counter(columns))
        (rule_account.by_user[uid].flows,) = _whole([flows])
    rule_account.stored = _state(rule_account)
    return rule_account


def _reopen(account: SandboxAccount, identity: str, name: str, epoch: str, state: str) -> None:
    counter_id = CounterId.named(account.sandbox, name, epoch)
    found = incident_codec.decode(counter_id, state)
    if found.identity != identity:
        raise ValueError("stored under another identity")
    rule_account = account.rules[name]
    if rule_account.epoch != epoch:
        # The rule's counters have been created again since then: the incident or scan ends.
        account.opened.orphan(found)
    else:
        rule_account.resume(found)
