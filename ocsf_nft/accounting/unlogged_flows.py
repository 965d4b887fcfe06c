"""Search for the counter of a packet that was logged as one flow, but counted as another flow.

This difference occurs if a header is cut short, or if the sender of a frame states a wrong
protocol. The search covers the counters of flows that have neither a log record nor a report. There
may be thousands of log records and counters. So the search uses an index of the counters, and does
not check each counter again for each record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.flow import user_of, without_port

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.accounting.flow_counter import FlowCounter
    from ocsf_nft.flow import Key


class UnloggedFlows:
    """Index of the counters of flows that have neither a log record nor a report.

    The index finds a counter by its user, or by its user, protocol and destination.
    """

    def __init__(self, counters: Iterable[tuple[Key, FlowCounter]]) -> None:
        self._of_user: dict[int | None, list[tuple[Key, FlowCounter]]] = {}
        self._alike: dict[Key, list[tuple[Key, FlowCounter]]] = {}
        for key, counter in counters:
            self._of_user.setdefault(user_of(key), []).append((key, counter))
            self._alike.setdefault(without_port(key), []).append((key, counter))

    def find(self, packets: int, key: Key) -> list[tuple[Key, FlowCounter]]:
        """Return a list with one counter that has at least ``packets`` unreported packets.

        The first choice is a counter with the user, protocol and destination of ``key``. The second
        choice is any counter of the user. The list is empty if there is no such counter. The search
        removes counters with fewer packets from the index.
        """
        alike = self._alike.get(without_port(key), [])
        return _last(alike, packets) or _last(self._of_user.get(user_of(key), []), packets)


def _last(found: list[tuple[Key, FlowCounter]], packets: int) -> list[tuple[Key, FlowCounter]]:
    while found and found[-1][1].unreported_packets < packets:
        found.pop()
    return found[-1:]
