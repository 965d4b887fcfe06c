"""Conversion of user ids of another user namespace to those of this process's user namespace.

Only user ids from nftables need the conversion.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final, NamedTuple

from ocsf_nft import proc

_NS_GET_USERNS: Final = 0xB701  # include/uapi/linux/nsfs.h
_PROC: Final = Path("/proc")
_NET: Final = Path("/proc/thread-self/ns/net")
_USER: Final = Path("/proc/self/ns/user")
_UNMAPPED: Final = 65534  # kernel.overflowuid


class UserIdMap(NamedTuple):
    """Map from the user ids of another user namespace to those of this process's namespace.

    For example, the range ``(0, 100000, 65536)`` maps 65,536 user ids. It maps user 0 of the other
    namespace to user 100000 of this process's namespace.
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
    """Return the map that converts user ids from nftables to ids of this process's user namespace.

    The calling thread must be in the network namespace of the nftables tables. Return None if the
    ids need no conversion, or their user namespace is unknown.
    """
    # nftables gives a socket's owner as an id of the user namespace that owns the network namespace
    # (nft_meta.c). NFLOG already gives an id of the reader's namespace (nfnetlink_log.c).
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
    # there: root there could control it, and it would have our user id. Reading the map needs
    # CAP_SYS_PTRACE.
    for process in _PROC.iterdir():
        if process.name.isdecimal():
            text = _read_map(process, there)
            if text:
                return parsed_map(text)
    # No map can be read. This map converts each id to 65534, which is better than a wrong id.
    return UserIdMap(())


def parsed_map(text: str) -> UserIdMap:
    """Parse the content of a /proc/PID/uid_map; raises ValueError if it is invalid."""
    lines = [tuple(map(int, line.split())) for line in text.splitlines()]
    return UserIdMap(tuple((there, here, count) for there, here, count in lines))


def _owner() -> int:
    net = os.open(_NET, os.O_RDONLY)
    try:
        return fcntl.ioctl(net, _NS_GET_USERNS)
    finally:
        os.close(net)


def _read_map(process: Path, namespace: os.stat_result) -> str | None:
    """Return the text of the process's ``uid_map``; None if the process is not in ``namespace``."""

    def is_inside(directory: int) -> bool:
        return os.path.samestat(os.stat("ns/user", dir_fd=directory), namespace)

    # All three reads use one descriptor, because the pid may be given to another process.
    with contextlib.suppress(OSError), proc.opened(str(process)) as directory:
        # Checked before and after: the process may move to a new namespace of its own, and can't
        # return.
        if is_inside(directory):
            opened = os.open("uid_map", os.O_RDONLY, dir_fd=directory)
            with os.fdopen(opened, encoding="ascii") as file:
                text = file.read()
            return text if is_inside(directory) else None
    return None
