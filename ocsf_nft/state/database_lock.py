"""Lock on a SQLite file, so that only one process at a time uses the file.

The lock is flock(2) on a separate lock file in the same folder.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from ocsf_nft.errors import ClosedError

if TYPE_CHECKING:
    from pathlib import Path


class FileLock:
    """Lock on the database file ``path``; only one process at a time can have the lock.

    The lock file for ``state-1.sqlite3`` is ``.state-1.sqlite3.lock`` in the same folder.
    """

    def __init__(self, path: Path) -> None:
        self._protected = path
        # Not the SQLite file itself: closing any descriptor of it would drop SQLite's own locks.
        self._path = path.with_name(f".{path.name}.lock")
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock without waiting; do nothing if this object already has the lock.

        Raises ClosedError if another process has the lock, OSError if the lock file can't be
        opened.
        """
        while not self._is_valid():
            self.release()
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self.release()
                raise ClosedError(
                    f"another run stores its events in {self._protected}: give one of them its own "
                    "[store] path or state_dir"
                ) from error

    def _is_valid(self) -> bool:
        if self._descriptor is None:
            return False
        try:
            current = self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        # If the locked file was deleted or replaced, another process can have the lock.
        locked = os.fstat(self._descriptor)
        return (current.st_dev, current.st_ino) == (locked.st_dev, locked.st_ino)

    def release(self) -> None:
        """Release the lock; do nothing if the lock is not held."""
        if self._descriptor is not None:
            # A starting child may have a copy of the descriptor: closing ours would not unlock.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None
