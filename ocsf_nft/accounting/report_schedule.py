"""When to tell of what goes on: at once, then at growing intervals, and when it is over."""

from __future__ import annotations

from typing import Final

_SECOND: Final = 1_000_000_000
_FIRST_STEP_NS: Final = 1 * _SECOND
_LONGEST_STEP_NS: Final = 60 * _SECOND
#: After so many the longest is reached.
_DOUBLINGS: Final = 6
#: What was not tried again for so long is over.
OVER_NS: Final = 10 * _SECOND


class Schedule:
    """When the next thing is to be told of something that has been told of at ``now_ns``.

    ``times`` is how often it has been told of by then.
    """

    __slots__ = ("_step_ns", "due_ns", "reported_ns")

    def __init__(self, now_ns: int, times: int = 1) -> None:
        self._step_ns = min(_FIRST_STEP_NS << min(times - 1, _DOUBLINGS), _LONGEST_STEP_NS)
        self.reported_ns = now_ns
        self.due_ns = now_ns + self._step_ns

    def mark_reported(self, now_ns: int) -> None:
        """It has been told of once more: wait longer for the next time."""
        self._step_ns = min(2 * self._step_ns, _LONGEST_STEP_NS)
        self.reported_ns = now_ns
        self.due_ns = now_ns + self._step_ns

    def is_due(self, now_ns: int, last_ns: int) -> bool:
        """Whether to tell what is owed, the last of which is from ``last_ns``."""
        return now_ns >= self.due_ns or now_ns - last_ns >= OVER_NS

    def is_over(self, now_ns: int, last_ns: int) -> bool:
        """Whether it can be forgotten: nothing came for long, and all is told."""
        return now_ns - max(last_ns, self.reported_ns) >= OVER_NS
