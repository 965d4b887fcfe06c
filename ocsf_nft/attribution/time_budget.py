"""Time budget of process lookups: many requested lookups in a row must not slow the service."""

from __future__ import annotations

import time
from typing import Final

_SHARE: Final = 0.25
_MOST_SECONDS: Final = 1.0


class TimeBudget:
    """Time that process lookups may take: a quarter of the elapsed time.

    Unused time adds up to at most one second.
    """

    def __init__(self) -> None:
        self._left, self._at = _MOST_SECONDS, time.monotonic()

    def has_time_left(self) -> bool:
        """Return True if the budget has time for another lookup."""
        self.spend(0)
        return self._left > 0

    def spend(self, seconds: float) -> None:
        """Subtract the duration of a lookup from the budget."""
        now = time.monotonic()
        self._left = min(self._left + (now - self._at) * _SHARE, _MOST_SECONDS) - seconds
        self._at = now
