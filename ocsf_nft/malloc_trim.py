"""Settings of glibc's malloc that return unused memory to the system.

With another C library, each function does nothing. The constants are from ``malloc.h``.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
#: glibc's initial threshold. By default, glibc raises it when a large block is freed (mallopt(3)).
_MMAP_BYTES: Final = 128 << 10


def fix_mmap_threshold() -> None:
    """Make glibc allocate blocks of 128 KiB or more outside the heap, until the process ends.

    When such a block is freed, its memory returns to the system.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def use_one_heap() -> None:
    """Make all threads that start from now on allocate from one heap, to save memory."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def trim() -> None:
    """Return free memory of the heap to the system."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
