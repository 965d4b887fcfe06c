"""Unix socket of the control API, as a file that other users can never open.

The functions block, but not for long.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import Final, Self

from ocsf_nft.errors import UnsupportedError, UsageError

#: Connections that wait to be accepted; the kernel's own limit is net.core.somaxconn. With a full
#: queue, clients that do not block fail (connect(2), EAGAIN), so it is longer than that of TCP.
QUEUED: Final = 4096
#: Time for a service to accept a connection; the kernel does that for it unless its queue is full.
_PROBE_SECONDS: Final = 1.0
#: Attempts to replace a stale socket while other services do the same.
_ATTEMPTS: Final = 10


class SocketFile:
    """Listening Unix socket, which the ``with`` block's end closes and removes.

    ``group`` is the name or number of the group; None is the group of this process.
    """

    def __init__(self, path: Path, mode: int, group: str | int | None = None) -> None:
        self.path = path
        self._mode = mode
        self._group = group
        self._identity = (0, 0)
        #: The socket; usable inside the ``with`` block.
        self.socket: socket.socket

    def __enter__(self) -> Self:
        """Create the socket; clients can connect from now on, and wait for an answer.

        A missing directory is created. The socket of a service that has ended is replaced. Raises
        UsageError if another service listens at the path, if another kind of file is there, or if
        the group does not exist, UnsupportedError if the file can't be created.
        """
        gid = self._gid()
        try:
            self.path.parent.mkdir(mode=0o755, exist_ok=True)
            # No other user can enter the temporary directory: the socket gets its mode and group
            # there, and only then its path.
            with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".") as folder:
                self.socket = self._listening(Path(folder) / "s", gid)
                try:
                    self._publish(Path(folder))
                except BaseException:
                    self.socket.close()
                    raise
        except OSError as error:
            raise UnsupportedError(
                f"the control socket {self.path} can't be created: {error.strerror or error}"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        """Close the socket and remove its file."""
        self.remove()
        self.socket.close()

    def remove(self) -> None:
        """Remove the socket's file, unless another service has replaced it or it is removed."""
        with contextlib.suppress(OSError):
            if _identity(self.path) == self._identity:
                self.path.unlink()

    def _gid(self) -> int | None:
        if not isinstance(self._group, str):
            return self._group
        try:
            return grp.getgrnam(self._group).gr_gid
        except KeyError as error:
            raise UsageError(
                f"control_group: there is no group {self._group}: create it, or name another one"
            ) from error

    def _listening(self, path: Path, gid: int | None) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.bind(str(path))
            if gid is not None:
                os.chown(path, -1, gid)
            path.chmod(self._mode)
            made.listen(QUEUED)
            made.setblocking(False)
        except BaseException:
            made.close()
            raise
        self._identity = _identity(path)
        return made

    def _publish(self, folder: Path) -> None:
        """Give the socket in ``folder`` its path, if no other service listens there."""
        for _ in range(_ATTEMPTS):
            # Unlike rename(2), link(2) replaces no file.
            with contextlib.suppress(FileExistsError):
                os.link(folder / "s", self.path)
                return
            with contextlib.suppress(FileNotFoundError):
                self._require_stale(self.path)
                self._remove_stale(folder / "stale")
        raise UsageError(f"other services replace {self.path}: stop them, or name another control")

    def _remove_stale(self, moved: Path) -> None:
        self.path.rename(moved)
        try:
            # Another service may have replaced the file just before.
            self._require_stale(moved)
        except UsageError:
            os.link(moved, self.path)
            raise
        moved.unlink()

    def _require_stale(self, path: Path) -> None:
        """Raise UsageError unless ``path`` is a socket at which no process listens."""
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise UsageError(f"{self.path} is no socket: remove it, or name another control")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_SECONDS)
            try:
                probe.connect(str(path))
            except (TimeoutError, BlockingIOError):
                pass  # its queue is full
            except OSError as error:
                if error.errno == errno.ECONNREFUSED:
                    return
                raise
        raise UsageError(
            f"another service listens at {self.path}: stop it, or name another control"
        )


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
