"""Search for the counter of a packet that was logged as one flow, but counted as another flow.

The log and the counter differ if the packet's header is cut short. They also differ for a frame
whose header names a wrong protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.flow import user_of, without_port

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.accounting.flow_counter import FlowCounter
    from ocsf_nft.flow import Key


class UnloggedFlows:
    """Index of the packet counters of flows without a log record and without an event."""

    def __init__(self, counters: Iterable[tuple[Key, FlowCounter]]) -> None:
        self._of_user: dict[int | None, list[tuple[Key, FlowCounter]]] = {}
        self._alike: dict[Key, list[tuple[Key, FlowCounter]]] = {}
        for key, counter in counters:
            self._of_user.setdefault(user_of(key), []).append((key, counter))
            self._alike.setdefault(without_port(key), []).append((key, counter))

    def find(self, packets: int, key: Key) -> list[tuple[Key, FlowCounter]]:
        """Return a list with one counter that has at least ``packets`` unreported packets.

        A packet is unreported if no event reports it. The first choice is a counter with the user,
        protocol and destination of ``key``. The second choice is any counter of that user. If there
        is none, the list is empty. The search removes counters with fewer unreported packets from
        the index.
        """
        alike = self._alike.get(without_port(key), [])
        return _last(alike, packets) or _last(self._of_user.get(user_of(key), []), packets)


def _last(found: list[tuple[Key, FlowCounter]], packets: int) -> list[tuple[Key, FlowCounter]]:
    while found and found[-1][1].unreported_packets < packets:
        found.pop()
    return found[-1:]
