"""Network namespaces: find one by name, and run code inside it.

The code runs in a new thread, which enters the namespace. To enter a namespace, the process needs
CAP_SYS_ADMIN.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from ocsf_nft.errors import AbsentError, UnsupportedError, UsageError, reason_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

T = TypeVar("T")

CLONE_NEWNET: Final = 0x40000000  # include/uapi/linux/sched.h
_SIOCGSKNS: Final = 0x894C  # include/uapi/linux/sockios.h
NS_GET_NSTYPE: Final = 0xB703  # include/uapi/linux/nsfs.h
#: Directory of the names of ``ip netns add`` (iproute2's NETNS_RUN_DIR).
NAMED: Final = Path("/run/netns")
_OWN: Final = Path("/proc/thread-self/ns/net")


@dataclass(frozen=True, slots=True)
class Namespace:
    """Network namespace with the file ``path``, such as ``/run/netns/NAME``.

    If ``path`` is None, the object stands for the current namespace of the calling thread.
    """

    path: Path | None = None
    #: The only :meth:`identity` that is accepted; None accepts each namespace at this path.
    pin: str | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        """Return the path of the namespace, or "this network namespace" if there is no path."""
        return "this network namespace" if self.path is None else str(self.path)

    def identity(self) -> str:
        """Return the device and inode of the namespace's file, as a text such as ``4:4026531840``.

        The text normally changes if another namespace replaces this one, but the kernel may reuse
        the inode number. Raises AbsentError if the file does not exist, or if it is another than
        the pinned one. Raises UnsupportedError if access fails, for example without permission.
        """
        try:
            status = (self.path or _OWN).stat()
        except OSError as error:
            raise _unreachable(self, error) from error
        return _accepted(self, status)

    def pinned(self, identity: str | None = None) -> Namespace:
        """Return this namespace without any other one that has its path later, such as a reused id.

        ``identity`` is its :meth:`identity`, by default the present one. The namespace of the
        calling thread is returned unchanged. Raises the errors of :meth:`identity`.
        """
        if self.path is None:
            return self
        return Namespace(self.path, self.identity() if identity is None else identity)

    def has_identity(self, identity: str) -> bool:
        """Return True if :meth:`identity` of the namespace is ``identity``, False if it is deleted.

        Raises UnsupportedError if access fails.
        """
        try:
            return self.identity() == identity
        except AbsentError:
            return False

    def is_deleted(self) -> bool:
        """Return True if the namespace had a name of ``ip netns``, and that name is deleted.

        Of another namespace this can't be known: the process with the namespace may be invisible.
        Without the directory of the names it can't be known either.
        """
        if self.path is None or self.path.parent != NAMED:
            return False
        try:
            return self.path.name not in os.listdir(NAMED)  # noqa: PTH208 - names suffice
        except OSError:
            return False

    def call(self, work: Callable[[], T]) -> T:
        """Run ``work`` inside the network namespace; return the result when ``work`` has ended.

        Raises AbsentError if the namespace does not exist, or is another than the pinned one,
        UsageError if it is one of another kind, UnsupportedError if it can't be entered. Exceptions
        of ``work`` are raised unchanged.
        """
        require_linux()
        if self.path is None:
            return work()
        path = self.path
        return _in_thread(lambda: _enter(self, path), work)


#: Namespace of this process: that of the host, where a service runs and the guards are.
HOST: Final = Namespace()


def call_beside(sock: socket.socket, work: Callable[[], T]) -> T:
    """Run ``work`` inside the network namespace of a socket; return its result.

    This works also if the namespace has no file any more. Raises UnsupportedError if the namespace
    can't be entered. Exceptions of ``work`` are raised unchanged.
    """
    try:
        descriptor = fcntl.ioctl(sock, _SIOCGSKNS)
    except (OSError, ValueError) as error:  # another thread may have closed it
        raise UnsupportedError(
            f"the network namespace of a socket can't be opened: {reason_of(error)}"
        ) from error
    try:
        # A run in the sandbox's own namespace may lack the privilege to enter even this one.
        if os.path.samestat(os.fstat(descriptor), _OWN.stat()):
            return work()
        return _in_thread(lambda: _enter_descriptor(descriptor), work)
    finally:
        os.close(descriptor)


def _enter_descriptor(descriptor: int) -> None:
    if (reason := _failure("setns", descriptor, CLONE_NEWNET)) is not None:
        raise UnsupportedError(f"entering a network namespace failed: {reason}")


def named(name: str) -> Namespace:
    """Return a network namespace by its name in ``ip netns list``, or by its path.

    A ``name`` that contains a slash is the path of the namespace's file. The namespace need not
    exist.
    """
    return Namespace(Path(name) if "/" in name else NAMED / name)


def in_scratch(work: Callable[[], T]) -> T:
    """Run ``work`` inside a new, empty network namespace; return the result of ``work``.

    The kernel deletes the namespace after the end of ``work``. Raises UnsupportedError if the
    process lacks CAP_SYS_ADMIN. Exceptions of ``work`` are raised unchanged.
    """
    require_linux()
    return _in_thread(_unshare, work)


def of_process(pid: int) -> Namespace:
    """Return the network namespace of the process with the id ``pid``."""
    return Namespace(Path(f"/proc/{pid}/ns/net"))


def require_linux() -> None:
    """Raise UnsupportedError on another system than Linux."""
    if sys.platform != "linux":
        raise UnsupportedError(
            f"nftables and network namespaces need Linux: on {sys.platform} only `convert` and "
            "`explain` work"
        )


def _in_thread(enter: Callable[[], None], work: Callable[[], T]) -> T:
    # setns(2) and unshare(2) affect only the calling thread. Sockets and child processes that
    # ``work`` makes stay in the entered namespace.
    results: list[T] = []
    errors: list[BaseException] = []

    def inside() -> None:
        try:
            enter()
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - handed to the caller below
            errors.append(error)

    thread = threading.Thread(target=inside, name="netns", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # the limit of processes is reached
        raise UnsupportedError(f"a network namespace can't be entered: {error}") from error
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _unshare() -> None:
    if (reason := _failure("unshare", CLONE_NEWNET)) is not None:
        raise UnsupportedError(
            f"making a network namespace failed ({reason}): it needs CAP_SYS_ADMIN"
        )


def _unreachable(namespace: Namespace, error: OSError) -> AbsentError | UnsupportedError:
    if isinstance(error, PermissionError):
        return UnsupportedError(
            f"opening {namespace} is not permitted: run as root or with CAP_SYS_PTRACE"
        )
    if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:  # not an error of the namespace
        return UnsupportedError(f"opening {namespace} failed: {error.strerror}")
    return AbsentError(
        f"there is no network namespace at {namespace} ({error.strerror}): {_remedy(namespace)}"
    )


def _accepted(namespace: Namespace, status: os.stat_result) -> str:
    """Return the identity of a namespace's file; raise AbsentError for another than the pinned."""
    found = f"{status.st_dev}:{status.st_ino}"
    if namespace.pin not in {None, found}:
        raise AbsentError(f"{namespace} was replaced by another network namespace: try again")
    return found


