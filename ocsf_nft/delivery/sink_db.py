"""SQLite database of the delivery: each sink's checkpoint, and its dead letters.

A dead letter is an event that a sink has refused. All functions block, and raise DeliveryError if
the disk can't be written. Only one thread at a time may use a :class:`SinkDatabase`. Meanwhile,
other processes may use :class:`SinkArchive` and :func:`retry_dead_letters`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from ocsf_nft.errors import DeliveryError
from ocsf_nft.state import dropped_events
from ocsf_nft.state.database import Database, has_table
from ocsf_nft.state.dropped_events import DroppedEvents, DroppingDatabase
from ocsf_nft.state.retention import LAST, StorageClock

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ocsf_nft.state.archive import Archive

#: End of the directory's name, and the file in it. A version of the program with another schema has
#: another file.
_END: Final = ".delivery"
_FILE: Final = "sinks-1.sqlite3"

#: ``state`` has the identity of the state database with the events. ``acknowledged`` is a sink's
#: checkpoint: the number of the last event that it has acknowledged.
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS state (identity TEXT NOT NULL);
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
"""
#: Dead letters that one transaction removes, at most.
_SLICE: Final = 20
#: Rows that one transaction of a reader reads.
_ROWS: Final = 500


def path_of(store: Path) -> Path:
    """Return the path of the delivery's database, for a state database with the path ``store``.

    It has a directory of its own. The delivery process may create files there, and nowhere else in
    the state directory.
    """
    return store.with_name(store.name + _END) / _FILE


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


class SinkBacklog(NamedTuple):
    """Counts of a sink's undelivered events (``waiting``) and of its refused events (``dead``)."""

    sink: str
    waiting: int
    dead: int


class SinkDatabase(DroppingDatabase):
    """SQLite file with the checkpoints and dead letters of all sinks.

    The dead letters use at most ``max_bytes`` on the disk, and are at most ``max_seconds`` old.
    """

    def __init__(self, path: Path, *, max_bytes: int, max_seconds: float) -> None:
        # Not synced to the disk: after a power cut, some events are sent again.
        super().__init__(path, _SCHEMA + dropped_events.SCHEMA, is_exclusive=True)
        self._max_bytes = max_bytes
        self._max_ms = int(max_seconds * 1000)
        self._clock = StorageClock()

    def open(self, *, read_only: bool = False) -> None:
        """Open the database file, and read the age of its rows; see :meth:`Database.open`."""
        super().open(read_only=read_only)
        try:
            with self.transaction() as connection:
                (newest_ms,) = connection.execute("SELECT MAX(since_ms) FROM dead").fetchone()
        except BaseException:
            self.close()
            raise
        self._clock = StorageClock(newest_ms or 0)

    def register(self, names: Sequence[str], identity: str, end: int) -> dict[str, int]:
        """Set the names of all sinks; delete the checkpoints of other sinks.

        ``identity`` is that of the state database, and ``end`` the number of its last event. A new
        sink gets only events with numbers above ``end``. But if this file is new, or was written
        for another state database, all sinks get all events. Return the checkpoints of the deleted
        sinks.
        """
        with self.transaction() as connection:
            begin = end
            if connection.execute("SELECT identity FROM state").fetchall() != [(identity,)]:
                begin = 0
                connection.execute("UPDATE sink SET acknowledged = 0, sending = NULL")
                connection.execute("DELETE FROM state")
                connection.execute("INSERT INTO state VALUES (?)", (identity,))
            # After a damage of its log, the state database may lack the latest events.
            connection.execute(
                "UPDATE sink SET acknowledged = ?, sending = NULL WHERE acknowledged > ?",
                (end, end),
            )
            connection.execute("UPDATE sink SET sending = NULL WHERE sending > ?", (end,))
            found = dict(connection.execute("SELECT name, acknowledged FROM sink").fetchall())
            removed = {name: number for name, number in found.items() if name not in names}
            connection.executemany("DELETE FROM sink WHERE name = ?", [(name,) for name in removed])
            connection.executemany(
                "INSERT OR IGNORE INTO sink VALUES (?, ?, NULL)", [(name, begin) for name in names]
            )
        return removed

    def checkpoints(self) -> Mapping[str, int]:
        """Return the number of the last event that each sink has acknowledged."""
        with self.transaction() as connection:
            return dict(connection.execute("SELECT name, acknowledged FROM sink").fetchall())

    def checkpoint(self, sink: str) -> tuple[int, int | None]:
        """Return the last event number that a sink acknowledged, and the last of its pending batch.

        The second number is None if no batch is between :meth:`begin_batch` and
        :meth:`acknowledge`.
        """
        with self.transaction() as connection:
            acknowledged, sending = connection.execute(
                "SELECT acknowledged, sending FROM sink WHERE name = ?", (sink,)
            ).fetchone()
        return acknowledged, sending

    def begin_batch(self, sink: str, until: int) -> None:
        """Store the last event number (``until``) of a batch, before the batch is sent.

        After a crash, a batch with exactly the same events can then be sent again.
        """
        with self.transaction() as connection:
            connection.execute("UPDATE sink SET sending = ? WHERE name = ?", (until, sink))

    def acknowledge(self, sink: str, until: int, refused: Sequence[RefusedEvent] = ()) -> None:
        """Store that a sink needs no event up to the number ``until`` (included) any more.

        The ``refused`` events become dead letters of the sink, and are synced to the disk.
        """
        with self.transaction("FULL" if refused else "NORMAL") as connection:
            connection.execute(
                "UPDATE sink SET acknowledged = ?, sending = NULL WHERE name = ?", (until, sink)
            )
            now_ms = self._clock.now_ms()
            connection.executemany(
                "REPLACE INTO dead (sink, uid, since_ms, reason, line) VALUES (?, ?, ?, ?, ?)",
                [(sink, each.uid, now_ms, each.reason, each.line) for each in refused],
            )

    def dead_letters_to_retry(self, sink: str, events: int) -> list[DeadLetter]:
        """Return a sink's dead letters for which a user requested a retry, oldest first.

        ``events`` is the maximum number of dead letters to return.
        """
        with self.transaction() as connection:
            rows = connection.execute(
                "SELECT * FROM dead WHERE sink = ? AND is_again ORDER BY id LIMIT ?",
                (sink, events),
            )
            return [DeadLetter(*row) for row in rows]

    def count_dead_letters(self, sink: str) -> int:
        """Return the number of dead letters of a sink."""
        with self.transaction() as connection:
            (number,) = connection.execute(
                "SELECT COUNT(*) FROM dead WHERE sink = ?", (sink,)
            ).fetchone()
        return int(number)

    def finish_retries(self, letters: Sequence[DeadLetter], refused: Mapping[str, str]) -> None:
        """Delete the dead letters that were delivered; store new reasons of the others.

        ``refused`` has the reasons by ``uid``. A dead letter that no longer exists is ignored.
        """
        with self.transaction() as connection:
            connection.executemany(
                "DELETE FROM dead WHERE sink = ? AND uid = ?",
                [(each.sink, each.uid) for each in letters if each.uid not in refused],
            )
            connection.executemany(
                "UPDATE dead SET is_again = 0, reason = ? WHERE sink = ? AND uid = ?",
                [
                    (refused[each.uid], each.sink, each.uid)
                    for each in letters
                    if each.uid in refused
                ],
            )

    def sweep(self) -> bool:
        """Remove dead letters that are too old, and the oldest ones if they use too much space.

        Return True if another call may remove more.
        """
        oldest_ms = self._clock.now_ms() - self._max_ms
        with self.transaction() as connection:
            removed = _remove(connection, oldest_ms)
            if not removed and _used_bytes(connection) > self._max_bytes:
                removed = _remove(connection, LAST)
            for dropped in Counter(removed).items():
                dropped_events.add(connection, DroppedEvents(*dropped))
        return bool(removed)


