"""The shelf that a store puts its events on: one file of SQLite.

Everything here blocks, and raises DeliveryError where the disk won't have it: call it from one
thread at a time.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from ocsf_nft.database import Database
from ocsf_nft.delivery.retention import Forgotten, Retention

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from pathlib import Path

#: Another version of the program that keeps its things otherwise gives its file another name.
FILE: Final = "events-1.sqlite3"

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
CREATE TABLE IF NOT EXISTS forgotten (sink TEXT PRIMARY KEY, events INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cursor (source TEXT PRIMARY KEY, position TEXT NOT NULL) WITHOUT ROWID;
"""

#: How our events' metadata begin.
_METADATA: Final = b'"metadata":{'
_UID: Final = re.compile(rb'"metadata":\{"version":"[^"\\]*","uid":"([^"\\]+)"')


class Stored(NamedTuple):
    """An event and its number, which is higher than that of each one before it."""

    number: int
    uid: str
    line: bytes


class Dead(NamedTuple):
    """A dead letter: an event that a sink will not take, as it is stored, and what was said of it.

    ``since_ms`` is when (ms since the epoch, UTC); ``is_again``: it is to be tried once more.
    """

    id: int
    sink: str
    uid: str
    since_ms: int
    reason: str
    is_again: bool
    line: bytes


class Refused(NamedTuple):
    """An event that has become a dead letter now."""

    uid: str
    line: bytes
    reason: str


