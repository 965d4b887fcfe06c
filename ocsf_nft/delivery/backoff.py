"""Exponential backoff with jitter between retries."""

from __future__ import annotations

import random
from typing import Final

#: Wait after the first failure; it doubles with each further one.
_FIRST_SECONDS: Final = 0.25
#: Longest wait that a receiver can request.
_MAX_REQUESTED_SECONDS: Final = 3600.0


class Backoff:
    """Wait times between retries; the wait time doubles after each retry, up to ``max_seconds``.

    A random part (jitter) shortens each wait time, so that many senders do not retry at the same
    time.
    """

    def __init__(self, *, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._seconds = min(_FIRST_SECONDS, max_seconds)

    def wait_seconds(self, requested: float | None) -> float:
        """Return the next wait time in seconds, or ``requested`` if that is longer.

        ``requested`` is the wait time that the receiver requested, or None. A request for more than
        one hour counts as one hour.
        """
        seconds = self._seconds * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
        self._seconds = min(2 * self._seconds, self._max_seconds)
        return (
            seconds if requested is None else max(seconds, min(requested, _MAX_REQUESTED_SECONDS))
        )
