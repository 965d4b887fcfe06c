"""Notice of the begin and the end of network namespaces, without delay.

The kernel reports each mount and unmount in our mount namespace (proc(5), ``mountinfo``). This
covers the names of ``ip netns`` and of container engines, which are bind mounts. A pidfd reports
the exit of a process. Some changes have no notice: mounts in another mount namespace that are not
propagated to ours, new symbolic links, and processes that enter another namespace or begin. A check
every 5 seconds finds these.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import select
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeVar

from ocsf_nft.errors import UnsupportedError, reason_of
from ocsf_nft.netns import CLONE_NEWNET, NS_GET_NSTYPE, Namespace, require_linux

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

_OWN: Final = Path("/proc/thread-self/ns/net")
_PROCESS: Final = re.compile(r"/proc/([0-9]+)/")
#: Interval of the checks that need no notice.
_INTERVAL_SECONDS: Final = 5.0
#: Maximum time of checks before other work of the event loop continues.
_SLICE_SECONDS: Final = 0.002
#: Minimum pause after checking all namespaces, as a multiple of the time that the checks took.
#: During a burst of mounts, the checks then use a tenth of a core.
_PAUSES: Final = 9


class NamespaceWatch:
    """Watch over any number of network namespaces; an asynchronous context manager.

    Not thread-safe: use it in the event loop that entered the context. It needs two descriptors,
    and one more for each watched process. A caller may cancel a wait; the end of the context
    cancels all waits. All checks are calls of stat(2) in the event loop, so the paths must not be
    on a file system that may hang.
    """

    def __init__(self) -> None:
        self._waits: dict[_Wait[Any], None] = {}
        self._is_due = asyncio.Event()
        self._cleanup = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Begin to receive notices of mounts; raises UnsupportedError if /proc can't be read."""
        require_linux()
        async with contextlib.AsyncExitStack() as cleanup:
            try:
                mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
                cleanup.callback(os.close, mounts)
                # The file is always readable; only POLLPRI reports a mount. asyncio does not wait
                # for POLLPRI, but an epoll descriptor is readable when it has any event. A poll of
                # this descriptor resets the event (fs/proc_namespace.c: mounts_poll).
                notices = cleanup.enter_context(select.epoll())
                notices.register(mounts, select.EPOLLPRI)
            except OSError as error:
                raise UnsupportedError(f"mounts can't be watched: {reason_of(error)}") from error
            loop = asyncio.get_running_loop()
            loop.add_reader(notices, self._is_due.set)
            cleanup.callback(loop.remove_reader, notices)
            checks = asyncio.create_task(self._check_repeatedly())
            cleanup.push_async_callback(_end, checks)
            self._cleanup = cleanup.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cancel all waits, and close the descriptors."""
        for wait in self._waits:
            wait.outcome.cancel()
        await self._cleanup.aclose()

    async def wait_until_ended(self, namespace: Namespace, identity: str) -> None:
        """Wait until the file of ``namespace`` is no longer that of the namespace ``identity``.

        ``identity`` is a result of :meth:`Namespace.identity`. The wait ends if the name of
        ``ip netns`` was deleted or created again, if the bind mount was removed or replaced, and
        if the process of ``/proc/PID/ns/net`` exited or entered another namespace. The namespace
        itself may still exist. Raises UnsupportedError if the file can't be accessed, also later.
        """
        is_in_proc, pid = _origin(namespace.path or _OWN)
        first = _file_version(namespace, has_time=not is_in_proc)
        if not namespace.has_identity(identity) or first is None:
            return

        def ended() -> Literal[True] | None:
            version = _file_version(namespace, has_time=not is_in_proc)
            if version is None and namespace.has_identity(identity):
                return None
            return None if version == first else True

        await self._wait(ended, pid)

    async def wait_until_present(self, namespace: Namespace) -> str:
        """Wait until a network namespace is at the path of ``namespace``; return its identity.

        Other files do not count, such as the empty file that ``ip netns add`` creates first. Raises
        UnsupportedError if the file can't be accessed, also later.
        """
        return await self._wait(lambda: present_identity(namespace))

    async def _wait(self, check: Callable[[], T | None], pid: int | None = None) -> T:
        """Wait until ``check`` returns a result, and return it; raise the errors of ``check``.

        ``pid`` is a process; ``check`` is called at its exit.
        """
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        wait = _Wait(check, outcome)
        with contextlib.ExitStack() as cleanup:
            self._waits[wait] = None
            cleanup.callback(self._waits.pop, wait)
            if pid is not None:
                # Opened before the first check: if it is that of a later process with the same
                # pid, the check no longer finds the former process.
                cleanup.enter_context(_exit_notice(pid, wait.decide))
            wait.decide()
            return await outcome

    async def _check_repeatedly(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_INTERVAL_SECONDS):
                    await self._is_due.wait()
            # A notice during the checks leads to another round.
            self._is_due.clear()
            await asyncio.sleep(_PAUSES * await self._check_all())

    async def _check_all(self) -> float:
        """Check each wait once; return the time that the checks took, in seconds."""
        total, start = 0.0, time.perf_counter()
        for wait in tuple(self._waits):
            wait.decide()
            if (spent := time.perf_counter() - start) > _SLICE_SECONDS:
                total += spent
                await asyncio.sleep(0)
                start = time.perf_counter()
        return total + time.perf_counter() - start


@dataclass(frozen=True, slots=True, eq=False)
class _Wait(Generic[T]):
    """Wait that continues until ``check`` returns a result, which becomes that of ``outcome``."""

    check: Callable[[], T | None]
    outcome: asyncio.Future[T]

    def decide(self) -> None:
        """Set the outcome if there is one."""
        if self.outcome.done():
            return
        try:
            found = self.check()
        except Exception as error:  # noqa: BLE001 - raised in the caller's task
            self.outcome.set_exception(error)
        else:
            if found is not None:
                self.outcome.set_result(found)


@contextlib.contextmanager
def _exit_notice(pid: int, notify: Callable[[], None]) -> Iterator[None]:
    """Call ``notify`` once when the process ``pid`` exits, during the context."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:  # exited, not in our pid namespace, or too many open files
        yield
        return
    loop = asyncio.get_running_loop()

    def exited() -> None:
        # If /proc shows another pid namespace, the wait may continue.
        loop.remove_reader(descriptor)
        notify()

    loop.add_reader(descriptor, exited)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _origin(path: Path) -> tuple[bool, int | None]:
    """Return True if a namespace's file is in /proc, and the pid in its path if there is one.

    A symbolic link to such a file counts too.
    """
    targets = (os.fspath(path), os.path.realpath(path))
    process = next(filter(None, map(_PROCESS.match, targets)), None)
    is_in_proc = any(target.startswith("/proc/") for target in targets)
    return is_in_proc, None if process is None else int(process[1])


