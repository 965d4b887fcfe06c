"""Schedule of a flow's reports: at once, then at growing intervals, and at the flow's end."""

from __future__ import annotations

from typing import Final

_SECOND: Final = 1_000_000_000
_FIRST_STEP_NS: Final = 1 * _SECOND
_LONGEST_STEP_NS: Final = 60 * _SECOND
#: Number of doublings after which the interval is longest.
_DOUBLINGS: Final = 6
#: A flow without a packet for this long is over.
OVER_NS: Final = 10 * _SECOND


class Schedule:
    """Due time of a flow's next report; the interval doubles with each report, up to 60 seconds.

    The latest report was at ``now_ns``. ``times`` is the number of all reports, including the
    latest.
    """

    __slots__ = ("_step_ns", "due_ns", "reported_ns")

    def __init__(self, now_ns: int, times: int = 1) -> None:
        self._step_ns = min(_FIRST_STEP_NS << min(times - 1, _DOUBLINGS), _LONGEST_STEP_NS)
        self.reported_ns = now_ns
        self.due_ns = now_ns + self._step_ns

    def mark_reported(self, now_ns: int) -> None:
        """Note a report at ``now_ns``, and double the interval to the next one (at most 60 s)."""
        self._step_ns = min(2 * self._step_ns, _LONGEST_STEP_NS)
        self.reported_ns = now_ns
        self.due_ns = now_ns + self._step_ns

    def is_due(self, now_ns: int, last_ns: int) -> bool:
        """Return True if a report is due, because the interval is over or the flow has ended.

        ``last_ns`` is the time of the last unreported packet. A flow ends 10 seconds after that.
        """
        return now_ns >= self.due_ns or now_ns - last_ns >= OVER_NS

    def is_over(self, now_ns: int, last_ns: int) -> bool:
        """Return whether the last packet and the last report of a flow are at least 10 seconds old.

        Such a flow can be evicted, if all its packets are reported. ``last_ns`` is the time of the
        last packet.
        """
        return now_ns - max(last_ns, self.reported_ns) >= OVER_NS
