"""Search for processes in a network namespace that can make links to the host's namespace.

The kernel's notice about a new link does not name its maker, unless the maker asks for it
(NLM_F_ECHO). So a link with its lower interface on the host is certainly the host's own doing only
if no process in the namespace can have made it. That takes CAP_NET_ADMIN in the user namespace of
the host's network namespace, as of ``docker run --cap-add NET_ADMIN`` without a user namespace.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocsf_nft import proc
from ocsf_nft.fence.nft import find_program

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_NET_ADMIN: Final = 1 << 12  # include/uapi/linux/capability.h
#: include/uapi/linux/nsfs.h, USER_NS_INIT_INO: the initial user namespace has this inode.
_INITIAL_USERS: Final = 0xEFFFFFFD
_MOST_PROCESSES: Final = 10_000
#: Age of a scan of all processes that is new enough for the begin of a watch.
_SHARED_SECONDS: Final = 10.0
_PARENT: Final = re.compile(rb"^PPid:\t(\d+)$", re.MULTILINE)
_PERMITTED: Final = re.compile(rb"^CapPrm:\t([0-9a-f]+)$", re.MULTILINE)
_BOUNDING: Final = re.compile(rb"^CapBnd:\t([0-9a-f]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Scan:
    began: float
    #: Processes by the identity of their network namespace; None if there are too many.
    pids: Mapping[str, list[int]] | None


class LinkMakers:
    """Processes in a network namespace that can make links to the host's namespace.

    A process that had the capability once counts for ever: it may have dropped it since then.
    """

    def __init__(self, identity: str) -> None:
        """Create the search in the namespace with this identity (:meth:`Namespace.identity`)."""
        self._identity = identity
        self._were_found = False

    def begin(self) -> None:
        """Search for the first time. A scan of the last seconds may be used."""
        self._search(time.monotonic() - _SHARED_SECONDS)

    def exist(self) -> bool | None:
        """Return True if a process in the namespace has or had the capability.

        Return None if that is not known, because a process could gain it, or not all processes can
        be checked. Blocks while /proc is read.
        """
        return True if self._were_found else self._search(time.monotonic())

    def _search(self, not_before: float) -> bool | None:
        """Search in a scan that has begun at ``not_before`` (monotonic) or later."""
        if not proc.is_initial():
            return None
        try:
            users = {_INITIAL_USERS, os.stat("/proc/self/ns/user").st_ino}  # noqa: PTH116 - quicker
            scan = _scan(not_before)
        except OSError:
            return None
        if scan.pids is None:
            return None
        is_sure = True
        pids = scan.pids.get(self._identity, [])
        for permitted, bounding in _capabilities(pids, users):
            if permitted & _NET_ADMIN:
                self._were_found = True
                return True
            is_sure &= not bounding & _NET_ADMIN
        return False if is_sure else None


_lock: Final = threading.Lock()
_latest: _Scan | None = None


def _scan(not_before: float) -> _Scan:
    """Return a scan of all processes that has begun at ``not_before`` or later; raises OSError."""
    global _latest  # noqa: PLW0603 - shared by the watchers of all sandboxes
    with _lock:
        if _latest is None or _latest.began < not_before:
            _latest = _Scan(time.monotonic(), _by_namespace())
        return _latest


def _by_namespace() -> dict[str, list[int]] | None:
    found: dict[str, list[int]] = defaultdict(list)
    with os.scandir("/proc") as entries:
        for count, entry in enumerate(entries):
            if count > _MOST_PROCESSES:
                return None
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):  # it has exited, or we lack the permission
                    status = os.stat(f"/proc/{entry.name}/ns/net")  # noqa: PTH116 - quicker
                    found[f"{status.st_dev}:{status.st_ino}"].append(int(entry.name))
    return dict(found)


def _capabilities(pids: list[int], users: set[int]) -> Iterator[tuple[int, int]]:
    """Yield the permitted and the bounding capabilities of processes in these user namespaces.

    ``pids`` are the processes in a network namespace. This process, its children, and each nft that
    a process outside the namespace has started, such as `ocsf-nft verify`, are left out.
    """
    own, inside = os.getpid(), {*pids}
    for pid in pids:
        with contextlib.suppress(OSError, ValueError), proc.opened(f"/proc/{pid}") as directory:
            if os.stat("ns/user", dir_fd=directory).st_ino not in users:
                continue
            status = proc.read("status", directory)
            parent, permitted, bounding = (
                pattern.search(status) for pattern in (_PARENT, _PERMITTED, _BOUNDING)
            )
            if not (parent and permitted and bounding) or own in {pid, int(parent[1])}:
                continue
            if int(parent[1]) not in inside and _is_nft(directory):
                continue
            yield int(permitted[1], 16), int(bounding[1], 16)


def _is_nft(directory: int) -> bool:
    """Return True if a process runs the host's nft, which can't make links."""
    program = find_program("nft")
    if program is None:
        return False
    return os.path.samestat(os.stat("exe", dir_fd=directory), os.stat(program))  # noqa: PTH116