def file_version(namespace: Namespace) -> tuple[int, ...] | None:
    """Return numbers that change if another file replaces that of a namespace; None without a file.

    In /proc, another namespace with the same number is not noticed.
    """
    is_in_proc, _ = _origin(namespace.path or _OWN)
    return _file_version(namespace, has_time=not is_in_proc)


def _file_version(namespace: Namespace, *, has_time: bool) -> tuple[int, ...] | None:
    """Return numbers that change if another file replaces that of a namespace; None without a file.

    ``has_time`` adds the time of the inode's creation, which only root can change. In /proc, the
    kernel may make a new inode for the same namespace at any time.
    """
    try:
        status = (namespace.path or _OWN).stat()
    except OSError:  # the identity shows the reason
        return None
    # A new namespace may get the inode number of one that was deleted 0.1 seconds before.
    return status.st_dev, status.st_ino, status.st_ctime_ns if has_time else 0


def present_identity(namespace: Namespace) -> str | None:
    """Return the identity of a namespace; None if there is no network namespace at its path.

    Raises UnsupportedError if the file can't be accessed.
    """
    path = namespace.path or _OWN
    try:
        # The file system of all namespaces. Other files are not opened: that may have an effect.
        if path.stat().st_dev != _OWN.stat().st_dev:
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            raise UnsupportedError(f"opening {namespace} failed: {error.strerror}") from error
        namespace.has_identity("")  # raises UnsupportedError without permission
        return None
    try:
        if fcntl.ioctl(descriptor, NS_GET_NSTYPE) != CLONE_NEWNET:
            return None
        return Namespace(Path(f"/proc/self/fd/{descriptor}")).identity()
    except OSError:  # another file has replaced it
        return None
    finally:
        os.close(descriptor)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
