"""Locks of the runs that watch sandboxes: one byte of a file for each sandbox."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: ``struct flock``: type, whence, start, length, process.
_FLOCK: Final = struct.Struct("@hhqqi0q")


class RunLocks:
    """Locks that this process has on the sandboxes that it watches.

    ``open_file`` opens the file with the locks, and creates it if necessary. One descriptor serves
    all sandboxes of a run.
    """

    def __init__(self, open_file: Callable[[], int]) -> None:
        self._open_file = open_file
        #: Descriptor of the file while any lock is held.
        self._descriptor: int | None = None
        #: Sandboxes with a lock of this process.
        self.sandboxes: set[str] = set()

    @contextlib.contextmanager
    def hold(self, sandbox: str) -> Iterator[None]:
        """Hold the lock of a sandbox during the ``with`` block.

        Raises SourceError if another process or this one has it, and the errors of ``open_file``.
        """
        if self._descriptor is None:
            self._descriptor = self._open_file()
        descriptor = self._descriptor
        try:
            busy = f"another run watches sandbox {sandbox}: stop that run first"
            if sandbox in self.sandboxes:  # an open file may take its own locks again
                raise SourceError(busy)
            try:
                lock_byte(descriptor, sandbox, fcntl.F_OFD_SETLK, fcntl.F_WRLCK)
            except BlockingIOError as error:
                raise SourceError(busy) from error
            self.sandboxes.add(sandbox)
            try:
                yield
            finally:
                lock_byte(descriptor, sandbox, fcntl.F_OFD_SETLK, fcntl.F_UNLCK)
                self.sandboxes.discard(sandbox)
        finally:
            if not self.sandboxes:
                os.close(descriptor)
                self._descriptor = None


def is_held(file: Path, sandbox: str) -> bool:
    """Return True if any process has the lock of a sandbox in ``file``."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:  # no run ever monitored a sandbox
        return False
    try:
        return lock_byte(descriptor, sandbox, fcntl.F_OFD_GETLK, fcntl.F_WRLCK) != fcntl.F_UNLCK
    finally:
        os.close(descriptor)


def lock_byte(descriptor: int, sandbox: str, command: int, kind: int) -> int:
    """Call fcntl(2) for the lock of a sandbox, which is one byte of an open file.

    The locks are those of the open file (``F_OFD_SETLK``), not of the process. Return the kind of
    another open file's lock, for ``F_OFD_GETLK``. Raises BlockingIOError if another one has it.
    """
    digest = hashlib.sha256(sandbox.encode("ascii")).digest()
    #: Position of the byte: no two names have the same one, but by an unlikely chance.
    start = int.from_bytes(digest[:7], "big")
    request = _FLOCK.pack(kind, os.SEEK_SET, start, 1, 0)
    found, *_ = _FLOCK.unpack(fcntl.fcntl(descriptor, command, request))
    return int(found)
