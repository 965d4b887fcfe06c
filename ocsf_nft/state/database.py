"""SQLite file that is replaced if it is damaged, and restored if another process deletes it.

All functions block. Only one thread at a time may call them.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import structlog

from ocsf_nft.errors import ClosedError, DeliveryError, SourceError
from ocsf_nft.state.database_lock import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_log = structlog.get_logger()

#: ``NORMAL``: a committed transaction survives a crash of the process. ``FULL``: also a power cut.
Synchronous: TypeAlias = Literal["NORMAL", "FULL"]

#: How long a reader waits for another process's lock.
_BUSY_SECONDS: Final = 5.0
#: The same for the service while it runs: it must not stop meanwhile, and tries again later.
_SERVICE_BUSY_MS: Final = 20
#: Suffixes of the files that SQLite creates beside the database.
_COMPANIONS: Final = ("-wal", "-shm")
#: Suffix of the new file that replaces a damaged one, with a report in it.
_RENEWED: Final = ".renewed"
#: Small, because few pages are read twice and the process must use little memory.
_CACHE_KIB: Final = 512
#: Quarantined files, at most.
_MAX_DAMAGED: Final = 9
#: Size of SQLite's write-ahead log that remains on the disk after a large transaction.
_LOG_BYTES: Final = 16 << 20
#: Reports about damaged files that were renamed, until they are confirmed.
_FAULTS: Final = "CREATE TABLE IF NOT EXISTS fault (report TEXT NOT NULL);"


class Database:
    """SQLite database that restores its file, with all data, if the file is deleted or replaced.

    ``synchronous`` is how a transaction is stored (:data:`Synchronous`). With ``is_exclusive``,
    only one process at a time can open the file for writing. After ``log_pages`` pages in SQLite's
    write-ahead log, a transaction copies the log into the database file.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        synchronous: Synchronous = "NORMAL",
        is_exclusive: bool = False,
        log_pages: int = 1000,
    ) -> None:
        self.path = path
        self._schema = _FAULTS + schema
        self._log_pages = log_pages
        self._synchronous = synchronous
        self._lock = FileLock(path) if is_exclusive else None
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._is_read_only = False
        #: Damage that was found after the opening; None if there is none.
        self._damage: str | None = None
        #: Value of ``synchronous`` in the connection.
        self._present = synchronous

    def open(self, *, read_only: bool = False) -> None:
        """Open the database file; create a missing file, rename and replace a damaged file.

        With ``read_only``, no file is created or renamed, and every failure raises SourceError.
        Without ``read_only``, raises ClosedError if another process has locked the file for
        writing, and DeliveryError for any other failure.
        """
        # With read_only, damage of the file is not found here, but at the first transaction.
        self._is_read_only = read_only
        self._damage = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        try:
            if not self._is_read_only:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                if self._lock is not None:
                    self._lock.acquire()
                if self._beside(_RENEWED).exists():  # a quarantine was interrupted
                    self._replace_damaged(self._free_name())
            self._connect()
        except sqlite3.DatabaseError as error:
            if self._is_read_only or isinstance(error, sqlite3.OperationalError):
                raise self.failure(error) from error
            self._quarantine(str(error))
            try:
                self._connect()
            except (OSError, sqlite3.Error) as again:
                raise self.failure(again) from again
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

    def is_replaced(self) -> bool:
        """Return true if another file is now at the database's path."""
        try:
            return self._file_identity() != self._identity
        except OSError:
            return False

    @contextlib.contextmanager
    def _raw_transaction(self, synchronous: Synchronous) -> Iterator[sqlite3.Connection]:
        if self._damage is not None:
            raise ClosedError(self._damage)
        if self._connection is None and self._identity != (0, 0):
            self._connect()  # an earlier try could not open the restored file
        if not self._is_read_only:
            self._restore_if_removed()
        connection = self._connection
        if connection is None:
            raise RuntimeError("open the database first")
        if not self._is_read_only and synchronous != self._present:
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            self._present = synchronous
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
    def transaction(self, synchronous: Synchronous | None = None) -> Iterator[sqlite3.Connection]:
        """Run the ``with`` body as one transaction, which is rolled back if the body raises.

        ``synchronous`` replaces the database's own value for this transaction. Raises ClosedError
        if the file is damaged, then and ever after, or locked by another process. Other failures
        raise DeliveryError. If the file is open read-only, all failures raise SourceError.
        """
        try:
            with self._raw_transaction(synchronous or self._synchronous) as connection:
                yield connection
        except sqlite3.DatabaseError as error:
            # A full disk, and all other causes, raise a subclass.
            if type(error) is sqlite3.DatabaseError and not self._is_read_only:
                raise ClosedError(self._close_damaged(str(error))) from error
            raise self.failure(error) from error
        except (sqlite3.Error, OSError) as error:
            raise self.failure(error) from error

    @property
    def log_bytes(self) -> int:
        """Return the size of SQLite's write-ahead log on the disk."""
        try:
            return self._beside("-wal").stat().st_size
        except OSError:
            return 0

    def try_to_checkpoint_log(self) -> None:
        """Copy SQLite's write-ahead log into the database file, and shorten the log's file.

        Does nothing if the database is not open, or the file can't grow any more.
        """
        with contextlib.suppress(sqlite3.Error):
            if self._connection is not None:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def checkpoint_log_in_thread(self) -> None:
        """Copy SQLite's write-ahead log into the database file; any thread may call this.

        The call uses a new connection, so the thread that writes is not blocked. Does nothing if
        the file is missing. Raises DeliveryError if the file can't be written.
        """
        # The mode prevents the creation of a file in place of one that was deleted.
        uri = f"{self.path.absolute().as_uri()}?mode=rw"
        try:
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:
            if self.path.exists():
                raise self.failure(error) from error

    def _close_damaged(self, fault: str) -> str:
        """Quarantine the open file; return the text with which later transactions fail."""
        # The caller's objects have content of the damaged file: only a restart makes new ones.
        self._damage = f"{self.path} was damaged ({fault}): restart the service"
        try:
            self._quarantine(fault)
        except DeliveryError as error:  # the next start finds the damage again
            _log.error("a damaged file could not be renamed", reason=str(error))
        self._disconnect()
        return self._damage

    def _quarantine(self, fault: str) -> None:
        """Rename the damaged database file, and put a new one in its place.

        ``fault`` describes the damage. The new file has a report, see :meth:`faults`. If this is
        interrupted, the next opening goes on. Raises DeliveryError if the disk can't be written.
        """
        quarantined = self._free_name()
        report = (
            f"{self.path} was damaged ({fault}): it was renamed to {quarantined}, and a new file "
            "was created"
        )
        new, renewed = self._beside(".new"), self._beside(_RENEWED)
        try:
            new.unlink(missing_ok=True)
            os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            with contextlib.closing(sqlite3.connect(new)) as connection:
                connection.executescript(f"BEGIN; {self._schema} COMMIT;")
                with connection:
                    connection.execute("INSERT INTO fault VALUES (?)", (report,))
            new.replace(renewed)
            self._replace_damaged(quarantined)
        except (OSError, sqlite3.DatabaseError) as error:
            raise self.failure(error) from error

    def _replace_damaged(self, quarantined: Path) -> None:
        # With its log, which may have the latest transactions: first renamed, then closed, because
        # SQLite deletes the log of a file that it closes.
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                self._beside(suffix).replace(quarantined.with_name(quarantined.name + suffix))
        self._disconnect()
        self._beside("-shm").unlink(missing_ok=True)
        self._beside(_RENEWED).replace(self.path)

    def faults(self) -> tuple[str, ...]:
        """Return the reports about damaged files that were renamed, and are not confirmed yet."""
        with self.transaction() as connection:
            return tuple(report for (report,) in connection.execute("SELECT report FROM fault"))

    def confirm_fault(self, report: str) -> None:
        """Delete a report, because an event has it: :meth:`faults` no longer returns it."""
        with self.transaction("FULL") as connection:
            connection.execute("DELETE FROM fault WHERE report = ?", (report,))

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
            # Before the file is opened: another one may replace it meanwhile.
            with contextlib.suppress(FileNotFoundError):  # the first query fails then
                self._identity = self._file_identity()
            self._connection = sqlite3.connect(
                uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None
            )
            self._connection.text_factory = _text
            return
        # Only the owner may read the file, whatever the folder's mode. SQLite gives its log the
        # same mode. If this fails, SQLite fails as well and names the cause.
        with contextlib.suppress(OSError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        connection.text_factory = _text
        try:
            connection.executescript(
                f"PRAGMA journal_mode = WAL; PRAGMA synchronous = {self._synchronous}; "
                # Debian's SQLite overwrites deleted rows; a nearly full disk has no room for that.
                f"PRAGMA secure_delete = FAST; PRAGMA cache_size = -{_CACHE_KIB}; "
                f"PRAGMA journal_size_limit = {_LOG_BYTES}; "
                f"PRAGMA wal_autocheckpoint = {self._log_pages}; "
                f"BEGIN; {self._schema} COMMIT;"
            )
            self._present = self._synchronous
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)  # noqa: TRY301 - as SQLite itself raises it
            connection.execute(f"PRAGMA busy_timeout = {_SERVICE_BUSY_MS}")
            self._identity = self._file_identity()
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _file_identity(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_dev, status.st_ino

    def _restore_if_removed(self) -> None:
        """Write the open database to its path again, if its file there was deleted or replaced."""
        if self._lock is not None:
            self._lock.acquire()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if self._file_identity() == self._identity:
                return
        old = self._connection
        if old is None:
            return
        new = self._beside(".new")
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        # Linux preserves a deleted file as long as it is open.
        with contextlib.closing(sqlite3.connect(new)) as copy:
            old.backup(copy)
        for suffix in _COMPANIONS:
            self._beside(suffix).unlink(missing_ok=True)
        new.replace(self.path)
        # Close before the new file has a log: SQLite deletes the log by its name when it closes.
        old.close()
        self._connection = None
        self._connect()
        _log.warning("restored a file that was removed or replaced while it was open",
                     path=str(self.path))  # fmt: skip

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)


def _text(data: bytes) -> str:
    # A damaged row must not look like a fault of the disk.
    return data.decode(errors="replace")


def has_table(connection: sqlite3.Connection, name: str) -> bool:
    """Return True if the open database has the table ``name``.

    A service creates the tables of a new file shortly after the file.
    """
    try:
        found = connection.execute("SELECT name FROM sqlite_master WHERE name = ?", (name,))
    except sqlite3.OperationalError as error:
        # A run was killed while it created the file. Only before the file has a write-ahead log, so
        # before it has any row, there is a journal that a reader can't roll back.
        if error.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK:
            return False
        raise
    return found.fetchone() is not None
