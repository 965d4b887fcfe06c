"""SQLite database of the event store.

The database has the events. For each sink, it has the number of the last acknowledged event, and
the dead letters (refused events). For each source of log records, it has the position at which to
resume reading.

All functions block, and raise DeliveryError if the disk can't be written. Only one thread at a time
may call them.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from ocsf_nft.database import Database
from ocsf_nft.delivery.retention import DroppedEvents, Retention

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from pathlib import Path

#: A version of the program with another schema gives its file another name.
FILE: Final = "events-2.sqlite3"

#: ``acknowledged`` is a sink's checkpoint: the number of the last event that it has acknowledged.
#: ``dead`` has the dead letters: events that a sink has refused. ``cursor`` has the read positions:
#: where to resume reading a source of log records.
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS event (
    number INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL UNIQUE, stored_ms INTEGER NOT NULL,
    line BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS sink (
    name TEXT PRIMARY KEY, acknowledged INTEGER NOT NULL, sending INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dead (
    id INTEGER PRIMARY KEY, sink TEXT NOT NULL, uid TEXT NOT NULL, since_ms INTEGER NOT NULL,
    reason TEXT NOT NULL, is_again INTEGER NOT NULL DEFAULT 0, line BLOB NOT NULL,
    UNIQUE (sink, uid)
);
CREATE INDEX IF NOT EXISTS dead_again ON dead (sink, id) WHERE is_again;
CREATE INDEX IF NOT EXISTS dead_since ON dead (since_ms);
CREATE TABLE IF NOT EXISTS dropped (sink TEXT PRIMARY KEY, events INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cursor (source TEXT PRIMARY KEY, position TEXT NOT NULL) WITHOUT ROWID;
"""

#: Start of the metadata in our events' JSON.
_METADATA: Final = b'"metadata":{'
_UID: Final = re.compile(rb'"metadata":\{"version":"[^"\\]*","uid":"([^"\\]+)"')


class StoredEvent(NamedTuple):
    """Event in the store: number in storage order, unique identifier ``uid``, and JSON ``line``."""

    number: int
    uid: str
    line: bytes


class DeadLetter(NamedTuple):
    """Dead letter: an event that a sink has refused, with the reason."""

    id: int
    sink: str
    uid: str
    #: Time of the first refusal, in ms since the epoch.
    since_ms: int
    reason: str
    #: True from the request for a retry until the retry is finished.
    is_again: bool
    #: JSON of the event.
    line: bytes


class RefusedEvent(NamedTuple):
    """Event that a sink has refused, to be stored as a dead letter; ``line`` is its JSON."""

    uid: str
    line: bytes
    reason: str


