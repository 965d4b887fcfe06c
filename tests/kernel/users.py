"""Attempts as a certain user, with certain capabilities, by a thread that is nobody else's."""

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
_SETRESUID: Final = {"x86_64": 117, "aarch64": 147}


def as_user(uid: int, work: Callable[[], T], *, capabilities: frozenset[int]) -> Callable[[], T]:
    """The same work by the user, with these capabilities and no others.

    To be called in a thread that ends with it (as :meth:`Namespace.call` does): it changes that
    thread alone, as the system calls do and the library's functions of the same name don't.
    """

    def inside() -> T:
        libc = ctypes.CDLL(None, use_errno=True)
        mask = sum(1 << capability for capability in capabilities)
        header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
        # Effective, permitted and inheritable, by two words.
        sets = (ctypes.c_uint32 * 6)(mask, mask, 0, 0, 0, 0)
        _check(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
        _check(libc.syscall(_SETRESUID[platform.machine()], uid, uid, uid))
        _check(libc.capset(header, sets))
        return work()

    return inside


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
