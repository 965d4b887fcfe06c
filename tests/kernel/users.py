"""Attempts as a given user with given capabilities, in a separate thread."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

CAP_NET_RAW: Final = 13  # include/uapi/linux/capability.h
_VERSION_3: Final = 0x20080522
_PR_SET_KEEPCAPS: Final = 8
#: Numbers of setgroups(2), setresgid(2) and setresuid(2).
_SYSTEM_CALLS: Final = {"x86_64": (116, 119, 117), "aarch64": (159, 149, 147)}


def as_user(uid: int, work: Callable[[], T], *, capabilities: frozenset[int]) -> Callable[[], T]:
    """Return the same function, run by the user with exactly these capabilities.

    The user has one group, with the same number.

    Call the result in a thread that ends with it (as :meth:`Namespace.call` does). It changes only
    that thread: it uses system calls; the library functions of the same name change all threads.
    """

    def inside() -> T:
        libc = ctypes.CDLL(None, use_errno=True)
        mask = sum(1 << capability for capability in capabilities)
        header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
        # Effective, permitted and inheritable capabilities, in two words.
        sets = (ctypes.c_uint32 * 6)(mask, mask, 0, 0, 0, 0)
        _check(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
        setgroups, setresgid, setresuid = _SYSTEM_CALLS[platform.machine()]
        _check(libc.syscall(setgroups, 0, None))
        _check(libc.syscall(setresgid, uid, uid, uid))
        _check(libc.syscall(setresuid, uid, uid, uid))
        _check(libc.capset(header, sets))
        return work()

    return inside


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
