"""Processes of network namespaces, found by the files ``ns/net`` in /proc.

A thread may be in another namespace than its process. The other threads are checked after all
processes, those of the processes with the fewest threads first. So a process with very many threads
can't hide another process. Other threads of this process do not count: they monitor sandboxes.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from ocsf_nft import proc
from ocsf_nft.errors import AbsentError, UnsupportedError, reason_of
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Mapping

_SECONDS: Final = 2.0
_LIMIT: Final = 100
_PROC: Final = Path("/proc")
_NOBODY: Final[Mapping[int, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceProcesses:
    """Processes with at least one thread in a network namespace.

    ``pids`` are the lowest pids in ascending order, and ``count`` is the number of all processes.
    ``gaps`` are the reasons why there may be more: sentences for people, normally none.
    """

    pids: tuple[int, ...]
    count: int
    gaps: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessScan:
    """Processes of all network namespaces.

    ``threads`` has the processes by the identity of the namespace: for each pid the id of a thread
    in that namespace, which is the pid itself if possible. ``gaps`` are the reasons why processes
    may be missing.
    """

    threads: Mapping[str, Mapping[int, int]]
    gaps: tuple[str, ...]

    def of(self, identity: str) -> Mapping[int, int]:
        """Return the processes with a thread in a namespace: the ids of threads by pid."""
        return self.threads.get(identity, _NOBODY)


def processes_in(
    identity: str, limit: int = _LIMIT, *, timeout_s: float = _SECONDS
) -> NamespaceProcesses:
    """Return at most ``limit`` processes of the network namespace with this identity.

    ``identity`` is a result of :meth:`Namespace.identity`. The search ends after ``timeout_s``
    seconds, even if it is incomplete. Blocks. Raises UnsupportedError if /proc can't be read.
    """
    found = scan(timeout_s=timeout_s)
    pids = sorted(found.of(identity))
    return NamespaceProcesses(pids=tuple(pids[:limit]), count=len(pids), gaps=found.gaps)


def scan(*, timeout_s: float = _SECONDS) -> ProcessScan:
    """Return the processes of all network namespaces.

    The search ends after ``timeout_s`` seconds, even if it is incomplete. A process that begins or
    exits meanwhile may be missing. Blocks. Raises UnsupportedError if /proc can't be read.
    """
    search = _Search(time.monotonic() + timeout_s)
    try:
        search.run()
    except TimeoutError:
        search.gaps.append(f"not all threads were checked in {timeout_s:g} seconds")
    except OSError as error:
        raise UnsupportedError(f"/proc can't be read: {reason_of(error)}") from error
    if count := len(search.forbidden):
        search.gaps.append(
            f"the namespace of {count} process{'' if count == 1 else 'es'} can't be read: "
            "run as root or with CAP_SYS_PTRACE"
        )
    return ProcessScan(threads=search.threads, gaps=tuple(search.gaps))


class _Search:
    def __init__(self, deadline: float) -> None:
        self.threads: dict[str, dict[int, int]] = {}
        self.forbidden: set[int] = set()
        self.gaps: list[str] = []
        self._deadline = deadline

    def run(self) -> None:
        """Check all processes, then their other threads; raises TimeoutError at the deadline."""
        with proc.opened(os.fspath(_PROC)) as root:
            if not proc.shows_all(root):
                self.gaps.append("not every process is visible in /proc")
        pids = _numbers(_PROC)
        for pid in pids:
            self._check(pid, pid)
        counts = ((_thread_count(pid), pid) for pid in pids if pid != os.getpid())
        for _, pid in sorted(each for each in counts if each[0] > 1):
            self._check_threads(pid)

    def _check_threads(self, pid: int) -> None:
        try:
            threads = _numbers(_PROC / str(pid) / "task")
        except OSError:  # the process has exited
            return
        for thread in threads:
            if thread != pid:
                self._check(pid, thread)

    def _check(self, pid: int, thread: int) -> None:
        if time.monotonic() > self._deadline:
            raise TimeoutError
        try:
            identity = Namespace(thread_file(pid, thread)).identity()
        except AbsentError:  # the thread has ended; other threads of the process may run
            return
        except UnsupportedError:
            self.forbidden.add(pid)
            return
        self.threads.setdefault(identity, {}).setdefault(pid, thread)


def thread_file(pid: int, thread: int) -> Path:
    """Return the path of the network namespace of a process's thread."""
    return _PROC / f"{pid}/task/{thread}/ns/net"


def _thread_count(pid: int) -> int:
    """Return the number of a process's threads; 0 if the process has exited."""
    try:
        # Two links more than threads (fs/proc/base.c: proc_task_getattr).
        return (_PROC / str(pid) / "task").stat().st_nlink - 2
    except OSError:
        return 0


def _numbers(directory: Path) -> list[int]:
    with os.scandir(directory) as entries:
        return [int(entry.name) for entry in entries if entry.name.isdecimal()]
