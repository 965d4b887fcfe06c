"""Access to a state database from another process than the service; all functions block.

The service can write to the store at the same time.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, Self

from ocsf_nft.errors import AbsentError, SourceError, UnsupportedError
from ocsf_nft.state.change import Account
from ocsf_nft.state.database import Database, has_table
from ocsf_nft.state.retention import LAST
from ocsf_nft.state.state_db import FILE, StoredEvent, read_account, read_events

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Rows that one transaction reads: while it reads, the run can't remove them.
_ROWS: Final = 500


def stores(folder: Path) -> list[Path]:
    """Return the state databases of all runs below a state directory.

    Raises AbsentError if there are none, UnsupportedError if the directory can't be read.
    """
    paths = (folder / FILE, *sorted(folder.glob(f"*/{FILE}")))
    # Path.is_file raises PermissionError or returns False, depending on the version of Python.
    found = [path for path in paths if os.path.isfile(path)]  # noqa: PTH113
    if not found and folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise UnsupportedError(
            f"{folder} can't be read: run as root, or as a member of the group of a service's "
            "control socket"
        )
    if not found:
        raise AbsentError(
            f"{folder} holds no events: name the --state-dir of a run, or the --store"
        )
    return found


class Archive:
    """Reader of a state database, to which a service may write at the same time.

    All methods raise SourceError if the database file can't be read.
    """

    def __init__(self, path: Path, identity: str | None = None) -> None:
        """Create a reader of the file ``path``; with ``identity``, only of that database."""
        self.path = path
        self._identity = identity
        self._database = Database(path, "")

    def __enter__(self) -> Self:
        """Open the database file; raises SourceError also if it is another database."""
        self._database.open(read_only=True)
        try:
            self._check_identity()
        except BaseException:
            self._database.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close the database file."""
        self._database.close()

    def is_replaced(self) -> bool:
        """Return True if another file is now at the path."""
        return self._database.is_replaced()

    def follow(self, last: StoredEvent | None) -> StoredEvent | None:
        """Open the database file again if another file has replaced it.

        Return ``last``, the event that was read last, if reading can continue after that event.
        Return None if the new file lacks that event: then the file must be read from the start.
        """
        if not self._database.is_replaced():
            return last
        new = Database(self.path, "")
        new.open(read_only=True)
        with new.transaction() as connection:
            is_created = has_table(connection, "event")
        if not is_created:  # a run is creating the file, and has stored no event in it yet
            new.close()
            return last
        self._database.close()
        self._database = new
        # A restored store may no longer have the event, because it was too old or there was no
        # room. Then all earlier events are removed as well, since the oldest are removed first, and
        # all the others are still unread. If that is wrong, reading twice is better than never.
        return last if last and self._rows("number = ?", last.number) == [last] else None

    def newest(self, until: int = LAST) -> Iterator[StoredEvent]:
        """Yield the events with numbers up to and including ``until``, the newest first."""
        while rows := self._rows("number <= ? ORDER BY number DESC", until):
            yield from rows
            until = rows[-1].number - 1

    def beyond(self, number: int, until: int = LAST) -> Iterator[StoredEvent]:
        """Yield the events with numbers above ``number``, up to ``until`` (included), in order."""
        while rows := self._rows("number > ? AND number <= ? ORDER BY number", number, until):
            yield from rows
            number = rows[-1].number

    def read(
        self, beyond: int, until: int = LAST, *, events: int = LAST, size: int = LAST
    ) -> list[StoredEvent]:
        """Return events with numbers above ``beyond``, see :func:`state_db.read_events`."""
        with self._database.transaction() as connection:
            return read_events(connection, beyond, until, events=events, size=size)

    def number_of(self, uid: str) -> int:
        """Return the number of the event with this ``metadata.uid``; 0 if it is not stored."""
        rows = self._query("SELECT number FROM event WHERE uid = ?", uid)
        return int(rows[0][0]) if rows else 0

    def last_before(self, stored_ms: int) -> int:
        """Return the number of the last event that was stored before ``stored_ms``, or 0.

        ``stored_ms`` is in ms since the epoch. An event that is no longer stored may be returned.
        """
        bounds = self._query(
            "SELECT (SELECT MIN(number) FROM event), (SELECT MAX(number) FROM event)"
        )
        if not bounds or bounds[0][0] is None:
            return 0
        # Numbers have gaps, and times of storage ascend with them.
        first, last = bounds[0]
        while first <= last:
            middle = (first + last) // 2
            (found,) = self._query(
                "SELECT stored_ms FROM event WHERE number >= ? ORDER BY number LIMIT 1", middle
            )[:1] or [(stored_ms,)]
            if found[0] < stored_ms:
                first = middle + 1
            else:
                last = middle - 1
        return int(last)

    def count_beyond(self, number: int) -> int:
        """Return the number of stored events with numbers above ``number``."""
        rows = self._query("SELECT COUNT(*) FROM event WHERE number > ?", number)
        return int(rows[0][0]) if rows else 0

    def account(self, sandbox: str) -> Account:
        """Return the stored account of a sandbox; empty if none is stored."""
        with self._database.transaction() as connection:
            is_created = has_table(connection, "event")
            return read_account(connection, sandbox) if is_created else Account()

    def _check_identity(self) -> None:
        expected = None if self._identity is None else [(self._identity,)]
        if expected is not None and self._query("SELECT id FROM identity") != expected:
            raise SourceError(f"{self.path} is not the database that was there before")

    def _rows(self, condition: str, *numbers: int) -> list[StoredEvent]:
        query = f"SELECT number, uid, stored_ms, line FROM event WHERE {condition} LIMIT ?"  # noqa: S608 - our own text
        return [StoredEvent(*row) for row in self._query(query, *numbers, _ROWS)]

    def _query(self, query: str, *parameters: object) -> list[Any]:
        with self._database.transaction() as connection:
            # A service creates the tables shortly after the file.
            return (
                connection.execute(query, parameters).fetchall()
                if has_table(connection, "event")
                else []
            )
