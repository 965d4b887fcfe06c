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

        ``refused`` is the number of all refused packets. The arguments in ``found`` are the numbers
        that other counters have counted. One is the sum of the counters in all set elements. The
        other is the counter of packets that found no free slot in a set.
        """
        packets = refused.packets - sum(each.packets for each in found)
        self._lacked.append(Count(packets, refused.bytes - sum(each.bytes for each in found)))

    def beyond(self, known: FlowCounter, readings: int) -> Count:
        """Return the number of packets of evicted counters that ``known`` does not include yet.

        ``known`` has the packets that earlier calls found. For each reading, :meth:`add` has stored
        a number: all packets of the rule minus the packets in the flows' counters. This number may
        be too high, because a reading may miss some flows. So the result is the minimum of the last
        ``readings`` numbers, minus the packets in ``known``. Return zero if fewer numbers are
        stored.
        """
        if len(self._lacked) < readings:
            return Count()
        least = min(list(self._lacked)[-readings:])
        return Count(max(0, least.packets - known.seen_packets), least.bytes - known.seen_bytes)
