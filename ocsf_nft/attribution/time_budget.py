"""Time that may be spent on looking: whoever makes us look all the time is not to slow us down."""

from __future__ import annotations

import time
from typing import Final

_PART: Final = 0.25
_MOST_AT_ONCE: Final = 1.0


class Credit:
    """A quarter of the time, and a second at once."""

    def __init__(self) -> None:
        self._left, self._at = _MOST_AT_ONCE, time.monotonic()

    def has_some(self) -> bool:
        """Whether there is any left."""
        self.spend(0)
        return self._left > 0

    def spend(self, seconds: float) -> None:
        """Take some off."""
        now = time.monotonic()
        self._left = min(self._left + (now - self._at) * _PART, _MOST_AT_ONCE) - seconds
        self._at = now