def _remedy(namespace: Namespace) -> str:
    path = namespace.path
    if path is not None and path.parent == NAMED:
        return "`ip netns list` shows the names"
    if path is not None and path.is_relative_to("/proc"):
        return "name a process that runs"
    return "name the file of one"


def _open(namespace: Namespace, path: Path) -> int:
    """Open the file of a namespace; raise the errors of :meth:`Namespace.call`."""
    try:
        # O_PATH opens no device and waits for no writer of a FIFO: a user of the control API may
        # give any path.
        handle = os.open(path, os.O_PATH)
        try:
            # The file system of all namespaces.
            if os.fstat(handle).st_dev == _OWN.stat().st_dev:
                return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY)
        finally:
            os.close(handle)
    except OSError as error:
        raise _unreachable(namespace, error) from error
    raise AbsentError(
        f"there is no network namespace at {namespace} (it is another kind of file): "
        f"{_remedy(namespace)}"
    )


def _enter(namespace: Namespace, path: Path) -> None:
    descriptor = _open(namespace, path)
    try:
        # CAP_SYS_ADMIN is also needed in the user namespace that owns the network namespace.
        if fcntl.ioctl(descriptor, NS_GET_NSTYPE) != CLONE_NEWNET:
            raise UsageError(f"{path} is no network namespace: name the file of one, or its name")
        _accepted(namespace, os.fstat(descriptor))
        if (reason := _failure("setns", descriptor, CLONE_NEWNET)) is not None:
            raise UnsupportedError(f"entering {path} failed ({reason}): it needs CAP_SYS_ADMIN")
    finally:
        os.close(descriptor)


def _failure(function: str, *arguments: int) -> str | None:
    """Call a function of the C library; return the reason if it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    failed = getattr(libc, function)(*arguments) != 0
    return os.strerror(ctypes.get_errno()) if failed else None
