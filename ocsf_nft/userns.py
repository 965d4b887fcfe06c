"""How the users of another user namespace are numbered in ours.

nftables numbers the owner of a socket as the user namespace does that owns the network namespace
(nft_meta.c), NFLOG as that of its reader does (nfnetlink_log.c). Where these are two, one has to
be told from the other.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

_NS_GET_USERNS: Final = 0xB701  # include/uapi/linux/nsfs.h
_NET: Final = Path("/proc/thread-self/ns/net")
_USER: Final = Path("/proc/self/ns/user")
#: Not ``PATH``: whoever can set it would choose what runs with our privileges.
_TRUSTED_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
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

    None when it is the process's own, or can't be looked into: that takes CAP_SYS_ADMIN, and
    nsenter of util-linux.
    """
    try:
        owner = _owner()
    except OSError:  # an older kernel, or an owner further up than we can see
        return None
    try:
        if os.path.samestat(os.fstat(owner), _USER.stat()):
            return None
        return _look(owner)
    finally:
        os.close(owner)


def _owner() -> int:
    net = os.open(_NET, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(net, _NS_GET_USERNS)
    finally:
        os.close(net)


def _look(owner: int) -> Users | None:
    """Have a child live there for a moment: how the kernel numbers it depends on who asks."""
    nsenter = shutil.which("nsenter", path=_TRUSTED_PATH)
    cat = shutil.which("cat", path=_TRUSTED_PATH)
    if nsenter is None or cat is None:
        return None
    command = [nsenter, f"--user=/proc/self/fd/{owner}", "--preserve-credentials", cat]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=(owner,),
        env={},
        bufsize=0,
    ) as child:
        if child.stdin is None or child.stdout is None:
            raise RuntimeError("the pipes were asked for")
        try:
            child.stdin.write(b"\n")
            if not child.stdout.read(1):  # it echoes once it is there
                return None
            text = Path(f"/proc/{child.pid}/uid_map").read_text("ascii")
        except OSError:  # it is gone
            return None
        finally:
            child.stdin.close()
    lines = [tuple(map(int, line.split())) for line in text.splitlines()]
    return Users(tuple((there, here, count) for there, here, count in lines))
