"""Attribution of an rtnetlink notice to the process whose socket caused it.

A notice has the port of that socket. The port is normally the process's id in its pid namespace,
but a process may bind its socket to any free number. So only a process that holds the socket is
named. A short-lived process has often closed its socket before the check, and stays unknown.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft import proc
from ocsf_nft.fence.tamper_attribution import attribute_change

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from ocsf_nft.process import Process

_SOCKETS: Final = Path("/proc/thread-self/net/netlink")
_ROUTE: Final = 0
_PROTOCOL, _PORT, _INODE = 1, 2, 9
_MOST_BYTES: Final = 1 << 20
#: Descriptors that are read for all notices of a check: 20,000 take 80 ms of processor time (4 µs
#: each, Linux 6.18, 2 cores), in which the fence is not restored. More of them: unknown process.
_MOST_DESCRIPTORS: Final = 20_000
_MOST_PROCESSES: Final = 10_000


class _TooManyError(Exception):
    """There are more processes or descriptors than are read."""


def socket_inodes(ports: Collection[int]) -> dict[int, int]:
    """Return the inodes of the rtnetlink sockets with these ports in the thread's namespace.

    The result has no port without a socket.
    """
    searched = {port % (1 << 32): port for port in ports}
    found: dict[int, int] = {}
    with contextlib.suppress(OSError, ValueError, IndexError), _SOCKETS.open("rb") as file:
        for line in file.read(_MOST_BYTES).splitlines()[1:]:
            fields = line.split()
            port = searched.get(int(fields[_PORT]))
            if port is not None and int(fields[_PROTOCOL]) == _ROUTE:
                found[port] = int(fields[_INODE])
    return found


def processes_of(inodes: Mapping[int, int], identity: str, arrived_ns: int) -> dict[int, Process]:
    """Return the processes that alone hold sockets, which have caused notices, by their ports.

    ``inodes`` are the sockets by port. ``identity`` is that of the network namespace. The notices
    were read at ``arrived_ns`` (CLOCK_BOOTTIME). Only processes of that namespace, and those with
    the number of a port, are checked, in one scan. The result has no unknown process. It is empty
    if there are too many processes or descriptors. Blocks.
    """
    if not inodes or not proc.is_initial():
        return {}
    try:
        holders = _holders(
            inodes.values(), _inside(identity) | {each for each in inodes if each > 0}
        )
    except _TooManyError:
        return {}
    found = {}
    for port, inode in inodes.items():
        # A socket that several processes share does not show which of them has used it.
        if len(holders[inode]) == 1:
            (pid,) = holders[inode]
            process = attribute_change(pid, _name(pid), arrived_ns)
            if process is not None and process.created_ns is not None:
                found[port] = process
    return found


def _inside(identity: str) -> set[int]:
    """Return the processes in a network namespace; raise _TooManyError if there are too many."""
    found = set()
    with os.scandir("/proc") as entries:
        for count, entry in enumerate(entries):
            if count > _MOST_PROCESSES:
                raise _TooManyError
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):  # it has exited, or we lack the permission
                    status = os.stat(f"/proc/{entry.name}/ns/net")  # noqa: PTH116 - quicker
                    if f"{status.st_dev}:{status.st_ino}" == identity:
                        found.add(int(entry.name))
    return found


def _holders(inodes: Iterable[int], pids: Iterable[int]) -> dict[int, set[int]]:
    """Return the processes that hold each socket; raise _TooManyError if it is not known."""
    searched = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, set[int]] = {inode: set() for inode in searched.values()}
    left = _MOST_DESCRIPTORS
    for pid in pids:
        with contextlib.suppress(OSError), proc.opened(f"/proc/{pid}/fd") as directory:
            with os.scandir(directory) as entries:
                names = [entry.name for entry in itertools.islice(entries, left + 1)]
            left -= len(names)
            if left < 0:
                raise _TooManyError
            for name in names:
                inode = searched.get(proc.link(name, directory) or "")
                if inode is not None:
                    found[inode].add(pid)
    return found


def _name(pid: int) -> str | None:
    with contextlib.suppress(OSError, ValueError), proc.opened(f"/proc/{pid}") as directory:
        return proc.stat(directory).name.decode("utf-8", "replace")
    return None
