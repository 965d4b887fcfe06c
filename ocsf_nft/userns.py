"""Conversion of user ids of another user namespace to those of this process's user namespace.

For a socket's owner, nftables reports the id in the user namespace that owns the network namespace
(nft_meta.c). NFLOG reports the id in the user namespace of its reader (nfnetlink_log.c). If these
namespaces differ, the ids must be converted.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final, NamedTuple

_NS_GET_USERNS: Final = 0xB701  # include/uapi/linux/nsfs.h
_PROC: Final = Path("/proc")
_NET: Final = Path("/proc/thread-self/ns/net")
_USER: Final = Path("/proc/self/ns/user")
_UNMAPPED: Final = 65534  # kernel.overflowuid


class UserIdMap(NamedTuple):
    """Map from the user ids of another user namespace to those of this process's namespace.

    Each of the ``ranges`` has three numbers. They are the first id in the other namespace, the
    first id in this process's namespace, and the number of ids.
    """

    ranges: tuple[tuple[int, int, int], ...]

    def to_local(self, uid: int) -> int:
        """Convert a user id of the other namespace to the id in this process's namespace.

        Return 65534 if the user has no id in this process's namespace.
        """
        for there, here, count in self.ranges:
            if there <= uid < there + count:
                return here + uid - there
        return _UNMAPPED


def user_id_map() -> UserIdMap | None:
    """Return the map of the user ids that nftables reports in the thread's network namespace.

    Each network namespace has an owner, which is a user namespace. The result maps the owner's user
    ids to those of this process's user namespace. It is read from a process in the owner, which
    needs CAP_SYS_PTRACE. If no such process can be inspected, the map is empty. An empty map
    converts each id to 65534, which is better than a wrong id.

    Returns None if the owner is this process's own user namespace: then no conversion is needed.
    Also returns None if the owner is unknown. This is so on old kernels, and if the owner is an
    ancestor of this process's user namespace.
    """
    try:
        owner = _owner()
    except OSError:  # an older kernel, or an ancestor that we can't inspect
        return None
    try:
        there = os.fstat(owner)
    finally:
        os.close(owner)
    if os.path.samestat(there, _USER.stat()):
        return None
    # The kernel shows the map of a namespace only in its processes. We don't send a process of ours
    # there: root there could control it, and it would have our user id.
    for process in _PROC.iterdir():
        if process.name.isdecimal():
            text = _read_map(process, there)
            if text:
                lines = [tuple(map(int, line.split())) for line in text.splitlines()]
                return UserIdMap(tuple((there, here, count) for there, here, count in lines))
    return UserIdMap(())


def _owner() -> int:
    net = os.open(_NET, os.O_RDONLY)
    try:
        return fcntl.ioctl(net, _NS_GET_USERNS)
    finally:
        os.close(net)


def _read_map(process: Path, namespace: os.stat_result) -> str | None:
    """Return the user id map of a process, the text of its ``uid_map`` file.

    Return None if the process is not in the user namespace ``namespace``, or has exited.
    """
    try:
        # All three reads use one descriptor, because the pid may be given to another process.
        directory = os.open(process, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        # Checked before and after: the process may move to a new namespace of its own, and can't
        # return.
        if not os.path.samestat(os.stat("ns/user", dir_fd=directory), namespace):
            return None
        opened = os.open("uid_map", os.O_RDONLY, dir_fd=directory)
        with os.fdopen(opened, encoding="ascii") as file:
            text = file.read()
        is_still_there = os.path.samestat(os.stat("ns/user", dir_fd=directory), namespace)
    except OSError:
        return None
    finally:
        os.close(directory)
    return text if is_still_there else None
