"""From the kernel log's clock to wall-clock time.

printk stamps a record with ``local_clock()`` (kernel/printk/printk.c, vprintk_store): nanoseconds
since boot without time suspended, counted by the bare processor clock. CLOCK_MONOTONIC is the same
count disciplined by NTP, so the two start together and drift apart: 0.6 ms were measured after 20
minutes, and a bad oscillator (50 ppm) makes 4 s a day. Nothing in user space tells the difference,
but every record that is read bounds it: a record can't come from the future, and one that arrives
while its reader waits for it is as old as the way to the reader is long.
"""

from __future__ import annotations

import time
from typing import Final

#: A record that its reader waited for is not older than this when it is read.
KMSG_SLACK_NS: Final = 10_000_000
#: The same with journald in between.
JOURNAL_SLACK_NS: Final = 100_000_000


class KernelClock:
    """Turns printk stamps into CLOCK_MONOTONIC readings; learns the drift from what it sees.

    All times are nanoseconds. A result is never later than the moment the record was read, never
    earlier than the result before it, and, once a record was waited for, at most ``slack_ns`` early
    and no later than the quickest delivery seen since then (about 0.1 ms for /dev/kmsg), as long as
    deliveries stay below the slack.
    """

    __slots__ = ("_last_ns", "_offset_ns", "_slack_ns")

    def __init__(self, slack_ns: int) -> None:
        self._slack_ns = slack_ns
        self._offset_ns = 0
        self._last_ns = 0

    def monotonic_ns(self, stamp_ns: int, read_ns: int, *, waited: bool) -> int:
        """CLOCK_MONOTONIC at which the kernel stamped ``stamp_ns``.

        ``read_ns`` is CLOCK_MONOTONIC when the record was read, and must not go backwards;
        ``waited`` says that the reader was waiting when it came.
        """
        latest = read_ns - stamp_ns
        if waited:
            self._offset_ns = max(self._offset_ns, latest - self._slack_ns)
        self._offset_ns = min(self._offset_ns, latest)
        self._last_ns = max(self._last_ns, stamp_ns + self._offset_ns)
        return self._last_ns


def wall_ns(monotonic_ns: int) -> int:
    """Nanoseconds since the epoch, UTC, of a CLOCK_MONOTONIC reading.

    By the difference of the two clocks now: right for what happened since the wall clock was last
    set and the machine last suspended.
    """
    return monotonic_ns + time.time_ns() - time.monotonic_ns()
