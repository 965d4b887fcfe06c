"""Access to the dead letters and checkpoints of sinks from another process than the service.

A dead letter is an event that a sink has refused. All functions block. The service can write to the
files at the same time.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from ocsf_nft.delivery.sink_db import DeadLetter, path_of
from ocsf_nft.errors import DeliveryError
from ocsf_nft.state.database import Database, has_table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocsf_nft.state.archive import Archive

#: Rows that one transaction reads.
_ROWS: Final = 500


class SinkBacklog(NamedTuple):
    """Counts of a sink's undelivered events (``waiting``) and of its refused events (``dead``)."""

    sink: str
    waiting: int
    dead: int


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
