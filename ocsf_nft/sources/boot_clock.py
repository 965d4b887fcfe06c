"""Conversion of the kernel log's clock to wall-clock time.

The kernel log (printk) stamps a record with ``local_clock()`` (kernel/printk/printk.c,
vprintk_store): nanoseconds since boot without suspended time, counted by the uncorrected processor
clock. CLOCK_MONOTONIC is the same count, corrected by NTP. Both clocks start together and drift
apart. The measured difference was 0.6 ms after 20 minutes. A bad oscillator (50 ppm) causes a
difference of 4 s a day.

User space can't read the difference of these clocks. But each record gives an upper and a lower
bound for the difference. The upper bound follows because a record can't come from the future. The
lower bound follows if a reader was waiting: it gets a record within some milliseconds. A reader or
a journald that was stopped gets records much later. Such a delay must not count as drift. The
converter recognises it, because real drift grows no faster than the oscillator's error allows.
"""

from __future__ import annotations

import time
from typing import Final

from ocsf_nft import clocks

#: Maximum age of a record when a waiting reader reads it: printk wakes readers at the next timer
#: tick (10 ms at HZ=100).
KMSG_SLACK_NS: Final = 20_000_000
#: The same for a record that journald delivers.
JOURNAL_SLACK_NS: Final = 100_000_000
#: Maximum by which journald's stamps are too early: journald takes the time once per iteration of
#: its event loop, and may read many records in one.
JOURNAL_LAG_NS: Final = 100_000_000
#: Maximum drift of the clocks, as a divisor of the elapsed time (100 ppm).
_DRIFT_DIVISOR: Final = 10_000


class KernelClock:
    """Converter of kernel log (printk) timestamps to CLOCK_MONOTONIC, in nanoseconds.

    The converter estimates the difference of the two clocks, and adds it to each timestamp. The
    estimate is 0 at first. Each record gives bounds for the difference. They follow from the
    record's apparent age, which is the read time minus the timestamp:

    - The upper bound is the apparent age plus ``lag_ns``. A reported read time may be too early by
      at most ``lag_ns``. With time, this bound grows by the largest possible drift (100 ppm).
    - The lower bound is the apparent age minus ``slack_ns``. It exists only if the reader was
      waiting. A waiting reader reads a record at most ``slack_ns`` after the kernel made it.

    If the lower bound is above the upper bound, the record waited in a queue, and the upper bound
    applies. The estimate changes only if a bound requires a change. So the error of a result is at
    most the distance between the bounds, and usually much less. If ``lag_ns`` is 0, no result is
    later than ``read_ns``. No result is earlier than the previous result.
    """

    __slots__ = ("_lag_ns", "_last_ns", "_limit_ns", "_limited_ns", "_offset_ns", "_slack_ns")

    def __init__(self, slack_ns: int, lag_ns: int = 0) -> None:
        self._slack_ns = slack_ns
        self._lag_ns = lag_ns
        self._offset_ns = 0
        #: The difference was at most ``_limit_ns`` at ``_limited_ns``; at boot it was 0.
        self._limit_ns = 0
        self._limited_ns = 0
        self._last_ns = 0

    def monotonic_ns(self, stamp_ns: int, read_ns: int, *, waited: bool) -> int:
        """Convert ``stamp_ns``, a kernel log timestamp, to CLOCK_MONOTONIC.

        ``read_ns`` is the CLOCK_MONOTONIC time at which the record was read. It must not be earlier
        than in the previous call. ``waited`` is true if the reader was waiting when the record
        arrived.
        """
        age_ns = read_ns - stamp_ns
        limit_ns = self._limit_ns + (read_ns - self._limited_ns) // _DRIFT_DIVISOR
        if age_ns + self._lag_ns < limit_ns:
            limit_ns = age_ns + self._lag_ns
            self._limit_ns, self._limited_ns = limit_ns, read_ns
        if waited:
            self._offset_ns = max(self._offset_ns, age_ns - self._slack_ns)
        self._offset_ns = min(self._offset_ns, limit_ns)
        self._last_ns = max(self._last_ns, stamp_ns + self._offset_ns)
        return self._last_ns


def boottime_ns() -> int:
    """Return the time since boot in nanoseconds, including suspended time (CLOCK_BOOTTIME).

    No process can set this clock.
    """
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wall_ns(monotonic_ns: int) -> int:
    """Convert a CLOCK_MONOTONIC time to nanoseconds since the epoch, UTC.

    The conversion uses the current difference of CLOCK_MONOTONIC and the wall clock. So the result
    is wrong for a time before the last change of the wall clock or the last suspend.
    """
    return monotonic_ns + clocks.epoch_of(time.CLOCK_MONOTONIC)