class SinkArchive:
    """Reader of the delivery's database beside the state database ``store``."""

    def __init__(self, store: Path) -> None:
        self._database = Database(path_of(store), "")
        self._is_there = self._database.path.is_file()

    def __enter__(self) -> Self:
        """Open the database file, if there is one; raises SourceError."""
        if self._is_there:
            self._database.open(read_only=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Close the database file."""
        self._database.close()

    def dead_letters(self, sink: str | None = None) -> Iterator[DeadLetter]:
        """Yield the dead letters (refused events) of a sink, or of all sinks (None), oldest first.

        Raises SourceError if the database file can't be read.
        """
        last = 0
        query = "SELECT * FROM dead WHERE id > ? AND sink = IFNULL(?, sink) ORDER BY id LIMIT ?"
        while rows := self._query(query, last, sink, _ROWS):
            yield from (DeadLetter(*row) for row in rows)
            last = rows[-1][0]

    def backlogs(self, archive: Archive) -> list[SinkBacklog]:
        """Return the backlog of each sink; ``archive`` has the events.

        Raises SourceError if a database file can't be read.
        """
        rows = self._query(
            "SELECT name, acknowledged, (SELECT COUNT(*) FROM dead WHERE sink = name) "
            "FROM sink ORDER BY name"
        )
        return [
            SinkBacklog(name, archive.count_beyond(acknowledged), dead)
            for name, acknowledged, dead in rows
        ]

    def _query(self, query: str, *parameters: object) -> list[Any]:
        if not self._is_there:
            return []
        with self._database.transaction() as connection:
            # A service creates the tables shortly after the file.
            is_created = has_table(connection, "sink")
            return connection.execute(query, parameters).fetchall() if is_created else []


def retry_dead_letters(store: Path, sink: str | None, uid: str | None) -> int:
    """Request a retry of dead letters (refused events); return their number.

    ``store`` is the path of the state database. ``sink`` and the event's ``uid`` select dead
    letters; None selects all. A running service sends them within seconds. Raises DeliveryError if
    the delivery's database can't be written.
    """
    path = path_of(store)
    if not path.is_file():
        return 0
    # Not by Database, which quarantines a damaged file.
    uri = f"{path.absolute().as_uri()}?mode=rw"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection, connection:
            return connection.execute(
                "UPDATE dead SET is_again = 1 "
                "WHERE sink = IFNULL(?, sink) AND uid = IFNULL(?, uid)",
                (sink, uid),
            ).rowcount
    except sqlite3.Error as error:
        raise DeliveryError(f"{path} can't be written: {error}") from error


def _remove(connection: sqlite3.Connection, until_ms: int) -> list[str]:
    """Remove some of the oldest dead letters, up to ``until_ms``; return their sinks."""
    rows = connection.execute(
        "DELETE FROM dead WHERE id IN "
        "(SELECT id FROM dead WHERE since_ms <= ? ORDER BY id LIMIT ?) RETURNING sink",
        (until_ms, _SLICE),
    )
    return [sink for (sink,) in rows.fetchall()]


def _used_bytes(connection: sqlite3.Connection) -> int:
    (pages,), (free,), (size,) = (
        connection.execute(f"PRAGMA {name}").fetchone()
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)
