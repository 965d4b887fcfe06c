"""SQLite database with the state of the service: events, packet counts and read positions.

All functions block, and raise DeliveryError if the disk can't be written. Only one thread at a time
may call them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from ocsf_nft.state import dropped_events
from ocsf_nft.state.change import (
    Account,
    AccountChange,
    Change,
    DroppedRecords,
    PartKey,
    Position,
)
from ocsf_nft.state.dropped_events import DroppingDatabase
from ocsf_nft.state.retention import LAST, Retention, StorageClock

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence
    from pathlib import Path


#: A version of the program with another schema gives its file another name.
FILE: Final = "state-1.sqlite3"

#: ``open_finding`` has the findings about the protection of sandboxes that have no last event yet.
#: ``iterated`` has the number of the last event that a program iterating over the service has
#: taken. ``cursor`` has the read positions: where to resume reading a source of log records. The
#: sandbox 0 is for records of other firewalls.
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS event (
    number INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL UNIQUE, stored_ms INTEGER NOT NULL,
    line BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS sandbox (name TEXT PRIMARY KEY, id INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS part (
    sandbox INTEGER, rule TEXT, kind TEXT, data BLOB, value BLOB,
    PRIMARY KEY (sandbox, rule, kind, data)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dropped_record (
    sandbox INTEGER, source TEXT, gaps INTEGER, records INTEGER, PRIMARY KEY (sandbox, source)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cursor (sandbox INTEGER PRIMARY KEY, source TEXT, position TEXT);
CREATE TABLE IF NOT EXISTS open_finding (uid TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS iterated (id INTEGER PRIMARY KEY CHECK (id = 1), number INTEGER);
CREATE TABLE IF NOT EXISTS identity (id TEXT);
INSERT INTO identity SELECT HEX(RANDOMBLOB(16)) WHERE NOT EXISTS (SELECT * FROM identity);
"""
#: Tables with the account of a sandbox.
_OF_ACCOUNT: Final = ("part", "dropped_record", "cursor")
#: Pages of 4 KiB in SQLite's log after which a commit copies them into the database file. Normally
#: a thread does that earlier.
_LOG_PAGES: Final = 4000

#: Start of the metadata in our events' JSON.
_METADATA: Final = b'"metadata":{'
_UID: Final = re.compile(rb'"metadata":\{"version":"[^"\\]*","uid":"([^"\\]+)"')


class StoredEvent(NamedTuple):
    """Stored event: number in the order of storage, unique identifier ``uid``, JSON ``line``."""

    number: int
    uid: str
    #: Time of the storage, in ms since the epoch.
    stored_ms: int
    line: bytes


