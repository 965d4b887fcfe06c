"""Locks of the state directory: for changes of fences, and for the runs that watch them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import DeliveryError
from ocsf_nft.fence import run_locks, values
from ocsf_nft.fence.run_locks import RunLocks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: File with the locks of all runs.
_RUNS: Final = "runs"


class StateLocks:
    """Locks in the state directory ``path``. The first one creates the directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._runs = RunLocks(lambda: self._lock_file(_RUNS))

    @contextlib.contextmanager
    def locked(self, sandbox: str | None = None) -> Iterator[None]:
        """Hold the lock on all records of fences during the ``with`` block.

        With ``sandbox``, also hold the lock of its fence, to change the fence. Blocks until no
        other process holds the locks. Raises DeliveryError if the lock file can't be created.
        """
        descriptor = self._lock_file("install")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with contextlib.nullcontext() if sandbox is None else self.fence_locked(sandbox):
                yield
        finally:
            # Closing is not enough: a child process has a copy of the descriptor until it runs
            # another program.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    @contextlib.contextmanager
    def fence_locked(self, sandbox: str) -> Iterator[None]:
        """Hold the lock of one sandbox's fence during the ``with`` block, to restore or renew it.

        A change of another fence may last as long as a process in that sandbox delays it, so a
        restore must not wait for it. Blocks, and raises the errors of :meth:`locked`.
        """
        name = values.sandbox_name(sandbox)
        descriptor = self._lock_file("install")
        try:
            run_locks.lock_byte(descriptor, name, fcntl.F_OFD_SETLKW, fcntl.F_WRLCK)
            try:
                yield
            finally:  # see above
                run_locks.lock_byte(descriptor, name, fcntl.F_OFD_SETLK, fcntl.F_UNLCK)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def run_lock(self, sandbox: str) -> Iterator[None]:
        """Hold the sandbox's monitoring lock during the ``with`` block.

        Only one process at a time can hold this lock, and so monitor the sandbox. Raises
        SourceError if another process, such as ``ocsf-nft run``, holds the lock. Raises
        DeliveryError if the lock file can't be created.
        """
        with self._runs.hold(values.sandbox_name(sandbox)):
            yield

    def is_watched(self, sandbox: str) -> bool:
        """Return True if a process such as ``ocsf-nft run`` monitors the sandbox now.

        Raises UsageError if ``sandbox`` is no valid sandbox name.
        """
        # The name may be from the comment of a table, which a sandboxed program can write.
        return run_locks.is_held(self._lock_path(_RUNS), values.sandbox_name(sandbox))

    def _lock_path(self, name: str) -> Path:
        return self.path / f".{name}.lock"

    def _lock_file(self, name: str) -> int:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(self._lock_path(name), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise unwritable(self.path, error) from error


def unwritable(path: Path, error: OSError) -> DeliveryError:
    """Return the error to raise if the file or directory ``path`` can't be written."""
    remedy = "run as root" if isinstance(error, PermissionError) else "make room"
    return DeliveryError(
        f"{path} can't be written ({error.strerror}): {remedy} or name another --state-dir"
    )
