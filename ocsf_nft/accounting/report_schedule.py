"""Schedule of the events about a flow: at once, then at growing intervals, and at the end."""

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
    """Schedule of the events about one flow; the interval doubles each time, up to 60 seconds.

    Create the schedule when an event is emitted; ``now_ns`` is the time of this event. ``times`` is
    the number of the flow's events so far, including this event.
    """

    __slots__ = ("_step_ns", "due_ns", "reported_ns")

    def __init__(self, now_ns: int, times: int = 1) -> None:
        self._step_ns = min(_FIRST_STEP_NS << min(times - 1, _DOUBLINGS), _LONGEST_STEP_NS)
        self.reported_ns = now_ns
        self.due_ns = now_ns + self._step_ns

    def mark_reported(self, now_ns: int) -> None:
        """Set the due time of the next event; ``now_ns`` is the time of the latest event.

        The interval is twice the previous one, but at most 60 seconds.
        """
        self._step_ns = min(2 * self._step_ns, _LONGEST_STEP_NS)
        self.reported_ns = now_ns
        self.due_ns = now_ns + self._step_ns

    def is_due(self, now_ns: int, last_ns: int) -> bool:
        """Return True if the next event is due: the interval is over, or the flow has ended.

        ``now_ns`` is the present time, ``last_ns`` the time of the flow's last packet. A flow ends
        after 10 seconds without a packet.
        """
        return now_ns >= self.due_ns or now_ns - last_ns >= OVER_NS

    def is_over(self, now_ns: int, last_ns: int) -> bool:
        """Return True if the flow's last packet and last event are both at least 10 seconds old.

        ``now_ns`` is the present time, ``last_ns`` the time of the last packet.
        """
        return now_ns - max(last_ns, self.reported_ns) >= OVER_NS
