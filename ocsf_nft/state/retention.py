"""Removal of stored events, by limits of size and age, and the clock for the age.

To make room, events that every sink (destination) has acknowledged are removed first. Events that a
sink still needs are removed only if the configuration allows that.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.errors import DeliveryError
from ocsf_nft.state import dropped_events
from ocsf_nft.state.dropped_events import DroppedEvents

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping, Sequence

    from ocsf_nft.state.database import Database

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
#: Size of an event in the database without its JSON: number, time and uid, with its index.
_EVENT_BYTES: Final = 200


class FullError(DeliveryError):
    """Error: the store or the disk is full, and no stored event may be removed to make room."""


class StorageClock:
    """Clock for the age of stored rows: a jump of the wall clock makes no row older.

    It begins at the wall clock's time, and then advances by the monotonic clock. ``newest_ms`` is
    the time of the newest stored row. The clock begins at this time if the wall clock was set back.
    """

    def __init__(self, newest_ms: int = 0) -> None:
        self._opened_ms = max(time.time_ns() // 1_000_000, newest_ms)
        self._opened_ns = time.monotonic_ns()

    def now_ms(self) -> int:
        """Return the present time in ms since the epoch."""
        return self._opened_ms + (time.monotonic_ns() - self._opened_ns) // 1_000_000


class _Disk(NamedTuple):
    """Free bytes of a disk, bytes that must stay free there, and size of SQLite's log on it."""

    free_bytes: int
    reserve_bytes: int
    log_bytes: int


