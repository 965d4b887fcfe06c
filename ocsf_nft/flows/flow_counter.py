"""State of one kernel packet counter: its last value, and packets that no event reports yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ocsf_nft.flow import Count, Element, Reading

#: Time for which the kernel stores an element after its last packet (``timeout`` in
#: accounting.nft).
ELEMENT_TIMEOUT_MS: Final = 600_000
#: An element with an unchanged count, whose last packet is later by more than this, is a new one.
#: That packet is later by the timeout at least, apart from the duration of a reading. A smaller
#: difference shows a packet that came between the readings of the count and of its time.
_RENEWED_MS: Final = ELEMENT_TIMEOUT_MS - 11_000
#: Maximum duration of a reading (``fence.counters``), approximately.
_READ_NS: Final = 12 * 1_000_000_000
#: Maximum stored count. A process with privileges in the sandbox's namespace can write any number
#: into a counter.
MAX_COUNT: Final = 1 << 62


@dataclass(slots=True, eq=False)
class FlowCounter:
    """State of a flow's kernel packet counter: last value, and packets that no event reports yet.

    Times in ns are since the epoch (UTC).
    """

    #: Earliest possible time of the first unreported packet.
    since_ns: int
    #: Latest possible time of the last packet.
    last_ns: int = 0
    seen_packets: int = 0
    seen_bytes: int = 0
    #: Counted by the kernel, but in no event yet. The numbers are negative if an event reports a
    #: packet before a reading of the counter shows it.
    unreported_packets: int = 0
    unreported_bytes: int = 0
    #: Latest possible time of the last packet by the monotonic clock; None before a reading in this
    #: run has shown the element.
    last_ms: int | None = None
    #: Latest time by the monotonic clock at which the element expires; None if not known yet.
    expires_ms: int | None = None
    #: Consecutive readings without the element, though it can't have expired yet.
    missed: int = 0
    #: Whether the latest reading had the element.
    is_shown: bool = False
    #: Whether the flow shares events with other flows of its user.
    is_aggregated: bool = False

    def __post_init__(self) -> None:
        """Set the time of the last packet if it is not given."""
        self.last_ns = self.last_ns or self.since_ns

    def stored(self) -> tuple[int, int, int, int, int, int]:
        """Return the state that is stored between two runs, as arguments of a new counter."""
        return (
            self.since_ns,
            self.last_ns,
            self.seen_packets,
            self.seen_bytes,
            self.unreported_packets,
            self.unreported_bytes,
        )

    @property
    def is_unread(self) -> bool:
        """Return True if the flow is known only from log records, not from a counter reading."""
        return self.seen_packets == 0

    def update(
        self, element: Element, reading: Reading, before_ns: int, settled_ms: int | None
    ) -> int:
        """Store the values of ``element``, an nftables counter; return the number of new packets.

        The previous reading of the counters began at ``before_ns``. The time range of the new
        packets is computed from the times of both readings. ``settled_ms`` is the monotonic time of
        the previous reading; None if that had packets without an element.
        """
        _, packets, octets, idle_ms = element
        idle_ms = min(idle_ms, ELEMENT_TIMEOUT_MS)
        last_ns = reading.ended_ns - idle_ms * 1_000_000
        last_ms = reading.ended_ms - idle_ms
        if self._is_renewed(packets, last_ms, settled_ms):
            self.seen_packets = self.seen_bytes = 0
        self.last_ms, self.expires_ms = last_ms, last_ms + ELEMENT_TIMEOUT_MS
        self.missed = 0
        was_shown, self.is_shown = self.is_shown, True
        if packets == self.seen_packets and octets == self.seen_bytes:
            return 0
        fresh = self.grow(packets, octets)
        if fresh:
            self.last_ns = last_ns
            if (
                was_shown
                and self.unreported_packets <= fresh
                and self.since_ns < before_ns <= last_ns
            ):
                self.since_ns = before_ns
        return fresh

    def _is_renewed(self, packets: int, last_ms: int, settled_ms: int | None) -> bool:
        # As by a job that runs every ten minutes. It is not known if the new element has more
        # packets than the old one, and the old one expired after the previous reading.
        if self.last_ms is None:
            return False
        if settled_ms is not None and settled_ms > self.last_ms + ELEMENT_TIMEOUT_MS:
            return True  # no packet came before that reading, and the element had expired then
        return packets == self.seen_packets and last_ms - self.last_ms > _RENEWED_MS

    def may_have_expired(self, reading: Reading) -> bool:
        """Return True if the element, which ``reading`` lacks, may have expired."""
        if self.expires_ms is None:  # of an earlier run: only the wall clock is known
            left_ms = (self.last_ns - reading.ended_ns) // 1_000_000 + ELEMENT_TIMEOUT_MS
            self.expires_ms = reading.ended_ms + max(0, min(left_ms, ELEMENT_TIMEOUT_MS))
        return reading.began_ms > self.expires_ms

    def limit_times(self, now_ns: int) -> None:
        """Reduce a stored time that is later than ``now_ns``, as the wall clock was set back."""
        # The account counts a reading without the flow only if it began after ``last_ns``.
        if self.is_unread:
            self.last_ns = min(self.last_ns, now_ns)

    def window(self) -> tuple[int, int]:
        """Return the earliest and the latest possible time of the unreported packets."""
        since_ns, last_ns = self.since_ns, self.last_ns
        if last_ns >= since_ns:
            return since_ns, last_ns
        # Each is the latest possible time, exact to some seconds. A larger difference shows that
        # the clock was set back.
        return (since_ns, since_ns) if since_ns - last_ns < _READ_NS else (last_ns, last_ns)

    def grow(self, packets: int, octets: int) -> int:
        """Store the kernel's total numbers of packets and bytes; return the number of new packets.

        If there are fewer packets than before, the kernel's counter began again at zero. Then all
        its packets are new.
        """
        packets, octets = min(packets, MAX_COUNT), min(octets, MAX_COUNT)
        if packets < self.seen_packets:
            self.seen_packets = self.seen_bytes = 0
        fresh = packets - self.seen_packets
        self._add_unreported(fresh, octets - self.seen_bytes)
        self.seen_packets, self.seen_bytes = packets, octets
        return fresh

    def grow_by(self, more: Count, last_ns: int) -> None:
        """Add ``more``, another counter's unreported packets, the last one at ``last_ns``."""
        # `more` is negative if an event has reported packets that no reading of its counter shows.
        self._add_unreported(more.packets, more.bytes)
        self.last_ns = max(self.last_ns, last_ns)

    def mark_reported(self, packets: int, octets: int) -> None:
        """Subtract the packets and bytes in a new event from the unreported packets and bytes."""
        # If a log record has a wrong length, the bytes of the next event make up the difference.
        self.unreported_packets -= packets
        self.unreported_bytes -= octets

    def _add_unreported(self, packets: int, octets: int) -> None:
        self.unreported_packets = min(self.unreported_packets + packets, MAX_COUNT)
        self.unreported_bytes = max(-MAX_COUNT, min(self.unreported_bytes + octets, MAX_COUNT))
