"""What is kept on disk: a file of SQLite that survives what becomes of its disk and of its users.

A transaction is there as a whole or not at all, whoever is killed. One file that is damaged is set
aside, and a new one begun. One that somebody removed, or put another one in the place of, while it
is open is put back from what is open (Linux keeps it for as long).

Everything here blocks: call it from one thread at a time.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Final, Literal

import structlog

from ocsf_nft.database_lock import Lock
from ocsf_nft.errors import ClosedError, DeliveryError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_log = structlog.get_logger()

_BUSY_SECONDS: Final = 5.0
#: Beside its file SQLite has these.
_COMPANIONS: Final = ("-wal", "-shm")
#: Little is read twice, and a run is to be small.
_CACHE_KIB: Final = 512
#: Damaged files that are kept.
_MOST_DAMAGED: Final = 9
#: What a log of one large transaction may go on taking of the disk.
_LOG_BYTES: Final = 16 << 20


class Database:
    """One file.

    ``synchronous`` as SQLite has it, in its mode WAL: what is committed under NORMAL survives
    whatever happens to the process, what is committed under FULL a power cut as well. One that
    ``is_ours_alone`` no other process opens so, while it is open.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
        is_ours_alone: bool = False,
    ) -> None:
        self.path = path
        #: What was the matter with a file that was set aside, to be told; None when all is well.
        self.fault: str | None = None
        self._schema = schema
        self._synchronous = synchronous
        self._lock = Lock(path) if is_ours_alone else None
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._is_read_only = False

    def open(self, *, read_only: bool = False) -> None:
        """Open the file, making it where it is missing; one that is damaged is set aside.

        Raises DeliveryError when the disk won't have it; SourceError when it is only to be read
        and can't be.
        """
        self._is_read_only = read_only
        try:
            if not read_only:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                if self._lock is not None:
                    self._lock.hold()
            self._connect()
        except sqlite3.DatabaseError as error:
            if read_only or isinstance(error, sqlite3.OperationalError):
                raise self.failure(error) from error
            self.set_aside(str(error))
        except OSError as error:
            raise self.failure(error) from error

    def close(self) -> None:
        """Close the file."""
        self._disconnect()
        if self._lock is not None:
            self._lock.let_go()

    def _disconnect(self) -> None:
        self._identity = (0, 0)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def remove(self) -> None:
        """Close the file and remove it, and its folder where nothing else is in that."""
        self._disconnect()
        self._unlink("", *_COMPANIONS)
        if self._lock is not None:
            self._lock.remove()
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    def has_moved(self) -> bool:
        """Whether another file has the name of the one that is open."""
        try:
            return self._found() != self._identity
        except OSError:  # not there now: what is open is all there is
            return False

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction, taken back where its body fails.

        What SQLite raises passes through; what it raises at the transaction's own ends does too.
        Use :meth:`at_work` but where damage is to be told from a disk that is full.
        """
        if self._connection is None and self._identity != (0, 0):
            self._connect()  # what was put back could not be opened
        if not self._is_read_only:
            self._follow()
        connection = self._connection
        if connection is None:
            raise RuntimeError("open the database first")
        connection.execute("BEGIN")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            # After some errors SQLite has done so by itself.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def at_work(self) -> Iterator[sqlite3.Connection]:
        """One transaction; raises DeliveryError (SourceError of who only reads) for SQLite's.

        Of a file that turns out to be damaged it is ClosedError: opening it anew sets it aside.
        """
        try:
            with self.transaction() as connection:
                yield connection
        except sqlite3.DatabaseError as error:
            # Those of a disk that is full, and all others, are of a class below.
            if type(error) is sqlite3.DatabaseError and not self._is_read_only:
                raise ClosedError(
                    f"{self.path} is damaged ({error}): start again, which sets it aside"
                ) from error
            raise self.failure(error) from error
        except (sqlite3.Error, OSError) as error:
            raise self.failure(error) from error

    @contextlib.contextmanager
    def lightly(self) -> Iterator[sqlite3.Connection]:
        """As :meth:`at_work`, but a power cut may take it back, whatever ``synchronous`` is."""
        if self._connection is not None:
            self._connection.execute("PRAGMA synchronous = NORMAL")
        try:
            with self.at_work() as connection:
                yield connection
        finally:
            if self._connection is not None:
                self._connection.execute(f"PRAGMA synchronous = {self._synchronous}")

    def shorten_log(self) -> None:
        """Let SQLite's log of what was changed begin anew; raises DeliveryError."""
        try:
            if self._connection is not None:
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:
            raise self.failure(error) from error

    def set_aside(self, fault: str) -> None:
        """Begin a new file in the place of one that is damaged; raises DeliveryError."""
        self._disconnect()
        kept = self._free_name()
        try:
            self.path.replace(kept)
            # What these hold would be taken for the new file's.
            self._unlink(*_COMPANIONS)
            self._connect()
        except (OSError, sqlite3.DatabaseError) as error:
            raise self.failure(error) from error
        self.fault = f"{self.path} is damaged ({fault}): it is set aside as {kept}, and begun anew"

    def _free_name(self) -> Path:
        """Of damaged files the first are kept: what came of them may be told by these alone."""
        names = (f".damaged{number}" for number in ("", *range(2, _MOST_DAMAGED)))
        for path in map(self.path.with_suffix, names):
            if not path.exists():
                return path
        return self.path.with_suffix(f".damaged{_MOST_DAMAGED}")

    def failure(self, error: Exception) -> DeliveryError | SourceError:
        """What SQLite, or the system, could not do, as one sentence."""
        cause = error.strerror if isinstance(error, OSError) else error
        if self._is_read_only:
            return SourceError(f"{self.path} can't be read: {cause}")
        return DeliveryError(
            f"{self.path} can't be written ({cause}): make room or name another --state-dir"
        )

    def _connect(self) -> None:
        if self._is_read_only:
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
            self._connection = sqlite3.connect(
                uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None
            )
            with contextlib.suppress(FileNotFoundError):  # the first question finds that out
                self._identity = self._found()
            return
        # Of its owner alone, whatever the folder permits. SQLite gives its log the same mode. It
        # fails as well where this does, and names the cause.
        with contextlib.suppress(OSError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            connection.executescript(
                f"PRAGMA journal_mode = WAL; PRAGMA synchronous = {self._synchronous}; "
                # Debian's overwrites what is removed, for which a nearly full disk has no room.
                f"PRAGMA secure_delete = FAST; PRAGMA cache_size = -{_CACHE_KIB}; "
                f"PRAGMA journal_size_limit = {_LOG_BYTES}; {self._schema}"
            )
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)  # noqa: TRY301 - as SQLite itself would have
            self._identity = self._found()
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _found(self) -> tuple[int, int]:
        found = self.path.stat()
        return found.st_dev, found.st_ino

    def _follow(self) -> None:
        """Put the file back where it is there no longer.

        Raises OSError, sqlite3.Error, and ClosedError when it is another run's by now.
        """
        if self._lock is not None:
            self._lock.hold()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if self._found() == self._identity:
                return
        old = self._connection
        if old is None:
            return
        new = self.path.with_name(f"{self.path.name}.new")
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(new)) as copy:
            old.backup(copy)
        self._unlink(*_COMPANIONS)
        new.replace(self.path)
        # Now, while the new file has no log of this name: closing removes the log by its name.
        old.close()
        self._connection = None
        self._connect()
        _log.warning("a file that was removed or replaced while it was used is put back",
                     path=str(self.path))  # fmt: skip

    def _unlink(self, *suffixes: str) -> None:
        for suffix in suffixes:
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