class Shelf:
    """One file of events.

    It holds at most ``most_bytes`` on the disk, and events for ``most_seconds``: how it makes room
    is told in :mod:`ocsf_nft.delivery.retention`.
    """

    def __init__(self, path: Path, *, most_bytes: int, most_seconds: float, drops: bool) -> None:
        self.path = path
        #: The number of the last event, 0 when there never was one.
        self.end = 0
        self._database = Database(path, _SCHEMA, synchronous="FULL", is_ours_alone=True)
        self._retention = Retention(
            self._database, most_bytes=most_bytes, most_ms=int(most_seconds * 1000), drops=drops
        )
        # Time goes on from when the store was opened: a clock that jumps makes nothing old.
        self._began_ms = time.time_ns() // 1_000_000
        self._began_ns = time.monotonic_ns()

    @property
    def used_bytes(self) -> int:
        """What events take of the disk, as of the last transaction."""
        return self._retention.used_bytes

    @property
    def most_bytes(self) -> int:
        """What they may take."""
        return self._retention.most_bytes

    def fault(self) -> str | None:
        """What was the matter with the file, since this was asked last."""
        fault, self._database.fault = self._database.fault, None
        return fault

    def open(self) -> None:
        """Open it, making it where it is missing; raises DeliveryError."""
        self._database.open()
        with self._database.at_work() as connection:
            self._retention.measure(connection)
            # The table's own counter: its last events may have been removed.
            row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'")
            (self.end,) = row.fetchone() or (0,)
            # Nor does a clock that was set back make old what came before.
            newest = connection.execute("SELECT stored_ms FROM event ORDER BY number DESC LIMIT 1")
            (newest_ms,) = newest.fetchone() or (self._began_ms,)
            self._began_ms = max(self._began_ms, newest_ms)

    def close(self) -> None:
        """Close it."""
        self._database.close()

    def register(self, names: frozenset[str]) -> tuple[Forgotten, ...]:
        """Let these be the sinks, and no others; what those that are gone never had."""
        left: list[Forgotten] = []
        with self._database.at_work() as connection:
            for name, acknowledged in connection.execute(
                "SELECT name, acknowledged FROM sink"
            ).fetchall():
                if name not in names:
                    missing = _number_beyond(connection, acknowledged)
                    if missing:
                        left.append(Forgotten(name, missing))
                    connection.execute("DELETE FROM sink WHERE name = ?", (name,))
            connection.executemany(
                "INSERT OR IGNORE INTO sink VALUES (?, ?, NULL)",
                [(name, self.end) for name in sorted(names)],
            )
        return tuple(left)

    def put(self, lines: Sequence[bytes], positions: Sequence[tuple[str, str]]) -> None:
        """Keep events, and the positions of sources by their names; all of it or nothing.

        Raises DeliveryError, which is FullError where there is no room.
        """
        self._retention.make_room()
        # A position by itself may be lost with the power: then something is read again.
        work = self._database.at_work if lines else self._database.lightly
        with work() as connection:
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
        return self._began_ms + (time.monotonic_ns() - self._began_ns) // 1_000_000

    def sweep(self) -> bool:
        """Remove some of what is too old; whether there may be more."""
        return self._retention.sweep(self._now_ms())

    def forgotten(self) -> tuple[Forgotten, ...]:
        """What sinks have not had of all that was removed, until that is :meth:`told`."""
        return self._retention.forgotten()

    def told(self, forgotten: Sequence[Forgotten]) -> None:
        """It has been told of these."""
        self._retention.told(forgotten)

    def read(self, beyond: int, until: int, events: int, size: int) -> list[Stored]:
        """Events between two numbers, in order: so many, and so many bytes, but one at least."""
        found: list[Stored] = []
        with self._database.at_work() as connection:
            for row in connection.execute(
                "SELECT number, uid, line FROM event WHERE number > ? AND number <= ? "
                "ORDER BY number LIMIT ?",
                (beyond, until, events),
            ):
                stored = Stored(*row)
                size -= len(stored.line)
                if found and size < 0:
                    break
                found.append(stored)
        return found

    def checkpoint(self, sink: str) -> tuple[int, int | None]:
        """What a sink has acknowledged, and up to where it was being sent to."""
        with self._database.at_work() as connection:
            acknowledged, sending = connection.execute(
                "SELECT acknowledged, sending FROM sink WHERE name = ?", (sink,)
            ).fetchone()
        return acknowledged, sending

    def sending(self, sink: str, until: int) -> None:
        """Keep how far a batch reaches, before it is sent."""
        self._lightly("UPDATE sink SET sending = ? WHERE name = ?", (until, sink))

    def _lightly(self, statement: str, values: tuple[object, ...]) -> None:
        """What a power cut may take back: then something is done again."""
        with self._database.lightly() as connection:
            connection.execute(statement, values)

    def acknowledge(self, sink: str, until: int, refused: Sequence[Refused]) -> None:
        """A sink has all up to a number, but for what it refused."""
        statement = "UPDATE sink SET acknowledged = ?, sending = NULL WHERE name = ?"
        if not refused:
            self._lightly(statement, (until, sink))
            return
        with self._database.at_work() as connection:
            connection.execute(statement, (until, sink))
            now_ms = self._now_ms()
            connection.executemany(
                "REPLACE INTO dead (sink, uid, since_ms, reason, line) VALUES (?, ?, ?, ?, ?)",
                [(sink, each.uid, now_ms, each.reason, each.line) for each in refused],
            )

    def dead(self, sink: str, events: int) -> list[Dead]:
        """The first dead letters of a sink that are to be tried again."""
        with self._database.at_work() as connection:
            rows = connection.execute(
                "SELECT * FROM dead WHERE sink = ? AND is_again ORDER BY id LIMIT ?",
                (sink, events),
            )
            return [Dead(*row) for row in rows]

    def dead_number(self, sink: str) -> int:
        """How many dead letters a sink has."""
        with self._database.at_work() as connection:
            (number,) = connection.execute(
                "SELECT COUNT(*) FROM dead WHERE sink = ?", (sink,)
            ).fetchone()
        return int(number)

    def bury(self, delivered: Sequence[Dead], refused: Sequence[tuple[Dead, str]]) -> None:
        """What became of dead letters that were tried again; some may have made room meanwhile."""
        with self._database.at_work() as connection:
            connection.executemany(
                "DELETE FROM dead WHERE sink = ? AND uid = ?",
                [(each.sink, each.uid) for each in delivered],
            )
            connection.executemany(
                "UPDATE dead SET is_again = 0, reason = ? WHERE sink = ? AND uid = ?",
                [(reason, each.sink, each.uid) for each, reason in refused],
            )

    def position(self, source: str) -> str | None:
        """Where a source is to go on."""
        with self._database.at_work() as connection:
            row = connection.execute(
                "SELECT position FROM cursor WHERE source = ?", (source,)
            ).fetchone()
        if row is None:
            return None
        (position,) = row
        return str(position)

    def remove(self) -> bool:
        """Remove the file if no sink needs anything of it; whether it was."""
        if self._retention.is_needed():
            return False
        self._database.remove()
        return True


def _uid(line: bytes) -> str:
    """The ``metadata.uid`` of an event.

    Cut out of the line: within a text of JSON there is no quotation mark without a backslash.
    """
    found = _UID.match(line, line.rfind(_METADATA))
    if found is None:  # not as our own templates write it
        return str(orjson.loads(line)["metadata"]["uid"])
    return found[1].decode()


def _number_beyond(connection: sqlite3.Connection, number: int) -> int:
    (beyond,) = connection.execute(
        "SELECT COUNT(*) FROM event WHERE number > ?", (number,)
    ).fetchone()
    return int(beyond)
