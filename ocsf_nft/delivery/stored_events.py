"""Access to an event store from a process other than the service; all functions block.

The service can write to the store at the same time.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from ocsf_nft.database import Database
from ocsf_nft.delivery.event_db import FILE, DeadLetter
from ocsf_nft.delivery.retention import LAST
from ocsf_nft.errors import AbsentError, DeliveryError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Rows that one transaction reads: while it reads, the run can't remove them.
_ROWS: Final = 500


class ArchivedEvent(NamedTuple):
    """Stored event: its number, when it was stored (ms since the epoch, UTC), and its JSON line."""

    number: int
    stored_ms: int
    line: bytes


class SinkBacklog(NamedTuple):
    """Counts of undelivered events (``waiting``) and of events that the sink refused (``dead``)."""

    sink: str
    waiting: int
    dead: int


def stores(folder: Path) -> list[Path]:
    """Return the database files of all event stores below a state directory.

    Raises AbsentError if there are none.
    """
    found = [path for path in (folder / FILE, *sorted(folder.glob(f"*/{FILE}"))) if path.is_file()]
    if not found:
        raise AbsentError(
            f"{folder} holds no events: name the --state-dir of a run, or the --store"
        )
    return found


class Archive:
    """Reader of an event store's database file, to which a service may write at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = Database(path, "")

    def __enter__(self) -> Self:
        """Open the database file; raises SourceError."""
        self._database.open(read_only=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Close the database file."""
        self._database.close()

    def follow(self, last: ArchivedEvent | None) -> ArchivedEvent | None:
        """Open the database file again if another file has replaced it.

        Return ``last``, the event that was read last, if reading can continue after that event.
        Return None if the new file lacks that event: then the file must be read from the start.
        Raises SourceError if the new file can't be read.
        """
        if not self._database.is_replaced():
            return last
        new = Database(self.path, "")
        new.open(read_only=True)
        with new.transaction() as connection:
            is_created = _is_created(connection)
        if not is_created:  # a run is creating the file, and has stored no event in it yet
            new.close()
            return last
        self._database.close()
        self._database = new
        # A restored store may no longer have the event, because it was too old or there was no
        # room. Then all earlier events are removed as well, since the oldest are removed first, and
        # all the others are still unread. If that is wrong, reading twice is better than never.
        return last if last and self._rows("number = ?", last.number) == [last] else None

    def newest(self, until: int = LAST) -> Iterator[ArchivedEvent]:
        """Yield the events with numbers up to and including ``until``, the newest first.

        Raises SourceError if the database file can't be read.
        """
        while rows := self._rows("number <= ? ORDER BY number DESC", until):
            yield from rows
            until = rows[-1].number - 1

    def beyond(self, number: int, until: int = LAST) -> Iterator[ArchivedEvent]:
        """Yield the events with numbers above ``number``, up to and including ``until``, in order.

        Raises SourceError if the database file can't be read.
        """
        while rows := self._rows("number > ? AND number <= ? ORDER BY number", number, until):
            yield from rows
            number = rows[-1].number

    def dead_letters(self, sink: str | None = None) -> Iterator[DeadLetter]:
        """Yield the dead letters of a sink, oldest first; with None, those of all sinks.

        A dead letter is an event that a sink refused. Raises SourceError if the database file can't
        be read.
        """
        last = 0
        query = "SELECT * FROM dead WHERE id > ? AND sink = IFNULL(?, sink) ORDER BY id LIMIT ?"
        while rows := self._query(query, last, sink, _ROWS):
            yield from (DeadLetter(*row) for row in rows)
            last = rows[-1][0]

    def sink_backlogs(self) -> list[SinkBacklog]:
        """Return the backlog of each sink.

        Raises SourceError if the database file can't be read.
        """
        rows = self._query(
            "SELECT name, (SELECT COUNT(*) FROM event WHERE number > acknowledged), "
            "(SELECT COUNT(*) FROM dead WHERE sink = name) FROM sink ORDER BY name"
        )
        return [SinkBacklog(*row) for row in rows]

    def _rows(self, condition: str, *numbers: int) -> list[ArchivedEvent]:
        query = f"SELECT number, stored_ms, line FROM event WHERE {condition} LIMIT ?"  # noqa: S608 - our own text
        return [ArchivedEvent(*row) for row in self._query(query, *numbers, _ROWS)]

    def _query(self, query: str, *parameters: object) -> list[Any]:
        with self._database.transaction() as connection:
            # A service creates the tables shortly after the file.
            return (
                connection.execute(query, parameters).fetchall() if _is_created(connection) else []
            )


def _is_created(connection: sqlite3.Connection) -> bool:
    try:
        found = connection.execute("SELECT name FROM sqlite_master WHERE name = 'event'")
    except sqlite3.OperationalError as error:
        # A run was killed while it created the file. Only before the file has a write-ahead log, so
        # before it has an event, there is a journal that a reader can't roll back.
        if error.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK:
            return False
        raise
    return found.fetchone() is not None


def retry_dead_letters(path: Path, sink: str | None, uid: str | None) -> int:
    """Request a retry of dead letters in the store ``path``; return how many were selected.

    A dead letter is an event that a sink refused. ``sink`` and the event's ``uid`` select dead
    letters; None means any. A running service sends the selected dead letters within seconds.
    Raises DeliveryError if the store can't be written.
    """
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