class StateDatabase(DroppingDatabase):
    """SQLite file with the state of a service; its events use at most ``max_bytes``.

    Delivered events are removed to make room; undelivered events only if ``drops`` is true.
    :meth:`sweep` removes any event older than ``max_seconds``.
    """

    def __init__(self, path: Path, *, max_bytes: int, max_seconds: float, drops: bool) -> None:
        super().__init__(
            path,
            _SCHEMA + dropped_events.SCHEMA,
            synchronous="FULL",
            is_exclusive=True,
            log_pages=_LOG_PAGES,
        )
        #: Number of the last event; 0 if there never was one.
        self.end = 0
        #: Random text that no other state database has.
        self.identity = ""
        self.retention = Retention(
            self, max_bytes=max_bytes, max_ms=int(max_seconds * 1000), drops=drops
        )
        self._sandboxes: dict[str, int] = {}
        self._clock = StorageClock()

    def open(self, *, read_only: bool = False) -> None:
        """Open the database file, and read what is stored; see :meth:`Database.open`."""
        super().open(read_only=read_only)
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        with self.transaction() as connection:
            (self.identity,) = connection.execute("SELECT id FROM identity").fetchone()
            self._sandboxes = dict(connection.execute("SELECT name, id FROM sandbox").fetchall())
            self.retention.measure(connection)
            # From SQLite's counter, since the last events may have been removed.
            row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'")
            (self.end,) = row.fetchone() or (0,)
            newest = connection.execute("SELECT stored_ms FROM event ORDER BY number DESC LIMIT 1")
            self._clock = StorageClock(*newest.fetchone() or (0,))

    def commit(self, changes: Sequence[Change]) -> int:
        """Store all ``changes`` in one transaction; return how many events are new.

        Call :meth:`Retention.make_room` before. An event with the ``metadata.uid`` of a stored
        event is ignored. The events are synced to the disk. A change without events may be undone
        by a power cut, like the kernel's counters. Raises DeliveryError if the disk can't be
        written.
        """
        lines = [line for each in changes for line in each.events]
        with self.transaction("FULL" if lines else "NORMAL") as connection:
            stored = _insert_events(connection, lines, self._clock.now_ms())
            # Ids of new sandboxes are used only if the transaction succeeds.
            sandboxes = dict(self._sandboxes)
            for each in changes:
                _write_change(connection, sandboxes, each)
            self.retention.measure_free(connection)
        self._sandboxes = sandboxes
        self.end = max(self.end, *stored) if stored else self.end
        self.retention.add(stored.values())
        return len(stored)

    def read(self, beyond: int, *, events: int, size: int) -> list[StoredEvent]:
        """Return events with numbers above ``beyond``, see :func:`read_events`."""
        with self.transaction() as connection:
            return read_events(connection, beyond, events=events, size=size)

    def begin_iteration(self) -> int:
        """Return the number of the last event that an iterating program has taken.

        The first iteration begins with the next new event.
        """
        with self.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO iterated VALUES (1, ?)", (self.end,))
            (number,) = connection.execute("SELECT number FROM iterated").fetchone()
        return int(number)

    def set_iterated(self, number: int) -> None:
        """Store the number of the last event that an iterating program has taken.

        It is not synced to the disk: after a power cut, some events are repeated.
        """
        with self.transaction("NORMAL") as connection:
            connection.execute("REPLACE INTO iterated VALUES (1, ?)", (number,))

    def has_account(self, sandbox: str) -> bool:
        """Return True if anything about a sandbox is stored, apart from its events."""
        return sandbox in self._sandboxes

    def account(self, sandbox: str) -> Account:
        """Return the stored account of a sandbox; empty if none is stored."""
        with self.transaction() as connection:
            return read_account(connection, sandbox)

    def replace_account(self, sandbox: str, account: Account) -> None:
        """Replace the account of a sandbox."""
        sandboxes = dict(self._sandboxes)
        change = Change(
            account=AccountChange(sandbox, parts=dict(account.parts)),
            position=account.position,
            dropped=[(sandbox, each) for each in account.dropped],
        )
        with self.transaction("FULL") as connection:
            _delete(connection, _id(connection, sandboxes, sandbox), _OF_ACCOUNT)
            _write_change(connection, sandboxes, change)
        self._sandboxes = sandboxes

    def remove_account(self, sandbox: str) -> None:
        """Delete a sandbox's account and numbers of dropped records; its events stay stored."""
        with self.transaction("FULL") as connection:
            if sandbox in self._sandboxes:
                number = self._sandboxes[sandbox]
                _delete(connection, number, _OF_ACCOUNT)
                connection.execute("DELETE FROM sandbox WHERE id = ?", (number,))
        self._sandboxes.pop(sandbox, None)

    def dropped_records(self, sandbox: str) -> tuple[DroppedRecords, ...]:
        """Return the numbers of gaps and missing log records of each source of a sandbox."""
        with self.transaction() as connection:
            return read_dropped_records(connection, sandbox)

    def open_findings(self) -> dict[str, bytes]:
        """Return the open findings about the protection of sandboxes, by their uids."""
        with self.transaction() as connection:
            return dict(connection.execute("SELECT uid, value FROM open_finding").fetchall())

    def host_position(self, source: str) -> str | None:
        """Return the stored read position of other firewalls' records in ``source``, or None."""
        with self.transaction() as connection:
            row = connection.execute(
                "SELECT position FROM cursor WHERE sandbox = 0 AND source = ?", (source,)
            ).fetchone()
        return None if row is None else str(row[0])

    def sweep(self) -> bool:
        """Remove some of the events that are older than ``max_seconds``.

        Return True if another call may remove more.
        """
        return self.retention.sweep(self._clock.now_ms())


def read_events(
    connection: sqlite3.Connection,
    beyond: int,
    until: int = LAST,
    *,
    events: int = LAST,
    size: int = LAST,
) -> list[StoredEvent]:
    """Read events with numbers above ``beyond``, up to and including ``until``, in order.

    Returns at most ``events`` events with at most ``size`` bytes of JSON. The first event is
    returned even if it is larger.
    """
    found: list[StoredEvent] = []
    for row in connection.execute(
        "SELECT number, uid, stored_ms, line FROM event WHERE number > ? AND number <= ? "
        "ORDER BY number LIMIT ?",
        (beyond, until, events),
    ):
        stored = StoredEvent(*row)
        size -= len(stored.line)
        if found and size < 0:
            break
        found.append(stored)
    return found


