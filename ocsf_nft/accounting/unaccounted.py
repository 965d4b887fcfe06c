"""What the kernel refused and is in none of its counters: what it forgot before it was read."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from ocsf_nft.flow import Count

if TYPE_CHECKING:
    from ocsf_nft.accounting.flow_counter import FlowCounter

#: Readings that lack the same packets before they are taken for forgotten: one may leave out some
#: elements, and the next one others. At the end, when nothing is refused any more, two.
READINGS: Final = 8
LAST_READINGS: Final = 2


class UnaccountedPackets:
    """What each of the last readings lacked."""

    def __init__(self) -> None:
        self._lacked: deque[Count] = deque(maxlen=READINGS)

    def add(self, refused: Count, *found: Count) -> None:
        """Take in one more reading: what was refused by then, and what was found of that."""
        packets = refused.packets - sum(each.packets for each in found)
        self._lacked.append(Count(packets, refused.bytes - sum(each.bytes for each in found)))

    def beyond(self, known: FlowCounter, readings: int) -> Count:
        """What so many readings lacked, beyond what is known to be forgotten."""
        if len(self._lacked) < readings:
            return Count()
        least = min(list(self._lacked)[-readings:])
        return Count(max(0, least.packets - known.seen_packets), least.bytes - known.seen_bytes)
