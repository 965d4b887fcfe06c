"""Conversion between the kernel's clocks and the wall clock."""

from __future__ import annotations

import time
from typing import Final

#: Two readings of a clock that are this close had no other thread in between.
_TIGHT_NS: Final = 2_000
_TRIES: Final = 10


def epoch_of(clock: int) -> int:
    """Return the nanoseconds since the epoch, UTC, at which ``clock`` was 0.

    ``clock`` is ``time.CLOCK_BOOTTIME`` or ``time.CLOCK_MONOTONIC``. The result is right for what
    happened since the wall clock was last set (for CLOCK_MONOTONIC: and since the machine was last
    suspended).

    The thread may lose its processor between two readings. So the wall clock is read between two
    readings of ``clock``, and the tightest of a few tries counts.
    """
    width_ns, epoch_ns = _read(clock)
    for _ in range(_TRIES):
        if width_ns < _TIGHT_NS:
            break
        width_ns, epoch_ns = min((width_ns, epoch_ns), _read(clock))
    return epoch_ns


def _read(clock: int) -> tuple[int, int]:
    """Read both clocks once: how long that took, and the epoch of ``clock``."""
    before_ns = time.clock_gettime_ns(clock)
    wall_ns = time.time_ns()
    width_ns = time.clock_gettime_ns(clock) - before_ns
    return width_ns, wall_ns - before_ns - width_ns // 2