def read_account(connection: sqlite3.Connection, sandbox: str) -> Account:
    """Read the stored account of a sandbox from an open transaction; empty if none is stored."""
    row = connection.execute("SELECT id FROM sandbox WHERE name = ?", (sandbox,)).fetchone()
    if row is None:
        return Account()
    position = connection.execute(
        "SELECT source, position FROM cursor WHERE sandbox = ?", row
    ).fetchone()
    return Account(
        parts={
            PartKey(*key): value
            for *key, value in connection.execute(
                "SELECT rule, kind, data, value FROM part WHERE sandbox = ?", row
            )
        },
        position=None if position is None else Position(sandbox, *position),
        dropped=read_dropped_records(connection, sandbox),
    )


def read_dropped_records(
    connection: sqlite3.Connection, sandbox: str
) -> tuple[DroppedRecords, ...]:
    """Read the numbers of a sandbox's dropped log records from an open transaction."""
    rows = connection.execute(
        "SELECT source, gaps, records FROM dropped_record "
        "WHERE sandbox = (SELECT id FROM sandbox WHERE name = ?)",
        (sandbox,),
    )
    return tuple(DroppedRecords(*row) for row in rows)


def _insert_events(
    connection: sqlite3.Connection, lines: Iterable[bytes], stored_ms: int
) -> dict[int, bytes]:
    """Insert events; return the numbers and lines of those that are new."""
    stored = {}
    cursor = connection.cursor()
    for line in lines:
        cursor.execute(
            "INSERT OR IGNORE INTO event (uid, stored_ms, line) VALUES (?, ?, ?)",
            (_uid(line), stored_ms, line),
        )
        if cursor.rowcount:
            stored[cursor.lastrowid or 0] = line
    return stored


def _id(connection: sqlite3.Connection, known: dict[str, int], sandbox: str | None) -> int:
    if sandbox is None:
        return 0
    if sandbox not in known:
        known[sandbox] = max(known.values(), default=0) + 1
        connection.execute("INSERT INTO sandbox VALUES (?, ?)", (sandbox, known[sandbox]))
    return known[sandbox]


def _delete(connection: sqlite3.Connection, sandbox: int, tables: Iterable[str]) -> None:
    for table in tables:
        connection.execute(f"DELETE FROM {table} WHERE sandbox = ?", (sandbox,))  # noqa: S608 - ours


def _write_change(
    connection: sqlite3.Connection, sandboxes: dict[str, int], change: Change
) -> None:
    if change.account is not None:
        number = _id(connection, sandboxes, change.account.sandbox)
        _write_account(connection, number, change.account)
    for sandbox, dropped in change.dropped:
        connection.execute(
            "INSERT INTO dropped_record VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "gaps = gaps + excluded.gaps, records = records + excluded.records",
            (_id(connection, sandboxes, sandbox), *dropped),
        )
    if change.position is not None:
        # Records that another source would read again are reported already.
        number = _id(connection, sandboxes, change.position.sandbox)
        connection.execute("REPLACE INTO cursor VALUES (?, ?, ?)", (number, *change.position[1:]))
    dropped_events.subtract(connection, change.reported)
    for uid, value in change.findings.items():
        if value is None:
            connection.execute("DELETE FROM open_finding WHERE uid = ?", (uid,))
        else:
            connection.execute("REPLACE INTO open_finding VALUES (?, ?)", (uid, value))


def _write_account(connection: sqlite3.Connection, sandbox: int, change: AccountChange) -> None:
    connection.executemany(
        "DELETE FROM part WHERE sandbox = ? AND rule = ?",
        [(sandbox, rule) for rule in change.renewed_rules],
    )
    connection.executemany(
        "DELETE FROM part WHERE sandbox = ? AND rule = ? AND kind = ? AND data = ?",
        [(sandbox, *key) for key, value in change.parts.items() if value is None],
    )
    connection.executemany(
        "REPLACE INTO part VALUES (?, ?, ?, ?, ?)",
        [(sandbox, *key, value) for key, value in change.parts.items() if value is not None],
    )


def _uid(line: bytes) -> str:
    # No match inside a text value: each quotation mark there has a backslash before it.
    found = _UID.match(line, line.rfind(_METADATA))
    if found is None:  # the line is not one of our own templates
        return str(orjson.loads(line)["metadata"]["uid"])
    return found[1].decode()
