"""From the kernel log's clock to wall-clock time.

printk stamps a record with ``local_clock()`` (kernel/printk/printk.c, vprintk_store): nanoseconds
since boot without time suspended, counted by the bare processor clock. CLOCK_MONOTONIC is the same
count disciplined by NTP, so the two start together and drift apart: 0.6 ms were measured after 20
minutes, and a bad oscillator (50 ppm) makes 4 s a day. Nothing in user space tells the difference,
but every record that is read bounds it: a record can't come from the future, and one that arrives
while its reader waits for it is as old as the way to the reader is long. A reader or a journald
that was stopped in between makes that way longer, and that is not drift: drift grows no faster
than an oscillator is bad.
"""

from __future__ import annotations

import time
from typing import Final

from ocsf_nft import clocks

#: A record that its reader waited for is not older than this when it is read: printk wakes readers
#: at the next timer tick (10 ms at HZ=100).
KMSG_SLACK_NS: Final = 20_000_000
#: The same with journald in between, and how much journald's stamps may be early: it takes the
#: time once per turn of its event loop and may read many records in one.
JOURNAL_SLACK_NS: Final = 100_000_000
JOURNAL_LAG_NS: Final = 100_000_000
#: The clocks drift apart by no more than one part in so many (100 ppm).
_DRIFT_DIVISOR: Final = 10_000


class KernelClock:
    """Turns printk stamps into CLOCK_MONOTONIC readings; learns the drift from what it sees.

    All times are nanoseconds. Without better knowledge the two clocks are taken for equal. Each
    record then bounds their difference: it was made at most ``lag_ns`` after the moment it is said
    to have been read and, when it was waited for, at most ``slack_ns`` before, as far as a drift
    of 100 ppm since the least age that was seen can make it so: what is older stood in a queue.
    The difference is only moved when a bound says so. So a result is wrong by no more than the
    bounds are wide, and usually by much less; with ``lag_ns`` 0 it is never later than the reading.
    Results never go backwards.
    """

    __slots__ = ("_lag_ns", "_last_ns", "_limit_ns", "_limited_ns", "_offset_ns", "_slack_ns")

    def __init__(self, slack_ns: int, lag_ns: int = 0) -> None:
        self._slack_ns = slack_ns
        self._lag_ns = lag_ns
        self._offset_ns = 0
        #: The difference was at most ``_limit_ns`` at ``_limited_ns``: at boot there was none.
        self._limit_ns = 0
        self._limited_ns = 0
        self._last_ns = 0

    def monotonic_ns(self, stamp_ns: int, read_ns: int, *, waited: bool) -> int:
        """CLOCK_MONOTONIC at which the kernel stamped ``stamp_ns``.

        ``read_ns`` is CLOCK_MONOTONIC when the record was read, and must not go backwards;
        ``waited`` says that the reader was waiting when it came.
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
    """CLOCK_BOOTTIME, which nobody sets."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wall_ns(monotonic_ns: int) -> int:
    """Return the nanoseconds since the epoch, UTC, of a CLOCK_MONOTONIC reading.

    The current difference of the two clocks is valid for times after the wall clock was last
    set and the machine last suspended.
    """
    return monotonic_ns + clocks.epoch_of(time.CLOCK_MONOTONIC)
