"""The shelf that a store puts its events on: one file of SQLite.

Everything here blocks, and raises DeliveryError where the disk won't have it: call it from one
thread at a time.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from ocsf_nft.database import Database
from ocsf_nft.errors import DeliveryError

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
#: Past all numbers.
LAST: Final = (1 << 63) - 1
#: Events that are removed in one transaction.
_SLICE: Final = 2000
#: Of a disk, what is left to others: before that, what every sink has had makes room.
_RESERVE_BYTES: Final = 32 << 20
#: Of what the store may hold, what is left when room was made: it is not made for each event.
_LEFT: Final = 0.9


class Stored(NamedTuple):
    """An event and its number, which is higher than that of each one before it."""

    number: int
    uid: str
    line: bytes


class Dead(NamedTuple):
    """A dead letter: an event that a sink will not take, and what was said of it.

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


class Forgotten(NamedTuple):
    """Events that were removed before a sink had them."""

    sink: str
    events: int


class FullError(DeliveryError):
    """The store holds as much as it may, and sinks still need all of it."""


class Shelf:
    """One file of events.

    It holds at most ``most_bytes`` on the disk, and events for ``most_seconds``. What every sink
    has is removed to make room. Where that is not enough, :meth:`put` raises FullError, or with
    ``drops`` removes the oldest of what is still needed. Before that the oldest dead letters go.
    All of that :meth:`sweep` tells, and what has become too old.
    """

    def __init__(self, path: Path, *, most_bytes: int, most_seconds: float, drops: bool) -> None:
        self.path = path
        self.most_bytes = most_bytes
        #: The number of the last event, 0 when there never was one.
        self.end = 0
        #: What events take of the disk, as of the last transaction, in bytes.
        self.used_bytes = 0
        #: What of the file is free for new events, in bytes.
        self._free_bytes = 0
        self._database = Database(path, _SCHEMA, synchronous="FULL")
        self._most_ms = int(most_seconds * 1000)
        self._drops = drops
        self._lock: int | None = None
        # Time goes on from when the store was opened: a clock that jumps makes nothing old.
        self._began_ms = time.time_ns() // 1_000_000
        self._began_ns = time.monotonic_ns()

    def fault(self) -> str | None:
        """What was the matter with the file, since this was asked last."""
        fault, self._database.fault = self._database.fault, None
        return fault

    def open(self) -> None:
        """Open it, making it where it is missing; raises DeliveryError."""
        self._lock = self._locked()
        self._database.open()
        with self._database.at_work() as connection:
            self._measure(connection)
            # The table's own counter: its last events may have been removed.
            row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'")
            self.end = (row.fetchone() or (0,))[0]
            # Nor does a clock that was set back make old what came before.
            newest = connection.execute("SELECT stored_ms FROM event ORDER BY number DESC LIMIT 1")
            self._began_ms = max(self._began_ms, (newest.fetchone() or (0,))[0])

    def _locked(self) -> int:
        """Keep out other runs, which would take our sinks for ones that are gone."""
        path = self.path.with_name(f".{self.path.name}.lock")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._database.failure(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise DeliveryError(
                f"another run keeps its events in {self.path}: give one of them a [store] path, "
                "or a state_dir, of its own"
            ) from error
        return descriptor

    def close(self) -> None:
        """Close it."""
        self._database.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

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

        Raises DeliveryError.
        """
        # A position by itself may be lost with the power: then something is read again.
        work = self._database.at_work if lines else self._database.lightly
        with work() as connection:
            self._hold_room(connection)
            stored_ms = self._now_ms()
            connection.executemany(
                "INSERT OR IGNORE INTO event (uid, stored_ms, line) VALUES (?, ?, ?)",
                [(_uid(line), stored_ms, line) for line in lines],
            )
            connection.executemany("REPLACE INTO cursor VALUES (?, ?)", positions)
            (end,) = connection.execute("SELECT MAX(number) FROM event").fetchone()
            self._measure(connection)
        self.end = max(self.end, end or 0)

    def _hold_room(self, connection: sqlite3.Connection) -> None:
        """See that there is room for something; raises FullError."""
        if self.used_bytes >= self.most_bytes:
            self._make_room(connection, self.most_bytes)
            if self.used_bytes >= self.most_bytes:
                raise FullError(
                    f"{self.path} holds {self.most_bytes} bytes that sinks have not had yet: "
                    "it takes no more until they have"
                )
        elif self._is_disk_short():
            self._make_room(connection, self.used_bytes)
            if self._is_disk_short():
                raise FullError(
                    f"{self.path} can't be written (the disk is nearly full, and sinks have "
                    "not had yet what is kept): make room"
                )

    def _now_ms(self) -> int:
        return self._began_ms + (time.monotonic_ns() - self._began_ns) // 1_000_000

    def _measure(self, connection: sqlite3.Connection) -> None:
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        self.used_bytes, self._free_bytes = (pages - free) * size, free * size

    def _is_disk_short(self) -> bool:
        """Whether what is left of the disk has to be left to others, and to SQLite's own log.

        On a disk without any room it could not even be kept that a sink has got something.
        """
        disk = os.statvfs(self.path.parent)
        reserve = min(_RESERVE_BYTES, disk.f_blocks * disk.f_frsize // 4)
        return disk.f_bavail * disk.f_frsize + self._free_bytes < reserve

    def _make_room(self, connection: sqlite3.Connection, most_bytes: int) -> None:
        """Remove the oldest events, to some less than so many bytes, but none that is needed."""
        needed, is_full = _needed_beyond(connection), self.used_bytes >= self.most_bytes
        (events,) = connection.execute("SELECT COUNT(*) FROM event").fetchone()
        some = max(1, min(_SLICE, events // 20))
        while self.used_bytes >= most_bytes * _LEFT:
            until = _first(connection, some)
            if is_full and self._drops and until > needed:
                self._count_forgotten(connection, until)
            else:
                until = min(until, needed)
            gone = connection.execute("DELETE FROM event WHERE number <= ?", (until,)).rowcount
            # A sink that refuses everything must not stop the others.
            if not gone and is_full:
                gone = self._forget_dead(connection, some, LAST)
            if not gone:
                break
            self._measure(connection)

    def _count_forgotten(self, connection: sqlite3.Connection, until: int) -> None:
        for name, acknowledged in connection.execute(
            "SELECT name, acknowledged FROM sink WHERE acknowledged < ?", (until,)
        ).fetchall():
            (number,) = connection.execute(
                "SELECT COUNT(*) FROM event WHERE number > ? AND number <= ?",
                (acknowledged, until),
            ).fetchone()
            _forget(connection, name, number)

    def _forget_dead(self, connection: sqlite3.Connection, letters: int, until_ms: int) -> int:
        """Remove the oldest dead letters: how many there were."""
        found = connection.execute(
            "DELETE FROM dead WHERE id IN "
            "(SELECT id FROM dead WHERE since_ms <= ? ORDER BY id LIMIT ?) RETURNING sink",
            (until_ms, letters),
        ).fetchall()
        for name, number in Counter(name for (name,) in found).items():
            _forget(connection, name, number)
        return len(found)

    def sweep(self) -> tuple[Forgotten, ...]:
        """Remove what is too old; what sinks have not had of all that was removed, till told."""
        oldest_ms = self._now_ms() - self._most_ms
        with self._database.at_work() as connection:
            while (until := _old(connection, oldest_ms)) is not None:
                self._count_forgotten(connection, until)
                connection.execute("DELETE FROM event WHERE number <= ?", (until,))
            while self._forget_dead(connection, _SLICE, oldest_ms):
                pass
            self._measure(connection)
            rows = connection.execute("SELECT sink, events FROM forgotten WHERE events > 0")
            return tuple(Forgotten(*row) for row in rows)

    def told(self, forgotten: Sequence[Forgotten]) -> None:
        """What was swept has been told."""
        with self._database.at_work() as connection:
            connection.executemany(
                "UPDATE forgotten SET events = events - ? WHERE sink = ?",
                [(each.events, each.sink) for each in forgotten],
            )

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
            row = connection.execute("SELECT COUNT(*) FROM dead WHERE sink = ?", (sink,)).fetchone()
        return int(row[0])

    def bury(self, delivered: tuple[int, ...], refused: tuple[tuple[int, str], ...]) -> None:
        """Of dead letters that were tried again, by their ids: what became of each."""
        with self._database.at_work() as connection:
            connection.executemany("DELETE FROM dead WHERE id = ?", [(each,) for each in delivered])
            connection.executemany(
                "UPDATE dead SET is_again = 0, reason = ? WHERE id = ?",
                [(reason, each) for each, reason in refused],
            )

    def position(self, source: str) -> str | None:
        """Where a source is to go on."""
        with self._database.at_work() as connection:
            row = connection.execute(
                "SELECT position FROM cursor WHERE source = ?", (source,)
            ).fetchone()
        return None if row is None else str(row[0])

    def remove(self) -> bool:
        """Remove the file if no sink needs anything of it; whether it was."""
        with self._database.at_work() as connection:
            (dead,) = connection.execute("SELECT COUNT(*) FROM dead").fetchone()
            needed = _needed_beyond(connection)
        if dead or needed < self.end:
            return False
        self.path.with_name(f".{self.path.name}.lock").unlink(missing_ok=True)
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
    row = connection.execute("SELECT COUNT(*) FROM event WHERE number > ?", (number,)).fetchone()
    return int(row[0])


def _needed_beyond(connection: sqlite3.Connection) -> int:
    """The number up to which no sink needs anything; past all numbers where there is no sink."""
    (least,) = connection.execute("SELECT MIN(acknowledged) FROM sink").fetchone()
    return LAST if least is None else int(least)


def _first(connection: sqlite3.Connection, events: int) -> int:
    """The number of the last of the first so many events; 0 where there are none."""
    row = connection.execute(
        "SELECT MAX(number) FROM (SELECT number FROM event ORDER BY number LIMIT ?)", (events,)
    ).fetchone()
    return int(row[0] or 0)


def _forget(connection: sqlite3.Connection, sink: str, events: int) -> None:
    """Keep what is to be told, in the transaction that removes it."""
    connection.execute(
        "INSERT INTO forgotten VALUES (?, ?) "
        "ON CONFLICT DO UPDATE SET events = events + excluded.events",
        (sink, events),
    )


def _old(connection: sqlite3.Connection, oldest_ms: int) -> int | None:
    """The number of the last of the first events that are all older; None where the first isn't."""
    young, last = connection.execute(
        "SELECT MIN(CASE WHEN stored_ms >= ? THEN number END), MAX(number) FROM "
        "(SELECT number, stored_ms FROM event ORDER BY number LIMIT ?)",
        (oldest_ms, _SLICE),
    ).fetchone()
    if young is None:
        return None if last is None else int(last)
    row = connection.execute("SELECT MAX(number) FROM event WHERE number < ?", (young,)).fetchone()
    return None if row[0] is None else int(row[0])
