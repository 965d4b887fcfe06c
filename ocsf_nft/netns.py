"""Network namespaces: name one, open it, do something inside it.

``setns(2)`` moves the calling *thread*, so work inside a namespace runs in a thread of its own
that ends with the work; the rest of the process never leaves where it is. A socket opened and a
child started there stay in that namespace. Moving needs CAP_SYS_ADMIN (over the own user
namespace and the one that owns the target); the current namespace needs nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from ocsf_nft.errors import AbsentError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

CLONE_NEWNET: Final = 0x40000000  # include/uapi/linux/sched.h
#: Where ``ip netns add`` keeps its names (iproute2's NETNS_RUN_DIR).
NAMED: Final = Path("/run/netns")
_OWN: Final = Path("/proc/thread-self/ns/net")


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace by the path of its file; ``path`` is None for the process's own."""

    path: Path | None = None

    def __str__(self) -> str:
        """As a person names it."""
        return "this network namespace" if self.path is None else str(self.path)

    def identity(self) -> str:
        """Device and inode of the namespace, as text: differs when it was made anew.

        Raises AbsentError when it is not there, UnsupportedError when it can't be looked at.
        """
        try:
            status = (self.path or _OWN).stat()
        except OSError as error:
            raise _unreachable(self, error) from error
        return f"{status.st_dev}:{status.st_ino}"

    def call(self, work: Callable[[], T]) -> T:
        """Run ``work`` inside and return what it returns; blocks until it is done.

        Raises AbsentError when there is no such namespace, UnsupportedError when entering it is
        not permitted, and whatever ``work`` raises.
        """
        _need_linux()
        if self.path is None:
            return work()
        path = self.path
        return _in_thread(lambda: _enter(self, path), work)


def named(name: str) -> Namespace:
    """The namespace of an ``ip netns`` name, or of a path when ``name`` holds a slash."""
    return Namespace(Path(name) if "/" in name else NAMED / name)


def in_scratch(work: Callable[[], T]) -> T:
    """Run ``work`` inside a new, empty network namespace that ends with it.

    Needs CAP_SYS_ADMIN; raises UnsupportedError without, and whatever ``work`` raises.
    """
    _need_linux()
    return _in_thread(_unshare, work)


def of_process(pid: int) -> Namespace:
    """The namespace that a process lives in."""
    return Namespace(Path(f"/proc/{pid}/ns/net"))


def _need_linux() -> None:
    if sys.platform != "linux":
        raise UnsupportedError(
            f"nftables and network namespaces need Linux: on {sys.platform} only `convert` and "
            "`explain` work"
        )


def _in_thread(enter: Callable[[], None], work: Callable[[], T]) -> T:
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
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise UnsupportedError(
            f"making a network namespace failed ({os.strerror(ctypes.get_errno())}): "
            "it needs CAP_SYS_ADMIN"
        )


def _unreachable(namespace: Namespace, error: OSError) -> AbsentError | UnsupportedError:
    if isinstance(error, PermissionError):
        return UnsupportedError(
            f"opening {namespace} is not permitted: run as root or with CAP_SYS_PTRACE"
        )
    if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:  # says nothing about it
        return UnsupportedError(f"opening {namespace} failed: {error.strerror}")
    return AbsentError(f"there is no network namespace at {namespace}: {error.strerror}")


def _enter(namespace: Namespace, path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise _unreachable(namespace, error) from error
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise UnsupportedError(
                f"entering {path} failed ({os.strerror(code)}): "
                "it must be a network namespace, and entering needs CAP_SYS_ADMIN"
            )
    finally:
        os.close(descriptor)