class Retention:
    """Removal of events from a store's database, by limits of size and age.

    A full store may have only events that a sink (destination) has not acknowledged. Then the
    oldest events are removed if ``drops`` is true; otherwise the store accepts no new events.
    """

    def __init__(self, database: Database, *, max_bytes: int, max_ms: int, drops: bool) -> None:
        #: Maximum size of the events in bytes.
        self.max_bytes = max_bytes
        #: Size of the events in bytes. Counts of packets are not included: a sandboxed program that
        #: causes many of them must not remove events.
        self.used_bytes = 0
        #: Number of the events in these bytes.
        self.stored_events = 0
        #: Number of the last event that each sink has acknowledged. Events above the least of these
        #: numbers are removed only if they are too old, or if the store is full and ``drops`` is
        #: true. None if not known yet: no event is removed.
        self.acknowledged: Mapping[str, int] | None = None
        #: Space in the file for new events, in bytes.
        self._free_bytes = 0
        self._database = database
        self._folder = database.path.parent
        #: Maximum age of the events in milliseconds.
        self._max_ms = max_ms
        self._drops = drops

    def measure(self, connection: sqlite3.Connection) -> None:
        """Measure the stored events, their number and size; this reads the whole database."""
        number, size = connection.execute(
            "SELECT COUNT(*), TOTAL(LENGTH(line)) FROM event"
        ).fetchone()
        self.stored_events = number
        self.used_bytes = int(size) + number * _EVENT_BYTES
        self.measure_free(connection)

    def measure_free(self, connection: sqlite3.Connection) -> None:
        """Measure the free bytes of the database file."""
        (free,), (size,) = (
            connection.execute(f"PRAGMA {name}").fetchone()
            for name in ("freelist_count", "page_size")
        )
        self._free_bytes = free * size

    def add(self, lines: Iterable[bytes]) -> None:
        """Add new events to their number and size."""
        sizes = [len(line) + _EVENT_BYTES for line in lines]
        self.stored_events += len(sizes)
        self.used_bytes += sum(sizes)

    def _subtract(self, sizes: Sequence[int]) -> None:
        self.stored_events -= len(sizes)
        self.used_bytes -= sum(sizes)

    def make_room(self) -> bool:
        """Remove some events if there is no room for new events.

        Return False if there is room now; call the method again otherwise. Raises FullError if no
        more events may be removed, DeliveryError if the database can't be written.
        """
        disk = self._bound_log()
        shortage = self._shortage(disk)
        if not shortage:
            return False
        if self._is_short(disk):
            self._database.try_to_checkpoint_log()
            shortage = self._shortage(self._disk())
            if not shortage:
                return False
        if not self._remove_some():
            raise FullError(shortage)
        return True

    def _shortage(self, disk: _Disk | None) -> str:
        path = self._database.path
        if self.used_bytes >= self.max_bytes:
            return (
                f"{path} holds {self.max_bytes} bytes that sinks have not received yet: "
                "it accepts no more events until they have"
            )
        if self._is_short(disk):
            return (
                f"{path} can't be written (the disk is nearly full, and no stored event may be "
                "removed): make room"
            )
        return ""

    def _is_short(self, disk: _Disk | None, more_bytes: int = 0) -> bool:
        # SQLite's log needs some of the free bytes when it is copied into the file.
        return disk is not None and (
            disk.free_bytes - disk.log_bytes + self._free_bytes + more_bytes < disk.reserve_bytes
        )

    def _remove_some(self) -> bool:
        with self._database.transaction("NORMAL") as connection:
            until = _last_of_first(connection)
            removed = _remove(connection, min(until, self._needed_beyond()))
            # If other files fill the disk, the removal of events that a sink needs would not help.
            if not removed and self._drops and self._would_help():
                self._count_dropped(connection, until)
                removed = _remove(connection, until)
            self.measure_free(connection)
        self._subtract(removed)
        return bool(removed)

    def _would_help(self) -> bool:
        return not self._is_short(self._disk(), self.used_bytes)

    def _bound_log(self) -> _Disk | None:
        # The log of the next transactions needs room on the disk, however much is free in the
        # database file.
        disk = self._disk()
        if disk is not None and disk.log_bytes > disk.free_bytes:
            self._database.try_to_checkpoint_log()
            disk = self._disk()
        return disk

    def _disk(self) -> _Disk | None:
        """Measure the disk; return None if the next transaction restores the folder, or fails."""
        try:
            disk = os.statvfs(self._folder)
        except OSError:
            return None
        return _Disk(
            free_bytes=disk.f_bavail * disk.f_frsize,
            reserve_bytes=min(_RESERVE_BYTES, disk.f_blocks * disk.f_frsize // 4),
            log_bytes=self._database.log_bytes,
        )

    def sweep(self, now_ms: int) -> bool:
        """Remove some of the events that are too old.

        ``now_ms`` is the current time in ms since the epoch. Return True if another call may remove
        more. Raises DeliveryError.
        """
        if self.acknowledged is None:
            return False
        oldest_ms = now_ms - self._max_ms
        self._bound_log()
        with self._database.transaction("NORMAL") as connection:
            until = _last_too_old(connection, oldest_ms)
            self._count_dropped(connection, until)
            removed = _remove(connection, until)
            self.measure_free(connection)
        self._subtract(removed)
        return bool(removed)

    def _needed_beyond(self) -> int:
        """Return the number of the last event that no sink needs any more."""
        if self.acknowledged is None:
            return 0
        return min(self.acknowledged.values(), default=LAST)

    def _count_dropped(self, connection: sqlite3.Connection, until: int) -> None:
        for name, acknowledged in (self.acknowledged or {}).items():
            if acknowledged < until:
                (number,) = connection.execute(
                    "SELECT COUNT(*) FROM event WHERE number > ? AND number <= ?",
                    (acknowledged, until),
                ).fetchone()
                dropped_events.add(connection, DroppedEvents(name, number))


def _remove(connection: sqlite3.Connection, until: int) -> Sequence[int]:
    """Remove the events up to the number ``until``; return the size of each in bytes."""
    sizes = connection.execute(
        "DELETE FROM event WHERE number <= ? RETURNING LENGTH(line)", (until,)
    ).fetchall()
    return [size + _EVENT_BYTES for (size,) in sizes]


def _last_of_first(connection: sqlite3.Connection) -> int:
    """Return the highest event number that one transaction may remove; 0 without events."""
    first, last = connection.execute(
        "SELECT (SELECT MIN(number) FROM event), (SELECT MAX(number) FROM event)"
    ).fetchone()
    if first is None:
        return 0
    return int(first + max(1, min(_SLICE, (last - first) // _PART)) - 1)


def _last_too_old(connection: sqlite3.Connection, oldest_ms: int) -> int:
    """Return the number of the last event that one transaction may remove because of its age."""
    young, last = connection.execute(
        "SELECT MIN(CASE WHEN stored_ms >= ? THEN number END), MAX(number) FROM "
        "(SELECT number, stored_ms FROM event ORDER BY number LIMIT ?)",
        (oldest_ms, _SLICE),
    ).fetchone()
    return int(last or 0) if young is None else int(young) - 1
