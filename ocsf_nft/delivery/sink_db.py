"""SQLite database of the delivery: each sink's checkpoint, and its dead letters.

A dead letter is an event that a sink has refused. All functions block, and raise DeliveryError if
the disk can't be written. Only one thread at a time may call them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.state import dropped_events
from ocsf_nft.state.database import Database
from ocsf_nft.state.dropped_events import DroppedEvents
from ocsf_nft.state.retention import LAST
from ocsf_nft.state.storage_clock import StorageClock

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: End of the file's name. A version of the program with another schema has another one.
_END: Final = ".delivery-1"

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


def path_of(store: Path) -> Path:
    """Return the path of the delivery's database, for a state database with the path ``store``."""
    return store.with_name(store.name + _END)


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


class SinkDatabase:
    """SQLite file with the checkpoints and dead letters of all sinks.

    The dead letters use at most ``max_bytes`` on the disk, and are at most ``max_seconds`` old.
    """

    def __init__(self, path: Path, *, max_bytes: int, max_seconds: float) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._max_ms = int(max_seconds * 1000)
        # Not synced to the disk: after a power cut, some events are sent again.
        self._database = Database(path, _SCHEMA + dropped_events.SCHEMA, is_exclusive=True)
        self._clock = StorageClock()

    def open(self) -> None:
        """Open the database file, or create a missing file; raises DeliveryError if this fails.

        A damaged file is quarantined (renamed), see :meth:`faults`.
        """
        self._database.open()
        try:
            with self._database.transaction() as connection:
                (newest_ms,) = connection.execute("SELECT MAX(since_ms) FROM dead").fetchone()
        except BaseException:
            self._database.close()
            raise
        self._clock = StorageClock(newest_ms or 0)

    def faults(self) -> tuple[str, ...]:
        """Return the reports about quarantined files that :meth:`confirm_fault` has not confirmed.

        A report stays over restarts.
        """
        return self._database.faults()

    def confirm_fault(self, report: str) -> None:
        """Confirm that an event has a report: :meth:`faults` no longer returns it."""
        self._database.confirm_fault(report)

    def close(self) -> None:
        """Close the database file."""
        self._database.close()

    def register(self, names: Sequence[str], identity: str, end: int) -> dict[str, int]:
        """Set the names of all sinks; delete the checkpoints of other sinks.

        ``identity`` is that of the state database, and ``end`` the number of its last event. A new
        sink gets only events with numbers above ``end``. But if this file is new, or was written
        for another state database, all sinks get all events. Return the checkpoints of the deleted
        sinks.
        """
        with self._database.transaction() as connection:
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
        with self._database.transaction() as connection:
            return dict(connection.execute("SELECT name, acknowledged FROM sink").fetchall())

    def checkpoint(self, sink: str) -> tuple[int, int | None]:
        """Return the last event number that a sink acknowledged, and the last of its pending batch.

        The second number is None if no batch is between :meth:`begin_batch` and
        :meth:`acknowledge`.
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
        with self._database.transaction() as connection:
            connection.execute("UPDATE sink SET sending = ? WHERE name = ?", (until, sink))

    def acknowledge(self, sink: str, until: int, refused: Sequence[RefusedEvent] = ()) -> None:
        """Store that a sink needs no event up to the number ``until`` (included) any more.

        The ``refused`` events become dead letters of the sink, and are synced to the disk.
        """
        with self._database.transaction("FULL" if refused else "NORMAL") as connection:
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
        """Delete the ``delivered`` dead letters; store the new reasons of the ``refused`` ones.

        ``refused`` has pairs: a dead letter and its new reason. A dead letter that no longer exists
        is ignored.
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

    def sweep(self) -> bool:
        """Remove dead letters that are too old, and the oldest ones if they use too much space.

        Return True if another call may remove more.
        """
        oldest_ms = self._clock.now_ms() - self._max_ms
        with self._database.transaction() as connection:
            removed = _remove(connection, oldest_ms)
            if not removed and _used_bytes(connection) > self._max_bytes:
                removed = _remove(connection, LAST)
            for dropped in Counter(removed).items():
                dropped_events.add(connection, DroppedEvents(*dropped))
        return bool(removed)

    def dropped_events(self) -> tuple[DroppedEvents, ...]:
        """Return how many dead letters of each sink :meth:`sweep` has removed.

        Dead letters that were passed to :meth:`confirm_reported` are not counted.
        """
        with self._database.transaction() as connection:
            return dropped_events.read(connection)

    def confirm_reported(self, dropped: Sequence[DroppedEvents]) -> None:
        """Mark removed dead letters as reported: :meth:`dropped_events` no longer counts them.

        ``dropped`` is an earlier result of :meth:`dropped_events`.
        """
        with self._database.transaction() as connection:
            dropped_events.confirm_reported(connection, dropped)


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
