"""Conversion between the kernel's clocks and the wall clock."""

from __future__ import annotations

import time
from typing import Final

#: No other thread ran between two readings of a clock that are this close.
_TIGHT_NS: Final = 2_000
_TRIES: Final = 10


def epoch_of(clock: int) -> int:
    """Return the wall-clock time (ns since the epoch) at which a kernel clock was 0.

    ``clock`` is the clock's number, such as ``time.CLOCK_BOOTTIME``. To convert a reading of this
    clock to wall-clock time, add the result. The sum is wrong for readings made before the wall
    clock was last set.
    """
    # For CLOCK_MONOTONIC, the sum is also wrong for readings made before the last suspend.
    width_ns, epoch_ns = _read(clock)
    # The scheduler may stop the thread between two reads: use the fastest try.
    for _ in range(_TRIES):
        if width_ns < _TIGHT_NS:
            break
        width_ns, epoch_ns = min((width_ns, epoch_ns), _read(clock))
    return epoch_ns


def _read(clock: int) -> tuple[int, int]:
    """Return how long a reading of both clocks took, and when ``clock`` was 0, both in ns."""
    before_ns = time.clock_gettime_ns(clock)
    wall_ns = time.time_ns()
    width_ns = time.clock_gettime_ns(clock) - before_ns
    return width_ns, wall_ns - before_ns - width_ns // 2
