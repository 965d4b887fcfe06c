"""Identifier of the current boot, and clocks that count from boot.

The clock of the kernel log drifts from CLOCK_MONOTONIC, and user space can't read the difference.
So :class:`KernelClock` estimates this difference.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from ocsf_nft import clocks
from ocsf_nft.errors import UnsupportedError

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
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
#: Records, and the time in which they are read, that prove a drift: a busy machine does not delay
#: all of them.
_PROOF_RECORDS: Final = 8
_PROOF_NS: Final = 10_000_000_000


# The kernel log (printk) takes its timestamps from ``local_clock()`` (kernel/printk/printk.c,
# vprintk_store). Like CLOCK_MONOTONIC, this clock counts nanoseconds since boot, without suspended
# time; but NTP corrects only CLOCK_MONOTONIC. A measurement showed a drift of 0.6 ms after 20
# minutes. A bad oscillator (50 ppm) causes 4 s a day.
class KernelClock:
    """Converter of kernel log (printk) timestamps to CLOCK_MONOTONIC; results never decrease.

    A waiting reader reads a message at most ``slack_ns`` after the kernel has logged the message.
    The time of the read that a caller passes is at most ``lag_ns`` before the real read.
    """

    def __init__(self, slack_ns: int, lag_ns: int = 0) -> None:
        self._slack_ns = slack_ns
        self._lag_ns = lag_ns
        self._offset_ns = 0
        #: The difference was at most ``_limit_ns`` at ``_limited_ns``; at boot it was 0.
        self._limit_ns = 0
        self._limited_ns = 0
        self._last_ns = 0
        #: The difference is not less than this, unless every record of a proof was read late.
        self._proven_ns = 0
        #: How much the latest result can be too late, because the first records were read late.
        self.unproven_ns = 0
        #: Records that were waited for since ``_since_ns``, and the least age of one.
        self._records = self._since_ns = self._least_age_ns = 0

    def monotonic_ns(self, stamp_ns: int, read_ns: int, *, waited: bool) -> int:
        """Convert ``stamp_ns``, the timestamp of a kernel log record, to CLOCK_MONOTONIC.

        ``read_ns`` is the CLOCK_MONOTONIC time of the read; it must not decrease between calls.
        ``waited`` is true if the reader was already waiting when the record arrived.
        """
        # The difference is at most the age, because no record is from the future. Later it may be
        # greater, by the largest possible drift.
        age_ns = read_ns - stamp_ns
        limit_ns = self._limit_ns + (read_ns - self._limited_ns) // _DRIFT_DIVISOR
        if age_ns + self._lag_ns < limit_ns:
            limit_ns = age_ns + self._lag_ns
            self._limit_ns, self._limited_ns = limit_ns, read_ns
        # A waiting reader reads a record soon after the record's timestamp.
        if waited:
            self._offset_ns = max(self._offset_ns, age_ns - self._slack_ns)
            self._prove(age_ns, read_ns)
        # The upper limit is applied last: a record that waited in a queue must not count as drift.
        self._offset_ns = min(self._offset_ns, limit_ns)
        self._proven_ns = min(self._proven_ns, limit_ns)
        self._last_ns = max(self._last_ns, stamp_ns + self._offset_ns)
        self.unproven_ns = self._last_ns - (stamp_ns + self._proven_ns)
        return self._last_ns

    def _prove(self, age_ns: int, read_ns: int) -> None:
        if self._records == 0:
            self._since_ns, self._least_age_ns = read_ns, age_ns
        self._records += 1
        self._least_age_ns = min(self._least_age_ns, age_ns)
        if self._records >= _PROOF_RECORDS and read_ns - self._since_ns >= _PROOF_NS:
            self._proven_ns = max(self._proven_ns, self._least_age_ns - self._slack_ns)
            self._records = 0


def boottime_ns() -> int:
    """Return the time since boot in nanoseconds, including suspended time (CLOCK_BOOTTIME).

    No process can set this clock.
    """
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wall_ns(monotonic_ns: int) -> int:
    """Convert a CLOCK_MONOTONIC time to nanoseconds since the epoch, UTC.

    The result is wrong if the wall clock was set, or the host was suspended, after
    ``monotonic_ns``.
    """
    return monotonic_ns + clocks.epoch_of(time.CLOCK_MONOTONIC)


def boot_id() -> str:
    """Return the kernel's random id of this boot: 32 hexadecimal digits, as in the journal.

    Raises UnsupportedError if /proc can't be read.
    """
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip().replace("-", "")
    except OSError as error:
        raise UnsupportedError(
            f"the boot id can't be read ({error.strerror}): mount procfs at /proc"
        ) from error
