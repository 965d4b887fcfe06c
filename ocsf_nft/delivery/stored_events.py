"""A store as others than its run look at it: what it holds, and how far each sink is.

Whoever runs goes on meanwhile. Everything here blocks.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from ocsf_nft.database import Database
from ocsf_nft.delivery.event_db import FILE, Dead
from ocsf_nft.delivery.retention import LAST
from ocsf_nft.errors import AbsentError, DeliveryError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Rows that are read in one go: what is read in one transaction, the run can't clear away.
_ROWS: Final = 500


class Kept(NamedTuple):
    """An event in a store: its number there, and when it was put (ms since the epoch, UTC)."""

    number: int
    stored_ms: int
    line: bytes


class Standing(NamedTuple):
    """How a sink stands: the events that it has yet to get, and its dead letters."""

    sink: str
    waiting: int
    dead: int


def stores(folder: Path) -> list[Path]:
    """The stores below a state directory; raises AbsentError when there is none."""
    found = [path for path in (folder / FILE, *sorted(folder.glob(f"*/{FILE}"))) if path.is_file()]
    if not found:
        raise AbsentError(
            f"{folder} holds no events: name the --state-dir of a run, or the --store"
        )
    return found


class Archive:
    """One store, opened to be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = Database(path, "")

    def __enter__(self) -> Self:
        """Open it; raises SourceError."""
        self._database.open(read_only=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._database.close()

    def follow(self, last: Kept | None) -> Kept | None:
        """Go over to the file that has our name now, where it is another one; raises SourceError.

        ``last`` is the event that was read last. Returned is the one to go on behind, None for the
        beginning: a run puts back a store that somebody removed as another file with the same
        numbers, but where one was begun anew they are other events'.
        """
        if not self._database.has_moved():
            return last
        new = Database(self.path, "")
        new.open(read_only=True)
        with new.at_work() as connection:
            is_begun = _is_begun(connection)
        if not is_begun:  # a run is creating the file, and has stored no event in it yet
            new.close()
            return last
        self._database.close()
        self._database = new
        # What was put back holds it no more where it was too old, or there was no room: then what
        # was before it is gone as well, since the oldest go first, and all the rest is yet to be
        # read. Should it be otherwise, to read something twice is better than never.
        return last if last and self._rows("number = ?", last.number) == [last] else None

    def newest(self, until: int = LAST) -> Iterator[Kept]:
        """The events up to a number, the last one first; raises SourceError."""
        while rows := self._rows("number <= ? ORDER BY number DESC", until):
            yield from rows
            until = rows[-1].number - 1

    def beyond(self, number: int, until: int = LAST) -> Iterator[Kept]:
        """The events with a higher number, up to another one, in order; raises SourceError."""
        while rows := self._rows("number > ? AND number <= ? ORDER BY number", number, until):
            yield from rows
            number = rows[-1].number

    def dead(self, sink: str | None = None) -> Iterator[Dead]:
        """The dead letters, of one sink or of all, in order; raises SourceError."""
        last = 0
        query = "SELECT * FROM dead WHERE id > ? AND sink = IFNULL(?, sink) ORDER BY id LIMIT ?"
        while rows := self._found(query, last, sink, _ROWS):
            yield from (Dead(*row) for row in rows)
            last = rows[-1][0]

    def standings(self) -> list[Standing]:
        """How each sink stands; raises SourceError."""
        rows = self._found(
            "SELECT name, (SELECT COUNT(*) FROM event WHERE number > acknowledged), "
            "(SELECT COUNT(*) FROM dead WHERE sink = name) FROM sink ORDER BY name"
        )
        return [Standing(*row) for row in rows]

    def _rows(self, which: str, *numbers: int) -> list[Kept]:
        query = f"SELECT number, stored_ms, line FROM event WHERE {which} LIMIT ?"  # noqa: S608 - ours
        return [Kept(*row) for row in self._found(query, *numbers, _ROWS)]

    def _found(self, query: str, *parameters: object) -> list[Any]:
        """Return the rows of a query; no rows if a run has only created the file so far."""
        with self._database.at_work() as connection:
            return connection.execute(query, parameters).fetchall() if _is_begun(connection) else []


def _is_begun(connection: sqlite3.Connection) -> bool:
    found = connection.execute("SELECT name FROM sqlite_master WHERE name = 'event'")
    return found.fetchone() is not None


def retry(path: Path, sink: str | None, uid: str | None) -> int:
    """Have dead letters tried again, of one sink and uid or of all; how many.

    The run that has the store sends them within seconds, or the next one does. Raises
    DeliveryError.
    """
    # Not as its owner opens it, who sets aside what is damaged.
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
