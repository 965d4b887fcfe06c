"""How the users of another user namespace are numbered in ours.

nftables numbers the owner of a socket as the user namespace does that owns the network namespace
(nft_meta.c), NFLOG as that of its reader does (nfnetlink_log.c). Where these are two, one has to
be told from the other.
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


class Users(NamedTuple):
    """Ranges of user ids: the first one there, the first one here, how many there are."""

    ranges: tuple[tuple[int, int, int], ...]

    def here(self, uid: int) -> int:
        """What a user there is called here; 65534 where the user has no number here."""
        for there, here, count in self.ranges:
            if there <= uid < there + count:
                return here + uid - there
        return _UNMAPPED


def users() -> Users | None:
    """The users of the user namespace that owns the calling thread's network namespace.

    None when it is the process's own, or further up than it can see. Where no process lives there
    that can be looked at (which takes CAP_SYS_PTRACE), nobody there has a number here: better than
    a number that is another user's.
    """
    try:
        owner = _owner()
    except OSError:  # an older kernel, or an owner further up than we can see
        return None
    try:
        there = os.fstat(owner)
    finally:
        os.close(owner)
    if os.path.samestat(there, _USER.stat()):
        return None
    # The kernel shows the numbers of a namespace in its processes alone. We send none of ours
    # there: root there could take it over, and it would have our user id.
    for process in _PROC.iterdir():
        if process.name.isdecimal():
            text = _map_of(process, there)
            if text:
                lines = [tuple(map(int, line.split())) for line in text.splitlines()]
                return Users(tuple((there, here, count) for there, here, count in lines))
    return Users(())


def _owner() -> int:
    net = os.open(_NET, os.O_RDONLY)
    try:
        return fcntl.ioctl(net, _NS_GET_USERNS)
    finally:
        os.close(net)


def _map_of(process: Path, namespace: os.stat_result) -> str | None:
    """The user ids of a process that lives in a namespace; None when it doesn't, or is gone."""
    try:
        # All three through one descriptor: its number may be given to another process.
        directory = os.open(process, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        # Before and after: it may move on to a namespace of its own making, and not back.
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
