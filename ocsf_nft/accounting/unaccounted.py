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
    """Numbers of a rule's refused packets in no flow's counter: one number for each reading.

    The kernel counts each refused packet for its firewall rule and for its flow. The kernel may
    delete a flow's counter before the counter is read.
    """

    def __init__(self) -> None:
        self._lacked: deque[Count] = deque(maxlen=READINGS)

    def add(self, refused: Count, *found: Count) -> None:
        """Store the number of a rule's refused packets that are in no other counter.

        The number is ``refused`` minus the sum of ``found``. ``refused`` is the number of all
        refused packets of the rule. ``found`` has the numbers in other counters, such as those of
        single flows. Call this method once for each reading of the counters.
        """
        packets = refused.packets - sum(each.packets for each in found)
        self._lacked.append(Count(packets, refused.bytes - sum(each.bytes for each in found)))

    def beyond(self, known: FlowCounter, readings: int) -> Count:
        """Return the number of refused packets of flows without a counter: the kernel deleted it.

        Each of the latest ``readings`` readings must show these packets in the rule's counter, but
        in no flow's counter. The packets in ``known``, found by earlier calls, are not included.
        """
        if len(self._lacked) < readings:
            return Count()
        # A reading may miss some flows, so that its number is too high.
        least = min(list(self._lacked)[-readings:])
        return Count(max(0, least.packets - known.seen_packets), least.bytes - known.seen_bytes)
