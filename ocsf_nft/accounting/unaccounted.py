"""Refused packets that are in no flow's counter.

The kernel evicted the set elements of these flows before the counters were read.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from ocsf_nft.flow import Count

if TYPE_CHECKING:
    from ocsf_nft.accounting.flow_counter import FlowCounter

#: Readings that must lack the same packets before these count as evicted. One reading may omit some
#: elements, and the next one others. At the end, when nothing is refused any more, two suffice.
READINGS: Final = 8
LAST_READINGS: Final = 2


class UnaccountedPackets:
    """Number of refused packets in no flow's counter, for each of a rule's last eight readings."""

    def __init__(self) -> None:
        self._lacked: deque[Count] = deque(maxlen=READINGS)

    def add(self, refused: Count, *found: Count) -> None:
        """Add a reading: all refused packets, and those that are in a counter.

        Each argument in ``found`` is the sum of a group of counters.
        """
        packets = refused.packets - sum(each.packets for each in found)
        self._lacked.append(Count(packets, refused.bytes - sum(each.bytes for each in found)))

    def beyond(self, known: FlowCounter, readings: int) -> Count:
        """Return the number of packets that all of the last ``readings`` readings lacked.

        The packets in the counter ``known`` are subtracted. Return zero if there were fewer
        readings.
        """
        if len(self._lacked) < readings:
            return Count()
        least = min(list(self._lacked)[-readings:])
        return Count(max(0, least.packets - known.seen_packets), least.bytes - known.seen_bytes)
