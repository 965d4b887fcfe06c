"""How long to leave alone what has failed."""

from __future__ import annotations

import random
from typing import Final

#: The wait after a first failure; it doubles.
_FIRST_SECONDS: Final = 0.25
#: Nobody is left alone for longer, whatever he asks for.
_MOST_ASKED_SECONDS: Final = 3600.0


class Backoff:
    """Waits that double from one failure to the next, up to a bound, and are never quite the same.

    Of many who lost the same receiver at once, else all would come back to it at once.
    """

    def __init__(self, *, most_seconds: float) -> None:
        self._most_seconds = most_seconds
        self._seconds = min(_FIRST_SECONDS, most_seconds)

    def wait_seconds(self, asked: float | None) -> float:
        """The next wait, or what a receiver has ``asked`` for if that is longer, up to an hour."""
        seconds = self._seconds * random.uniform(0.5, 1.0)  # noqa: S311 - it is no secret
        self._seconds = min(2 * self._seconds, self._most_seconds)
        return seconds if asked is None else max(seconds, min(asked, _MOST_ASKED_SECONDS))
