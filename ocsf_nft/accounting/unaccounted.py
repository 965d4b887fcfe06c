"""Calculation of refused packets that the kernel has counted for a rule, but for no flow.

The kernel may evict a flow's counter before it is read. Then only the rule's counter has these
packets.
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
    """Last 8 readings of a rule's counters, to find packets whose counter the kernel has evicted.

    Each reading is stored as one number: all packets of the rule, minus those in the flows'
    counters.
    """

    def __init__(self) -> None:
        self._lacked: deque[Count] = deque(maxlen=READINGS)

    def add(self, refused: Count, *found: Count) -> None:
        """Append a reading as one number: ``refused`` minus the sum of ``found``.

        ``refused`` has all refused packets of the rule. ``found`` has those in the flows' counters,
        and those for which no counter was free.
        """
        packets = refused.packets - sum(each.packets for each in found)
        self._lacked.append(Count(packets, refused.bytes - sum(each.bytes for each in found)))

    def beyond(self, known: FlowCounter, readings: int) -> Count:
        """Return the number of refused packets whose flow's counter the kernel has deleted.

        The number is the minimum of the latest ``readings`` readings of the counters. The packets
        in ``known``, found by earlier calls, are subtracted. Return zero if there were fewer
        readings.
        """
        if len(self._lacked) < readings:
            return Count()
        # A reading may miss some flows, so that its number is too high.
        least = min(list(self._lacked)[-readings:])
        return Count(max(0, least.packets - known.seen_packets), least.bytes - known.seen_bytes)
