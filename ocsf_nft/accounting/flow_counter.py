"""What one counter of the kernel has counted, and how much of that is still to be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ocsf_nft.flow import Count, Element

#: How long the kernel keeps an element after its last packet (``timeout`` in accounting.nft).
ELEMENT_TIMEOUT_MS: Final = 600_000
#: An element that was idle for so much longer has got a packet since, or is another one.
_RENEWED_MS: Final = ELEMENT_TIMEOUT_MS // 2
#: Whoever has the sandbox's namespace can write any number into a counter: more can't be kept.
MAX_COUNT: Final = 1 << 62


class FlowCounter:
    """A counter that only grows, or begins anew: what it said when it was last read, and the rest.

    ``unreported_packets`` and ``unreported_bytes`` are what it has counted and nobody has told. They are
    negative for as long as something was told that has not been read yet: a record comes before
    the counter that has counted its packet is read. Bytes may be told on the word of the packet,
    which may lie about its length; what was too much then is taken off what is told next.

    ``last_ns`` is the latest moment (since the epoch, UTC) that its last packet can be from,
    ``since_ns`` the earliest that the first packet which is not told can be from.
    """

    __slots__ = (
        "expires_ns", "idle_ms", "is_shown", "last_ns", "missed", "seen_bytes", "seen_packets",
        "since_ns", "unreported_bytes", "unreported_packets",
    )  # fmt: skip

    def __init__(  # noqa: PLR0913 - what is kept of it between two runs
        self,
        *,
        since_ns: int,
        seen_packets: int = 0,
        seen_bytes: int = 0,
        unreported_packets: int = 0,
        unreported_bytes: int = 0,
        last_ns: int = 0,
    ) -> None:
        self.since_ns = since_ns
        self.seen_packets = seen_packets
        self.seen_bytes = seen_bytes
        self.unreported_packets = unreported_packets
        self.unreported_bytes = unreported_bytes
        self.last_ns = last_ns or since_ns
        self.expires_ns = self.last_ns + ELEMENT_TIMEOUT_MS * 1_000_000
        #: Readings in a row that had no such element, though it can't have been forgotten yet.
        self.missed = 0
        #: How long its last packet was past when it was read.
        self.idle_ms = 0
        #: Whether the latest reading had such an element.
        self.is_shown = False

    @property
    def is_unread(self) -> bool:
        """Whether it is known from records alone, and no reading has had it."""
        return self.seen_packets == 0

    def update(self, element: Element, read_ns: int, before_ns: int) -> int:
        """Process an element of a reading that ended at ``read_ns``; return its new packets.

        ``before_ns`` is the start of the previous reading. If that reading had the element, its new
        packets are not older.
        """
        _, packets, octets, idle_ms = element
        idle_ms = min(idle_ms, ELEMENT_TIMEOUT_MS)
        last_ns = read_ns - idle_ms * 1_000_000
        # As many packets and yet a later one: forgotten, and begun anew by a job of every ten
        # minutes. By the kernel's own measure of time: the clock may be set.
        if packets == self.seen_packets and self.idle_ms - idle_ms > _RENEWED_MS:
            self.seen_packets = self.seen_bytes = 0
        self.idle_ms = idle_ms
        self.expires_ns = last_ns + ELEMENT_TIMEOUT_MS * 1_000_000
        self.missed = 0
        was_shown, self.is_shown = self.is_shown, True
        if packets == self.seen_packets and octets == self.seen_bytes:
            return 0  # as nearly all of tens of thousands
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

    def limit_times(self, now_ns: int) -> None:
        """Limit times in the future to ``now_ns``, after the wall clock was set back."""
        self.expires_ns = min(self.expires_ns, now_ns + ELEMENT_TIMEOUT_MS * 1_000_000)
        if self.is_unread:
            self.last_ns = min(self.last_ns, now_ns)

    def grow(self, packets: int, octets: int) -> int:
        """Take in a counter's value; one that is smaller than before has begun anew."""
        packets, octets = min(packets, MAX_COUNT), min(octets, MAX_COUNT)
        if packets < self.seen_packets:
            self.seen_packets = self.seen_bytes = 0
        fresh = packets - self.seen_packets
        self._add_unreported(fresh, octets - self.seen_bytes)
        self.seen_packets, self.seen_bytes = packets, octets
        return fresh

    def grow_by(self, more: Count, last_ns: int) -> None:
        """Owe more, of which no counter of its own says anything."""
        self._add_unreported(more.packets, more.bytes)
        self.last_ns = max(self.last_ns, last_ns)

    def mark_reported(self, packets: int, octets: int) -> None:
        """Take off what has been told."""
        self.unreported_packets -= packets
        self.unreported_bytes -= octets

    def _add_unreported(self, packets: int, octets: int) -> None:
        self.unreported_packets = min(self.unreported_packets + packets, MAX_COUNT)
        self.unreported_bytes = max(-MAX_COUNT, min(self.unreported_bytes + octets, MAX_COUNT))
