"""Calculation of the refused packets that the kernel has counted for a rule, but for no flow.

A rule has a counter of all refused packets, and a set element with a counter for each flow. The
kernel may evict a set element before its counter is read. Then only the rule's counter has the
packets of that flow.
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

    A reading is one read of all counters of the rule. Each reading is stored as one number: all
    packets of the rule, minus the packets in the flows' counters. A reading may miss some flows. So
    one reading alone does not show that the kernel evicted a flow's counter.
    """

    def __init__(self) -> None:
        self._lacked: deque[Count] = deque(maxlen=READINGS)

    def add(self, refused: Count, *found: Count) -> None:
        """Append a reading as one number: ``refused`` minus the sum of ``found``.

        ``refused`` is the number of all refused packets of the rule. ``found`` has two parts of
        this number: the packets in the counters of flows, and the packets in the overflow counter.
        The overflow counter counts a packet if the nftables set has no free slot for the packet's
        flow.
        """
        packets = refused.packets - sum(each.packets for each in found)
        self._lacked.append(Count(packets, refused.bytes - sum(each.bytes for each in found)))

    def beyond(self, known: FlowCounter, readings: int) -> Count:
        """Return how many packets are in no flow's counter, because the kernel removed the counter.

        Packets in ``known``, which earlier calls found, are not included. A packet must be missing
        in each of the latest ``readings`` readings of the counters. Return zero if there were fewer
        readings.
        """
        if len(self._lacked) < readings:
            return Count()
        # A reading may miss some flows, so that its number is too high.
        least = min(list(self._lacked)[-readings:])
        return Count(max(0, least.packets - known.seen_packets), least.bytes - known.seen_bytes)
