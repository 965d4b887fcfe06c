"""Clock for the age of stored rows: a jump of the wall clock makes no row older."""

from __future__ import annotations

import time


class StorageClock:
    """Clock that begins at the wall clock's time, and then advances by the monotonic clock.

    ``newest_ms`` is the time of the newest stored row. The clock begins at this time if the wall
    clock was set back.
    """

    def __init__(self, newest_ms: int = 0) -> None:
        self._opened_ms = max(time.time_ns() // 1_000_000, newest_ms)
        self._opened_ns = time.monotonic_ns()

    def now_ms(self) -> int:
        """Return the present time in ms since the epoch."""
        return self._opened_ms + (time.monotonic_ns() - self._opened_ns) // 1_000_000
