"""Settings of glibc's malloc that return unused memory to the system.

Numbers: ``malloc.h``. Other C libraries lack these functions; then nothing happens.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
#: glibc's initial threshold.
_MMAP_BYTES: Final = 128 << 10


def fix_mmap_threshold() -> None:
    """Allocate large blocks outside the heap, permanently.

    By default, glibc raises the threshold when such a block is freed, and then takes large blocks
    from the heap (mallopt(3)). There, blocks that no code writes to are written to as well.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def use_one_heap() -> None:
    """Let all threads that start from now on allocate from one heap, permanently."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def trim() -> None:
    """Return free memory to the system."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
