"""SQLite file that is replaced if it is damaged, and restored if another process deletes it.

All functions block. Only one thread at a time may call them.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Final, Literal

import structlog

from ocsf_nft.database_lock import FileLock
from ocsf_nft.errors import ClosedError, DeliveryError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_log = structlog.get_logger()

_BUSY_SECONDS: Final = 5.0
#: Suffixes of the files that SQLite creates beside the database.
_COMPANIONS: Final = ("-wal", "-shm")
#: Small, because few pages are read twice and the process must use little memory.
_CACHE_KIB: Final = 512
#: Quarantined files, at most.
_MAX_DAMAGED: Final = 9
#: Size of SQLite's write-ahead log that remains on the disk after a large transaction.
_LOG_BYTES: Final = 16 << 20


class Database:
    """SQLite database that restores its file, with all data, if the file is deleted or replaced.

    A committed transaction survives a crash of the process. If ``synchronous`` is FULL, the
    transaction also survives a power cut. With ``is_exclusive``, only one process at a time can
    open the file for writing.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
        is_exclusive: bool = False,
    ) -> None:
        self.path = path
        #: Report about a quarantined file; None if no file was quarantined.
        self.fault: str | None = None
        self._schema = schema
        self._synchronous = synchronous
        self._lock = FileLock(path) if is_exclusive else None
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._is_read_only = False

    def open(self, *, read_only: bool = False) -> None:
        """Open the database file; create a missing file, rename and replace a damaged file.

        With ``read_only``, no file is created or renamed, and every failure raises SourceError.
        Without ``read_only``, raises ClosedError if another process has locked the file for
        writing, and DeliveryError for any other failure.
        """
        # With read_only, damage of the file is not found here, but at the first transaction.
        self._is_read_only = read_only
        try:
            if not read_only:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                if self._lock is not None:
                    self._lock.acquire()
            self._connect()
        except sqlite3.DatabaseError as error:
            if read_only or isinstance(error, sqlite3.OperationalError):
                raise self.failure(error) from error
            self.quarantine(str(error))
        except OSError as error:
            raise self.failure(error) from error

    def close(self) -> None:
        """Close the database file and release its lock."""
        self._disconnect()
        if self._lock is not None:
            self._lock.release()

    def _disconnect(self) -> None:
        self._identity = (0, 0)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def remove(self) -> None:
        """Close and delete the database file; also delete its folder if that is then empty."""
        self._disconnect()
        self._unlink("", *_COMPANIONS)
        if self._lock is not None:
            self._lock.remove()
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    def is_replaced(self) -> bool:
        """Return true if the database's path has a file that is not the opened database file."""
        try:
            return self._file_identity() != self._identity
        except OSError:
            return False

    @contextlib.contextmanager
    def raw_transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the ``with`` body as one transaction, which is rolled back if the body raises.

        Errors of SQLite are raised unchanged. This method is only for callers that handle
        damage of the file themselves. All others use :meth:`transaction`.
        """
        if self._connection is None and self._identity != (0, 0):
            self._connect()  # an earlier try could not open the restored file
        if not self._is_read_only:
            self._restore_if_removed()
        connection = self._connection
        if connection is None:
            raise RuntimeError("open the database first")
        connection.execute("BEGIN")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            # After some errors SQLite has rolled back by itself.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the ``with`` body as one transaction, which is rolled back if the body raises.

        If the file is open read-only, every failure of the database raises SourceError. Otherwise,
        raises ClosedError if the file is damaged or another process has locked it. Raises
        DeliveryError for other failures. The next :meth:`open` renames a damaged file.
        """
        try:
            with self.raw_transaction() as connection:
                yield connection
        except sqlite3.DatabaseError as error:
            # A full disk, and all other causes, raise a subclass.
            if type(error) is sqlite3.DatabaseError and not self._is_read_only:
                raise ClosedError(
                    f"{self.path} is damaged ({error}): restart, which quarantines it"
                ) from error
            raise self.failure(error) from error
        except (sqlite3.Error, OSError) as error:
            raise self.failure(error) from error

    @contextlib.contextmanager
    def unsynced_transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the ``with`` body as a transaction without sync to disk, so a power cut may undo it.

        Raises the errors of :meth:`transaction`.
        """
        if self._connection is not None:
            self._connection.execute("PRAGMA synchronous = NORMAL")
        try:
            with self.transaction() as connection:
                yield connection
        finally:
            if self._connection is not None:
                self._connection.execute(f"PRAGMA synchronous = {self._synchronous}")

    def checkpoint_log(self) -> None:
        """Copy SQLite's write-ahead log into the database file; then the log's space can be reused.

        Does nothing if the database is not open. Raises DeliveryError if the file can't be written.
        """
        try:
            if self._connection is not None:
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:
            raise self.failure(error) from error

    def quarantine(self, fault: str) -> None:
        """Rename the damaged database file, and create a new one.

        ``fault`` describes the damage. This method also sets the attribute :attr:`fault` to a
        message for the user. Raises DeliveryError if the renaming or the creation fails.
        """
        self._disconnect()
        quarantined = self._free_name()
        try:
            self.path.replace(quarantined)
            # SQLite would take them for companions of the new file.
            self._unlink(*_COMPANIONS)
            self._connect()
        except (OSError, sqlite3.DatabaseError) as error:
            raise self.failure(error) from error
        self.fault = (
            f"{self.path} is damaged ({fault}): it was renamed to {quarantined}, and a new file "
            "was created"
        )

    def _free_name(self) -> Path:
        names = (f".damaged{number}" for number in ("", *range(2, _MAX_DAMAGED)))
        for path in map(self.path.with_suffix, names):
            if not path.exists():
                return path
        # Only the last file is overwritten: the oldest ones may show the cause of the damage.
        return self.path.with_suffix(f".damaged{_MAX_DAMAGED}")

    def failure(self, error: Exception) -> DeliveryError | SourceError:
        """Convert an error of SQLite or of the system to an error of this package, and return it.

        The result is a SourceError if the file is open for reading only, else a
        DeliveryError.
        """
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
            with contextlib.suppress(FileNotFoundError):  # the first query fails then
                self._identity = self._file_identity()
            return
        # Only the owner may read the file, whatever the folder's mode. SQLite gives its log the
        # same mode. If this fails, SQLite fails as well and names the cause.
        with contextlib.suppress(OSError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            connection.executescript(
                f"PRAGMA journal_mode = WAL; PRAGMA synchronous = {self._synchronous}; "
                # Debian's SQLite overwrites deleted rows; a nearly full disk has no room for that.
                f"PRAGMA secure_delete = FAST; PRAGMA cache_size = -{_CACHE_KIB}; "
                f"PRAGMA journal_size_limit = {_LOG_BYTES}; {self._schema}"
            )
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)  # noqa: TRY301 - as SQLite itself raises it
            self._identity = self._file_identity()
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _file_identity(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_dev, status.st_ino

    def _restore_if_removed(self) -> None:
        """Write the open database to its path again, if its file there was deleted or replaced.

        Raises OSError or sqlite3.Error if the writing fails. Raises ClosedError if the constructor
        argument ``is_exclusive`` was true and another process has the lock.
        """
        if self._lock is not None:
            self._lock.acquire()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if self._file_identity() == self._identity:
                return
        old = self._connection
        if old is None:
            return
        new = self.path.with_name(f"{self.path.name}.new")
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        # Linux preserves a deleted file as long as it is open.
        with contextlib.closing(sqlite3.connect(new)) as copy:
            old.backup(copy)
        self._unlink(*_COMPANIONS)
        new.replace(self.path)
        # Close before the new file has a log: SQLite deletes the log by its name when it closes.
        old.close()
        self._connection = None
        self._connect()
        _log.warning("restored a file that was removed or replaced while it was open",
                     path=str(self.path))  # fmt: skip

    def _unlink(self, *suffixes: str) -> None:
        for suffix in suffixes:
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