class EventDatabase:
    """SQLite database file with stored events; it uses at most ``max_bytes`` on the disk.

    To make room, events that all sinks have acknowledged are removed first, then dead letters.
    Events that a sink has not acknowledged are removed only if ``drops`` is true. :meth:`sweep`
    removes any event older than ``max_seconds``.
    """

    def __init__(self, path: Path, *, max_bytes: int, max_seconds: float, drops: bool) -> None:
        self.path = path
        #: Number of the last event; 0 if there never was one.
        self.end = 0
        self._database = Database(path, _SCHEMA, synchronous="FULL", is_exclusive=True)
        self._retention = Retention(
            self._database, max_bytes=max_bytes, max_ms=int(max_seconds * 1000), drops=drops
        )
        # Times advance by the monotonic clock from here on: a clock jump makes no event too old.
        self._opened_ms = time.time_ns() // 1_000_000
        self._opened_ns = time.monotonic_ns()

    @property
    def used_bytes(self) -> int:
        """Return the used size of the database in bytes, as of the last transaction."""
        return self._retention.used_bytes

    @property
    def max_bytes(self) -> int:
        """Return the largest permitted size of the database, in bytes."""
        return self._retention.max_bytes

    def fault(self) -> str | None:
        """Return a message if a damaged database file was quarantined (renamed), else None.

        Each message is returned only once.
        """
        fault, self._database.fault = self._database.fault, None
        return fault

    def open(self) -> None:
        """Open the database file, or create a missing file; raises DeliveryError if this fails."""
        self._database.open()
        with self._database.transaction() as connection:
            self._retention.measure(connection)
            # From SQLite's counter, since the last events may have been removed.
            row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'")
            (self.end,) = row.fetchone() or (0,)
            # A clock that was set back must not give new events an earlier time than stored ones.
            newest = connection.execute("SELECT stored_ms FROM event ORDER BY number DESC LIMIT 1")
            (newest_ms,) = newest.fetchone() or (self._opened_ms,)
            self._opened_ms = max(self._opened_ms, newest_ms)

    def close(self) -> None:
        """Close the database file."""
        self._database.close()

    def register(self, names: frozenset[str]) -> tuple[DroppedEvents, ...]:
        """Add the sinks ``names``; delete the checkpoint (delivery progress) of any other sink.

        A new sink gets only events that are stored later. For each deleted sink with undelivered
        events, returns the sink's name and the number of these events.
        """
        undelivered: list[DroppedEvents] = []
        with self._database.transaction() as connection:
            for name, acknowledged in connection.execute(
                "SELECT name, acknowledged FROM sink"
            ).fetchall():
                if name not in names:
                    missing = _count_after(connection, acknowledged)
                    if missing:
                        undelivered.append(DroppedEvents(name, missing))
                    connection.execute("DELETE FROM sink WHERE name = ?", (name,))
            connection.executemany(
                "INSERT OR IGNORE INTO sink VALUES (?, ?, NULL)",
                [(name, self.end) for name in sorted(names)],
            )
        return tuple(undelivered)

    def put(self, lines: Sequence[bytes], positions: Sequence[tuple[str, str]]) -> None:
        """Store events and read positions in one transaction; ``lines`` has the events' JSON.

        ``positions`` has pairs: a log source's name, and the position up to which the source was
        read. Raises FullError if there is no room, DeliveryError for other failures.
        """
        self._retention.make_room()
        # A power cut may undo a position without events: its records are then read again.
        begin = self._database.transaction if lines else self._database.unsynced_transaction
        with begin() as connection:
            stored_ms = self._now_ms()
            connection.executemany(
                "INSERT OR IGNORE INTO event (uid, stored_ms, line) VALUES (?, ?, ?)",
                [(_uid(line), stored_ms, line) for line in lines],
            )
            connection.executemany("REPLACE INTO cursor VALUES (?, ?)", positions)
            (end,) = connection.execute("SELECT MAX(number) FROM event").fetchone()
            self._retention.measure(connection)
        self.end = max(self.end, end or 0)

    def _now_ms(self) -> int:
        return self._opened_ms + (time.monotonic_ns() - self._opened_ns) // 1_000_000

    def sweep(self) -> bool:
        """Remove some of the events and dead letters that are older than ``max_seconds``.

        Return True if another call may remove more.
        """
        return self._retention.sweep(self._now_ms())

    def dropped_events(self) -> tuple[DroppedEvents, ...]:
        """Return, for each sink, the number of events that were removed without delivery to it.

        Removed dead letters are counted too. Events that were passed to :meth:`confirm_reported`
        are not counted.
        """
        return self._retention.dropped_events()

    def confirm_reported(self, dropped: Sequence[DroppedEvents]) -> None:
        """Mark dropped events as reported: :meth:`dropped_events` no longer counts them.

        ``dropped`` is an earlier result of :meth:`dropped_events`.
        """
        self._retention.confirm_reported(dropped)

    def read(self, beyond: int, until: int, events: int, size: int) -> list[StoredEvent]:
        """Return stored events with numbers above ``beyond`` and up to ``until``, in order.

        Return at most ``events`` events, and at most ``size`` bytes of JSON. But the first event is
        returned even if its JSON has more than ``size`` bytes.
        """
        found: list[StoredEvent] = []
        with self._database.transaction() as connection:
            for row in connection.execute(
                "SELECT number, uid, line FROM event WHERE number > ? AND number <= ? "
                "ORDER BY number LIMIT ?",
                (beyond, until, events),
            ):
                stored = StoredEvent(*row)
                size -= len(stored.line)
                if found and size < 0:
                    break
                found.append(stored)
        return found

    def checkpoint(self, sink: str) -> tuple[int, int | None]:
        """Return the checkpoint of a sink, and the number of the last event in its pending batch.

        The checkpoint is the number of the last acknowledged event. A batch is pending from
        :meth:`begin_batch` to :meth:`acknowledge`. Without a pending batch, the second number is
        None.
        """
        with self._database.transaction() as connection:
            acknowledged, sending = connection.execute(
                "SELECT acknowledged, sending FROM sink WHERE name = ?", (sink,)
            ).fetchone()
        return acknowledged, sending

    def begin_batch(self, sink: str, until: int) -> None:
        """Store the last event number (``until``) of a batch, before the batch is sent.

        After a crash, a batch with exactly the same events can then be sent again.
        """
        self._execute_unsynced("UPDATE sink SET sending = ? WHERE name = ?", (until, sink))

    def _execute_unsynced(self, statement: str, values: tuple[object, ...]) -> None:
        # A power cut may undo the statement. Then some events are sent again.
        with self._database.unsynced_transaction() as connection:
            connection.execute(statement, values)

    def acknowledge(self, sink: str, until: int, refused: Sequence[RefusedEvent]) -> None:
        """Store that a sink has accepted or refused all events up to number ``until`` (included).

        The ``refused`` events become dead letters of the sink.
        """
        statement = "UPDATE sink SET acknowledged = ?, sending = NULL WHERE name = ?"
        if not refused:
            self._execute_unsynced(statement, (until, sink))
            return
        with self._database.transaction() as connection:
            connection.execute(statement, (until, sink))
            now_ms = self._now_ms()
            connection.executemany(
                "REPLACE INTO dead (sink, uid, since_ms, reason, line) VALUES (?, ?, ?, ?, ?)",
                [(sink, each.uid, now_ms, each.reason, each.line) for each in refused],
            )

    def dead_letters_to_retry(self, sink: str, events: int) -> list[DeadLetter]:
        """Return a sink's dead letters for which a user requested a retry, oldest first.

        ``events`` is the maximum number of dead letters to return.
        """
        with self._database.transaction() as connection:
            rows = connection.execute(
                "SELECT * FROM dead WHERE sink = ? AND is_again ORDER BY id LIMIT ?",
                (sink, events),
            )
            return [DeadLetter(*row) for row in rows]

    def count_dead_letters(self, sink: str) -> int:
        """Return the number of dead letters of a sink."""
        with self._database.transaction() as connection:
            (number,) = connection.execute(
                "SELECT COUNT(*) FROM dead WHERE sink = ?", (sink,)
            ).fetchone()
        return int(number)

    def finish_retries(
        self, delivered: Sequence[DeadLetter], refused: Sequence[tuple[DeadLetter, str]]
    ) -> None:
        """Delete the ``delivered`` dead letters; store why the others were refused again.

        ``refused`` has pairs: a dead letter that was refused again, and the new reason. A dead
        letter that no longer exists is ignored.
        """
        with self._database.transaction() as connection:
            connection.executemany(
                "DELETE FROM dead WHERE sink = ? AND uid = ?",
                [(each.sink, each.uid) for each in delivered],
            )
            connection.executemany(
                "UPDATE dead SET is_again = 0, reason = ? WHERE sink = ? AND uid = ?",
                [(reason, each.sink, each.uid) for each, reason in refused],
            )

    def position(self, source: str) -> str | None:
        """Return the stored read position of a source of log records; None if none is stored."""
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT position FROM cursor WHERE source = ?", (source,)
            ).fetchone()
        if row is None:
            return None
        (position,) = row
        return str(position)

    def remove(self) -> bool:
        """Delete the database file, unless a sink needs an event or there is a dead letter.

        Return True if the file was deleted.
        """
        if self._retention.is_needed():
            return False
        self._database.remove()
        return True


def _uid(line: bytes) -> str:
    # No match inside a text value: each quotation mark there has a backslash before it.
    found = _UID.match(line, line.rfind(_METADATA))
    if found is None:  # the line is not one of our own templates
        return str(orjson.loads(line)["metadata"]["uid"])
    return found[1].decode()


def _count_after(connection: sqlite3.Connection, number: int) -> int:
    (count,) = connection.execute(
        "SELECT COUNT(*) FROM event WHERE number > ?", (number,)
    ).fetchone()
    return int(count)
