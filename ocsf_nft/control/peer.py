"""Process at the other end of a Unix socket."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft.process import Process

if TYPE_CHECKING:
    from asyncio.trsock import TransportSocket
    from collections.abc import Callable, Iterator

#: ``struct ucred``: pid, uid, gid (include/linux/socket.h).
_CREDENTIALS: Final = struct.Struct("iII")
#: Option of Linux 6.5 and later (include/uapi/asm-generic/socket.h).
_SO_PEERPIDFD: Final = 77


def caller_of(sock: socket.socket | TransportSocket) -> Process:
    """Return the process that connected to a Unix socket.

    The kernel took its credentials when it connected. The pid is 0 if the process is in an
    invisible pid namespace. The name and the path of its program are read now. They are None if the
    process has exited, since another process may have its pid (Linux 6.5 and later can show that).
    Raises OSError if the kernel has no credentials.
    """
    pid, uid, gid = _credentials(sock)
    with _ended_check(sock) as ended:
        name, path = _program(pid) if pid else (None, None)
        if ended():
            name = path = None
    return Process(pid=pid, name=name, path=path, uid=uid, gid=gid)


def pid_of(sock: socket.socket | TransportSocket) -> int:
    """Return the id of the process that connected to a Unix socket; of any of its threads.

    The id stays the same if the process has exited since. Raises as :func:`caller_of`.
    """
    return _credentials(sock)[0]


def _credentials(sock: socket.socket | TransportSocket) -> tuple[int, int, int]:
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(data)
    return pid, uid, gid


@contextlib.contextmanager
def _ended_check(sock: socket.socket | TransportSocket) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns True if the process at the other end has exited."""
    try:
        pidfd = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        # Otherwise the process has exited, and its parent has reaped it.
        is_old_kernel = error.errno == errno.ENOPROTOOPT
        yield lambda: not is_old_kernel
        return
    try:
        # A pidfd is readable once its process has exited: pidfd_open(2).
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        yield lambda: bool(poll.poll(0))
    finally:
        os.close(pidfd)


def _program(pid: int) -> tuple[str | None, str | None]:
    """Return the name and the path of a process's program, as far as they can be read."""
    folder = Path(f"/proc/{pid}")
    try:
        path = os.fsencode((folder / "exe").readlink()).decode(errors="backslashreplace")
    except OSError:  # a kernel thread, or without permission
        pass
    else:
        return path.rpartition("/")[2], path
    try:
        name = (folder / "comm").read_bytes().rstrip(b"\n").decode(errors="backslashreplace")
    except OSError:
        return None, None
    return name, None
