"""Take no more memory than is used: what glibc would keep for later is given back.

Numbers: ``malloc.h``. Another C library has no such functions, and keeps memory in its own way.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
#: What glibc begins with.
_MMAP_BYTES: Final = 128 << 10


def keep_large_apart() -> None:
    """Keep large blocks out of the heap, for good.

    By itself glibc begins to take them from there once one was given back (mallopt(3)), and those
    that nobody writes to are written to then.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def share_heap() -> None:
    """Have all threads that begin from now on take from one heap, for good."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Give back what is free."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
