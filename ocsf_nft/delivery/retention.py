"""Removal of stored events, by limits of size and age.

To make room, events that every sink (destination) has acknowledged are removed first. Dead letters
(events that a sink refused) are removed next. Events that a sink has not acknowledged are removed
last, and only if the settings permit it.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from ocsf_nft.database import Database

#: Greater than or equal to every event number.
LAST: Final = (1 << 63) - 1
#: Events that one transaction removes, at most. SQLite's log of a transaction needs room on the
#: disk too, and other operations wait until the transaction ends.
_SLICE: Final = 200
#: One transaction removes at most one in so many events, but at least one event.
_PART: Final = 50
#: Free space that is left to other programs and to SQLite's log: on a full disk, not even a sink's
#: acknowledgement could be stored. If less is free, events that every sink has are removed.
_RESERVE_BYTES: Final = 32 << 20


class DroppedEvents(NamedTuple):
    """Name of a sink, and the number of events that were deleted without delivery to this sink.

    Deleted dead letters (events that the sink refused) are counted too.
    """

    sink: str
    events: int


class FullError(DeliveryError):
    """Error: the store or the disk is full, and no stored event may be removed to make room."""


class Retention:
    """Removal of events from a store's database, by limits of size and age.

    A full store may have only events that a sink (destination) has not acknowledged. Then the
    oldest events are removed if ``drops`` is true; otherwise the store accepts no new events.
    """

    def __init__(self, database: Database, *, max_bytes: int, max_ms: int, drops: bool) -> None:
        #: Maximum size of the events on the disk.
        self.max_bytes = max_bytes
        #: Size of the events on the disk in bytes, as of the last transaction.
        self.used_bytes = 0
        #: Space in the file for new events, in bytes.
        self._free_bytes = 0
        self._database = database
        #: Maximum age of the events in milliseconds.
        self._max_ms = max_ms
        self._drops = drops

    def measure(self, connection: sqlite3.Connection) -> None:
        """Measure the used bytes (``used_bytes``) and the free bytes of the database file."""
        (pages,), (free,), (size,) = (
            connection.execute(f"PRAGMA {name}").fetchone()
            for name in ("page_count", "freelist_count", "page_size")
        )
        self.used_bytes, self._free_bytes = (pages - free) * size, free * size

    def make_room(self) -> None:
        """Remove events until there is room for new events.

        Raises FullError if no more events may be removed, DeliveryError if the database can't be
        written.
        """
        while shortage := self._shortage():
            if self._is_disk_short():
                self._database.checkpoint_log()
            if not self._remove_some():
                raise FullError(shortage)

    def _shortage(self) -> str:
        path = self._database.path
        if self.used_bytes >= self.max_bytes:
            return (
                f"{path} holds {self.max_bytes} bytes that sinks have not received yet: "
                "it accepts no more events until they have"
            )
        if self._is_disk_short():
            return (
                f"{path} can't be written (the disk is nearly full, and no stored event may be "
                "removed): make room"
            )
        return ""

    def _is_disk_short(self) -> bool:
        try:
            free_bytes, reserve_bytes = self._disk()
        except OSError:  # the next transaction restores the folder, or raises the cause
            return False
        return free_bytes < reserve_bytes

    def _remove_some(self) -> int:
        with self._database.unsynced_transaction() as connection:
            until = _last_of_first(connection)
            removed = _remove(connection, min(until, _needed_beyond(connection)))
            # If other files fill the disk, the removal of events that a sink needs would not help.
            if not removed and self._would_help():
                removed = _drop_dead_letters(connection, LAST)
                if not removed and self._drops:
                    _count_dropped(connection, until)
                    removed = _remove(connection, until)
            self.measure(connection)
        return removed

    def _would_help(self) -> bool:
        """Return True if the removal of all events would leave enough free space on the disk."""
        free_bytes, reserve_bytes = self._disk()
        return free_bytes + self.used_bytes >= reserve_bytes

    def _disk(self) -> tuple[int, int]:
        """Return the number of free bytes, and the number of bytes that must stay free.

        Free bytes are those on the disk and those inside the database file.
        """
        disk = os.statvfs(self._database.path.parent)
        free_bytes = disk.f_bavail * disk.f_frsize + self._free_bytes
        return free_bytes, min(_RESERVE_BYTES, disk.f_blocks * disk.f_frsize // 4)

    def sweep(self, now_ms: int) -> bool:
        """Remove some of the events and dead letters (refused events) that are too old.

        ``now_ms`` is the current time in ms since the epoch. Return True if another call may remove
        more. Raises DeliveryError.
        """
        oldest_ms = now_ms - self._max_ms
        with self._database.unsynced_transaction() as connection:
            until = _last_too_old(connection, oldest_ms)
            _count_dropped(connection, until)
            removed = _remove(connection, until)
            removed += _drop_dead_letters(connection, oldest_ms)
            self.measure(connection)
        if self._is_disk_short():
            self._database.checkpoint_log()
        return removed > 0

    def dropped_events(self) -> tuple[DroppedEvents, ...]:
        """Return, for each sink, the number of events that were removed without delivery to it.

        Removed dead letters are counted too. Events that were already reported
        (:meth:`confirm_reported`) are not counted.
        """
        with self._database.transaction() as connection:
            rows = connection.execute("SELECT sink, events FROM dropped WHERE events > 0")
            return tuple(DroppedEvents(*row) for row in rows)

    def confirm_reported(self, dropped: Sequence[DroppedEvents]) -> None:
        """Store that dropped events were reported; :meth:`dropped_events` then omits them.

        ``dropped`` is an earlier result of :meth:`dropped_events`.
        """
        with self._database.transaction() as connection:
            connection.executemany(
                "UPDATE dropped SET events = events - ? WHERE sink = ?",
                [(each.events, each.sink) for each in dropped],
            )

    def is_needed(self) -> bool:
        """Return True if a sink still needs a stored event, or a dead letter is stored."""
        with self._database.transaction() as connection:
            (dead,) = connection.execute("SELECT COUNT(*) FROM dead").fetchone()
            (events,) = connection.execute(
                "SELECT COUNT(*) FROM event WHERE number > ?", (_needed_beyond(connection),)
            ).fetchone()
        return bool(dead or events)


def _needed_beyond(connection: sqlite3.Connection) -> int:
    """Return the number of the last event that no sink needs any more.

    All sinks have acknowledged the events up to this number. If there are no sinks, no event is
    needed, and the result is ``LAST`` (the highest possible number).
    """
    (least,) = connection.execute("SELECT MIN(acknowledged) FROM sink").fetchone()
    return LAST if least is None else int(least)


def _count_dropped(connection: sqlite3.Connection, until: int) -> None:
    for name, acknowledged in connection.execute(
        "SELECT name, acknowledged FROM sink WHERE acknowledged < ?", (until,)
    ).fetchall():
        (number,) = connection.execute(
            "SELECT COUNT(*) FROM event WHERE number > ? AND number <= ?", (acknowledged, until)
        ).fetchone()
        _add_dropped(connection, name, number)


def _remove(connection: sqlite3.Connection, until: int) -> int:
    return int(connection.execute("DELETE FROM event WHERE number <= ?", (until,)).rowcount)


def _drop_dead_letters(connection: sqlite3.Connection, until_ms: int) -> int:
    removed = connection.execute(
        "DELETE FROM dead WHERE id IN "
        "(SELECT id FROM dead WHERE since_ms <= ? ORDER BY id LIMIT ?) RETURNING sink",
        (until_ms, _SLICE),
    ).fetchall()
    for name, number in Counter(name for (name,) in removed).items():
        _add_dropped(connection, name, number)
    return len(removed)


def _add_dropped(connection: sqlite3.Connection, sink: str, events: int) -> None:
    connection.execute(
        "INSERT INTO dropped VALUES (?, ?) "
        "ON CONFLICT DO UPDATE SET events = events + excluded.events",
        (sink, events),
    )


def _last_of_first(connection: sqlite3.Connection) -> int:
    """Return the highest event number that one transaction may remove; 0 without events.

    One transaction may remove only a small part of the events: the oldest ones.
    """
    first, last = connection.execute(
        "SELECT (SELECT MIN(number) FROM event), (SELECT MAX(number) FROM event)"
    ).fetchone()
    if first is None:
        return 0
    return int(first + max(1, min(_SLICE, (last - first) // _PART)) - 1)


def _last_too_old(connection: sqlite3.Connection, oldest_ms: int) -> int:
    """Return the number of the last event that one transaction may remove because of its age.

    Events stored before ``oldest_ms`` (ms since the epoch) are too old. If no event is too old, the
    result is lower than every event number.
    """
    young, last = connection.execute(
        "SELECT MIN(CASE WHEN stored_ms >= ? THEN number END), MAX(number) FROM "
        "(SELECT number, stored_ms FROM event ORDER BY number LIMIT ?)",
        (oldest_ms, _SLICE),
    ).fetchone()
    return int(last or 0) if young is None else int(young) - 1
