"""How much a store keeps and for how long, and what goes first.

What every sink has goes first. Then, in a store that holds as much as it may, the oldest dead
letters, and before these, where it is told to drop, the oldest of what sinks still need. Whatever
goes before its sink had it is counted in the transaction that removes it.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from pathlib import Path

#: Past all numbers.
LAST: Final = (1 << 63) - 1
#: Events that are removed in one transaction.
_SLICE: Final = 2000
#: Of a disk, what is left to others: before that, what every sink has had makes room.
_RESERVE_BYTES: Final = 32 << 20
#: Of what the store may hold, what is left when room was made: it is not made for each event.
_LEFT: Final = 0.9


class Forgotten(NamedTuple):
    """Events that were removed before a sink had them."""

    sink: str
    events: int


class FullError(DeliveryError):
    """The store holds as much as it may, and sinks still need all of it."""


class Retention:
    """What the store at ``path`` may hold: ``most_bytes`` on the disk, for ``most_ms``.

    Where it is full of what sinks still need, it ``drops`` the oldest of that or takes no more.
    """

    def __init__(self, path: Path, *, most_bytes: int, most_ms: int, drops: bool) -> None:
        self.most_bytes = most_bytes
        #: What events take of the disk, as of the last transaction, in bytes.
        self.used_bytes = 0
        #: What of the file is free for new events, in bytes.
        self._free_bytes = 0
        self._path = path
        self._most_ms = most_ms
        self._drops = drops

    def measure(self, connection: sqlite3.Connection) -> None:
        """Look how much there is."""
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        self.used_bytes, self._free_bytes = (pages - free) * size, free * size

    def make_room(self, connection: sqlite3.Connection) -> None:
        """See that there is room for something; raises FullError."""
        if self.used_bytes >= self.most_bytes:
            self._make_room(connection, self.most_bytes)
            if self.used_bytes >= self.most_bytes:
                raise FullError(
                    f"{self._path} holds {self.most_bytes} bytes that sinks have not had yet: "
                    "it takes no more until they have"
                )
        elif self._is_disk_short():
            self._make_room(connection, self.used_bytes)
            if self._is_disk_short():
                raise FullError(
                    f"{self._path} can't be written (the disk is nearly full, and sinks have "
                    "not had yet what is kept): make room"
                )

    def _is_disk_short(self) -> bool:
        """Whether what is left of the disk has to be left to others, and to SQLite's own log.

        On a disk without any room it could not even be kept that a sink has got something.
        """
        disk = os.statvfs(self._path.parent)
        reserve = min(_RESERVE_BYTES, disk.f_blocks * disk.f_frsize // 4)
        return disk.f_bavail * disk.f_frsize + self._free_bytes < reserve

    def _make_room(self, connection: sqlite3.Connection, most_bytes: int) -> None:
        """Remove the oldest events, to some less than so many bytes, but none that is needed."""
        needed, is_full = needed_beyond(connection), self.used_bytes >= self.most_bytes
        (events,) = connection.execute("SELECT COUNT(*) FROM event").fetchone()
        some = max(1, min(_SLICE, events // 20))
        while self.used_bytes >= most_bytes * _LEFT:
            until = _first(connection, some)
            if is_full and self._drops and until > needed:
                _count_forgotten(connection, until)
            else:
                until = min(until, needed)
            gone = connection.execute("DELETE FROM event WHERE number <= ?", (until,)).rowcount
            # A sink that refuses everything must not stop the others.
            if not gone and is_full:
                gone = _forget_dead(connection, some, LAST)
            if not gone:
                break
            self.measure(connection)

    def sweep(self, connection: sqlite3.Connection, now_ms: int) -> None:
        """Remove what is too old."""
        oldest_ms = now_ms - self._most_ms
        while (until := _old(connection, oldest_ms)) is not None:
            _count_forgotten(connection, until)
            connection.execute("DELETE FROM event WHERE number <= ?", (until,))
        while _forget_dead(connection, _SLICE, oldest_ms):
            pass
        self.measure(connection)


def needed_beyond(connection: sqlite3.Connection) -> int:
    """The number up to which no sink needs anything; past all numbers where there is no sink."""
    (least,) = connection.execute("SELECT MIN(acknowledged) FROM sink").fetchone()
    return LAST if least is None else int(least)


def forgotten(connection: sqlite3.Connection) -> tuple[Forgotten, ...]:
    """What has gone before its sink had it, till that is :func:`told`."""
    rows = connection.execute("SELECT sink, events FROM forgotten WHERE events > 0")
    return tuple(Forgotten(*row) for row in rows)


def told(connection: sqlite3.Connection, found: Sequence[Forgotten]) -> None:
    """It has been told of these."""
    connection.executemany(
        "UPDATE forgotten SET events = events - ? WHERE sink = ?",
        [(each.events, each.sink) for each in found],
    )


def _count_forgotten(connection: sqlite3.Connection, until: int) -> None:
    for name, acknowledged in connection.execute(
        "SELECT name, acknowledged FROM sink WHERE acknowledged < ?", (until,)
    ).fetchall():
        (number,) = connection.execute(
            "SELECT COUNT(*) FROM event WHERE number > ? AND number <= ?", (acknowledged, until)
        ).fetchone()
        _forget(connection, name, number)


def _forget_dead(connection: sqlite3.Connection, letters: int, until_ms: int) -> int:
    """Remove the oldest dead letters: how many there were."""
    found = connection.execute(
        "DELETE FROM dead WHERE id IN "
        "(SELECT id FROM dead WHERE since_ms <= ? ORDER BY id LIMIT ?) RETURNING sink",
        (until_ms, letters),
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


def _first(connection: sqlite3.Connection, events: int) -> int:
    """The number of the last of the first so many events; 0 where there are none."""
    row = connection.execute(
        "SELECT MAX(number) FROM (SELECT number FROM event ORDER BY number LIMIT ?)", (events,)
    ).fetchone()
    return int(row[0] or 0)


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
