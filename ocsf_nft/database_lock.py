"""What keeps a file of SQLite to one run: flock(2) on a file beside it.

Not on the file itself: whoever closes a descriptor of that loses the locks that SQLite has on it.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from ocsf_nft.errors import ClosedError

if TYPE_CHECKING:
    from pathlib import Path


class Lock:
    """The lock of the file at ``path``."""

    def __init__(self, path: Path) -> None:
        self._of = path
        self._path = path.with_name(f".{path.name}.lock")
        self._descriptor: int | None = None

    def hold(self) -> None:
        """Take the lock, or take it anew where its file is there no longer.

        Raises ClosedError when another run has it, OSError.
        """
        while not self._is_held():
            self.let_go()
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self.let_go()
                raise ClosedError(
                    f"another run keeps its events in {self._of}: give one of them a [store] path, "
                    "or a state_dir, of its own"
                ) from error

    def _is_held(self) -> bool:
        """Whether the file that we have is the one that others would find."""
        if self._descriptor is None:
            return False
        try:
            found = self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        ours = os.fstat(self._descriptor)
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)

    def let_go(self) -> None:
        """Leave it to others."""
        if self._descriptor is not None:
            # Closing alone keeps the lock while a starting child has a copy of the descriptor.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None

    def remove(self) -> None:
        """Remove its file, and leave it to others."""
        if self._is_held():
            self._path.unlink(missing_ok=True)
        self.let_go()
