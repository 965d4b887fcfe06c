"""Time budget of process lookups, so that frequent lookups can't slow the service."""

from __future__ import annotations

import time
from typing import Final

_SHARE: Final = 0.25
_MOST_SECONDS: Final = 1.0


class TimeBudget:
    """Limit of the time for process lookups: at most a quarter of the elapsed time.

    Unused time is saved for later lookups, but never more than one second.
    """

    def __init__(self) -> None:
        self._left, self._at = _MOST_SECONDS, time.monotonic()

    def has_time_left(self) -> bool:
        """Return True if the budget has time for another lookup."""
        self.spend(0)
        return self._left > 0

    def spend(self, seconds: float) -> None:
        """Subtract the duration of a lookup, in seconds, from the budget."""
        now = time.monotonic()
        self._left = min(self._left + (now - self._at) * _SHARE, _MOST_SECONDS) - seconds
        self._at = now
