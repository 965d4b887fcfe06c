"""How much a store keeps and for how long, and what goes first.

What every sink has goes first, then the oldest dead letters: a sink that refuses everything must
not stop the others. Last, in a store that is told to drop, goes the oldest of what sinks still
need. Whatever goes before its sink had it is counted in the transaction that removes it.

Each transaction removes some events only: SQLite keeps what one changes on the disk besides, and
that is to be had where the disk is short; nor is anybody kept waiting for long.
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

#: Past all numbers.
LAST: Final = (1 << 63) - 1
#: Events that one transaction removes at most, and of how many it removes one.
_SLICE: Final = 200
_PART: Final = 50
#: Of a disk, what is left to others: before that, what every sink has had makes room.
_RESERVE_BYTES: Final = 32 << 20


class Forgotten(NamedTuple):
    """Events that were removed before a sink had them."""

    sink: str
    events: int


class FullError(DeliveryError):
    """There is no room, and nothing that is kept may go."""


class Retention:
    """What a store may hold: ``most_bytes`` on the disk, for ``most_ms``.

    Where there is no room and sinks still need all of it, it ``drops`` the oldest or takes no more.
    """

    def __init__(self, database: Database, *, most_bytes: int, most_ms: int, drops: bool) -> None:
        self.most_bytes = most_bytes
        #: What events take of the disk, as of the last transaction, in bytes.
        self.used_bytes = 0
        #: What of the file is free for new events, in bytes.
        self._free_bytes = 0
        self._database = database
        self._most_ms = most_ms
        self._drops = drops

    def measure(self, connection: sqlite3.Connection) -> None:
        """Look how much there is."""
        (pages,), (free,), (size,) = (
            connection.execute(f"PRAGMA {name}").fetchone()
            for name in ("page_count", "freelist_count", "page_size")
        )
        self.used_bytes, self._free_bytes = (pages - free) * size, free * size

    def make_room(self) -> None:
        """See that there is room for something; raises DeliveryError, which is FullError then."""
        while lack := self._lacks():
            if self._is_disk_short():
                self._database.shorten_log()
            if not self._remove_some():
                raise FullError(lack)

    def _lacks(self) -> str:
        """Why there is no room; empty where there is."""
        path = self._database.path
        if self.used_bytes >= self.most_bytes:
            return (
                f"{path} holds {self.most_bytes} bytes that sinks have not had yet: "
                "it takes no more until they have"
            )
        if self._is_disk_short():
            return (
                f"{path} can't be written (the disk is nearly full, and nothing that is kept may "
                "go): make room"
            )
        return ""

    def _is_disk_short(self) -> bool:
        """Whether what is left of the disk has to be left to others, and to SQLite's own log.

        On a disk without any room it could not even be kept that a sink has got something.
        """
        try:
            free_bytes, reserve_bytes = self._disk()
        except OSError:  # the transaction that follows puts it back, or says what is wrong
            return False
        return free_bytes < reserve_bytes

    def _remove_some(self) -> int:
        """Remove the first events, or dead letters, that may go; how many there were."""
        with self._database.lightly() as connection:
            until = _first(connection)
            gone = _remove(connection, min(until, _needed_beyond(connection)))
            if not gone and self._would_do():
                gone = _forget_dead(connection, LAST)
                if not gone and self._drops:
                    _count_forgotten(connection, until)
                    gone = _remove(connection, until)
            self.measure(connection)
        return gone

    def _would_do(self) -> bool:
        """Whether it is any use to remove what somebody still needs, on a disk that others fill."""
        free_bytes, reserve_bytes = self._disk()
        return free_bytes + self.used_bytes >= reserve_bytes

    def _disk(self) -> tuple[int, int]:
        """The bytes that there are for more events, and of these what is to be left."""
        disk = os.statvfs(self._database.path.parent)
        free_bytes = disk.f_bavail * disk.f_frsize + self._free_bytes
        return free_bytes, min(_RESERVE_BYTES, disk.f_blocks * disk.f_frsize // 4)

    def sweep(self, now_ms: int) -> bool:
        """Remove some of what is too old; whether there may be more. Raises DeliveryError."""
        oldest_ms = now_ms - self._most_ms
        with self._database.lightly() as connection:
            until = _old(connection, oldest_ms)
            _count_forgotten(connection, until)
            gone = _remove(connection, until)
            gone += _forget_dead(connection, oldest_ms)
            self.measure(connection)
        if self._is_disk_short():
            self._database.shorten_log()
        return gone > 0

    def forgotten(self) -> tuple[Forgotten, ...]:
        """What has gone before its sink had it, until that is :meth:`told`."""
        with self._database.at_work() as connection:
            rows = connection.execute("SELECT sink, events FROM forgotten WHERE events > 0")
            return tuple(Forgotten(*row) for row in rows)

    def told(self, forgotten: Sequence[Forgotten]) -> None:
        """It has been told of these."""
        with self._database.at_work() as connection:
            connection.executemany(
                "UPDATE forgotten SET events = events - ? WHERE sink = ?",
                [(each.events, each.sink) for each in forgotten],
            )

    def is_needed(self) -> bool:
        """Whether a sink needs anything of it."""
        with self._database.at_work() as connection:
            (dead,) = connection.execute("SELECT COUNT(*) FROM dead").fetchone()
            (events,) = connection.execute(
                "SELECT COUNT(*) FROM event WHERE number > ?", (_needed_beyond(connection),)
            ).fetchone()
        return bool(dead or events)


def _needed_beyond(connection: sqlite3.Connection) -> int:
    """The number up to which no sink needs anything; past all numbers where there is no sink."""
    (least,) = connection.execute("SELECT MIN(acknowledged) FROM sink").fetchone()
    return LAST if least is None else int(least)


def _count_forgotten(connection: sqlite3.Connection, until: int) -> None:
    for name, acknowledged in connection.execute(
        "SELECT name, acknowledged FROM sink WHERE acknowledged < ?", (until,)
    ).fetchall():
        (number,) = connection.execute(
            "SELECT COUNT(*) FROM event WHERE number > ? AND number <= ?", (acknowledged, until)
        ).fetchone()
        _forget(connection, name, number)


def _remove(connection: sqlite3.Connection, until: int) -> int:
    return int(connection.execute("DELETE FROM event WHERE number <= ?", (until,)).rowcount)


def _forget_dead(connection: sqlite3.Connection, until_ms: int) -> int:
    """Remove the oldest dead letters: how many there were."""
    found = connection.execute(
        "DELETE FROM dead WHERE id IN "
        "(SELECT id FROM dead WHERE since_ms <= ? ORDER BY id LIMIT ?) RETURNING sink",
        (until_ms, _SLICE),
    ).fetchall()
    for name, number in Counter(name for (name,) in found).items():
        _forget(connection, name, number)
    return len(found)


def _forget(connection: sqlite3.Connection, sink: str, events: int) -> None:
    connection.execute(
        "INSERT INTO forgotten VALUES (?, ?) "
        "ON CONFLICT DO UPDATE SET events = events + excluded.events",
        (sink, events),
    )


def _first(connection: sqlite3.Connection) -> int:
    """The number of the last of the first events, few of all; 0 where there are none."""
    first, last = connection.execute(
        "SELECT (SELECT MIN(number) FROM event), (SELECT MAX(number) FROM event)"
    ).fetchone()
    if first is None:
        return 0
    return int(first + max(1, min(_SLICE, (last - first) // _PART)) - 1)


def _old(connection: sqlite3.Connection, oldest_ms: int) -> int:
    """The number of the last of the first events that are all older; 0 where the first isn't."""
    young, last = connection.execute(
        "SELECT MIN(CASE WHEN stored_ms >= ? THEN number END), MAX(number) FROM "
        "(SELECT number, stored_ms FROM event ORDER BY number LIMIT ?)",
        (oldest_ms, _SLICE),
    ).fetchone()
    return int(last or 0) if young is None else int(young) - 1
