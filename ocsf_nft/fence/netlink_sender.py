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
    from ocsf_nft.process import Process

_SOCKETS: Final = Path("/proc/thread-self/net/netlink")
_ROUTE: Final = 0
_PROTOCOL, _PORT, _INODE = 1, 2, 9
_MOST_BYTES: Final = 1 << 20
_MOST_DESCRIPTORS: Final = 4096
_MOST_PROCESSES: Final = 10_000


def socket_inode(port: int) -> int | None:
    """Return the inode of the rtnetlink socket with a port in the calling thread's namespace."""
    with contextlib.suppress(OSError, ValueError, IndexError), _SOCKETS.open("rb") as file:
        for line in file.read(_MOST_BYTES).splitlines()[1:]:
            fields = line.split()
            if int(fields[_PROTOCOL]) == _ROUTE and int(fields[_PORT]) == port % (1 << 32):
                return int(fields[_INODE])
    return None


def process_of(inode: int, port: int, identity: str, arrived_ns: int) -> Process | None:
    """Return the process that alone holds a socket, which has caused a notice; None if unknown.

    ``identity`` is that of the network namespace. The notice was read at ``arrived_ns``
    (CLOCK_BOOTTIME). Only processes of that namespace, and the process with the number ``port``,
    are checked. Blocks.
    """
    if not proc.is_initial():
        return None
    candidates = _inside(identity)
    if candidates is None:
        return None
    if port > 0:
        candidates.add(port)
    holders = [pid for pid in candidates if _holds(pid, inode)]
    # A socket that several processes share does not show which of them has used it.
    if len(holders) != 1:
        return None
    found = attribute_change(holders[0], _name(holders[0]), arrived_ns)
    return found if found is not None and found.created_ns is not None else None


def _inside(identity: str) -> set[int] | None:
    """Return the processes in a network namespace; None if there are too many."""
    found = set()
    with os.scandir("/proc") as entries:
        for count, entry in enumerate(entries):
            if count > _MOST_PROCESSES:
                return None
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):  # it has exited, or we lack the permission
                    status = os.stat(f"/proc/{entry.name}/ns/net")  # noqa: PTH116 - quicker
                    if f"{status.st_dev}:{status.st_ino}" == identity:
                        found.add(int(entry.name))
    return found


def _holds(pid: int, inode: int) -> bool:
    searched = f"socket:[{inode}]"
    with contextlib.suppress(OSError), proc.opened(f"/proc/{pid}/fd") as directory:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in itertools.islice(entries, _MOST_DESCRIPTORS)]
        return any(proc.link(name, directory) == searched for name in names)
    return False


def _name(pid: int) -> str | None:
    with contextlib.suppress(OSError, ValueError), proc.opened(f"/proc/{pid}") as directory:
        return proc.stat(directory).name.decode("utf-8", "replace")
    return None
