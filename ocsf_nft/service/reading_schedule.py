"""Times at which a sandbox's packet counters are read."""

from __future__ import annotations

import time
from typing import Final

#: Shortest pause between two readings, pause while an event may become due, and longest pause of an
#: idle sandbox.
READ_SECONDS: Final = 0.5
_ACTIVE_SECONDS: Final = 1.0
IDLE_SECONDS: Final = 30.0
#: Readings take at most a tenth of the time: with many flows they are less frequent, up to a limit.
#: A reading of more than a second is not usual: then the limit is that of an idle sandbox.
_PART: Final = 10
_LONGEST_SECONDS: Final = 2.0
_SLOW_SECONDS: Final = 1.0
#: Pause from which the counters' sockets are closed meanwhile.
_CLOSE_SECONDS: Final = 4.0


class ReadingSchedule:
    """Times of the readings: often while records come or events are due, else growing pauses.

    An idle sandbox is read after ``longest_seconds`` at the latest.
    """

    def __init__(self, longest_seconds: float = IDLE_SECONDS) -> None:
        self._longest_seconds = longest_seconds
        #: Shortest pause now, and present pause.
        self._busy_seconds = self._seconds = READ_SECONDS
        self._read_at = self._planned_at = time.monotonic()
        #: When the first of the readings was planned that have failed since the last success.
        self._failed_at: float | None = None

    @property
    def is_idle(self) -> bool:
        """Return True if the present pause is so long that reading again needs no open socket."""
        return self._seconds >= _CLOSE_SECONDS

    @property
    def wait_seconds(self) -> float:
        """Return how long to wait for the next reading if no record comes."""
        return max(0.0, self._planned_at - time.monotonic())

    @property
    def early_seconds(self) -> float:
        """Return how long to wait for the next reading although a record has come."""
        return max(0.0, self._read_at + self._busy_seconds - time.monotonic())

    @property
    def late_seconds(self) -> float:
        """Return how long the next reading is overdue."""
        return max(0.0, time.monotonic() - self._planned_at)

    @property
    def unread_seconds(self) -> float:
        """Return how long no reading has succeeded, beyond the planned pause."""
        begin = self._planned_at if self._failed_at is None else self._failed_at
        return max(0.0, time.monotonic() - begin)

    def note_reading(self, seconds: float) -> None:
        """Note that a reading has succeeded now, and took ``seconds`` with its processing."""
        self._failed_at = None
        longest = _LONGEST_SECONDS if seconds <= _SLOW_SECONDS else IDLE_SECONDS
        self._busy_seconds = min(max(READ_SECONDS, _PART * seconds), longest)
        self._restart()

    def hurry(self) -> None:
        """Plan the next reading as early as possible, because a record has come."""
        now = time.monotonic()
        self._planned_at = min(self._planned_at, max(now, self._read_at + self._busy_seconds))

    def note_failure(self) -> None:
        """Note that a reading has failed now: the pauses until a success grow."""
        if self._failed_at is None:
            self._failed_at = self._planned_at
        self._busy_seconds = min(2 * self._busy_seconds, self._longest_seconds)
        self._restart()

    def plan(self, *, is_active: bool, expiry_seconds: float | None = None) -> None:
        """Plan the next reading after the latest one.

        ``is_active`` is true if an event may become due without a new packet. In ``expiry_seconds``
        the flows must be read, because the kernel has deleted some of them; None if it has none.
        """
        pause = _ACTIVE_SECONDS if is_active else 2 * self._seconds
        seconds = max(self._busy_seconds, min(pause, self._longest_seconds))
        if expiry_seconds is not None and not is_active:
            seconds = min(seconds, max(self._busy_seconds, expiry_seconds + READ_SECONDS))
        self._seconds = seconds
        self._planned_at = self._read_at + seconds

    def _restart(self) -> None:
        self._read_at = time.monotonic()
        self._planned_at = self._read_at + max(self._seconds, self._busy_seconds)
