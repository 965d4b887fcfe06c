"""Flows without separate events, because too many other flows already have separate events.

The number of flows with separate events is limited, for each user and in total. All other flows of
one user share one event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.accounting.flow_counter import FlowCounter
from ocsf_nft.accounting.flow_report import FlowAggregate
from ocsf_nft.flow import Count, flow

if TYPE_CHECKING:
    from ocsf_nft.flow import Key

#: Maximum number of users with an aggregate of their own; the flows of all others share one, with
#: the key None.
_MAX_AGGREGATES: Final = 256


class OverflowFlows:
    """Flows that share events, because too many other flows have their own events.

    All such flows of one user share one event. ``aggregates`` maps each user id to a FlowAggregate:
    the sum of these flows' unreported packets.
    """

    def __init__(self, aggregates: dict[int | None, FlowAggregate]) -> None:
        self._aggregates = aggregates
        self._users: dict[Key, int | None] = {}

    def __contains__(self, key: Key) -> bool:
        """Return True if the flow ``key`` shares an event with other flows."""
        return key in self._users

    def add(self, key: Key, counter: FlowCounter) -> None:
        """Let a flow share events with its user's other flows, because there are too many flows.

        The flow's unreported packets move from ``counter`` to a common counter of the Linux user.
        If the flow gets new packets, call this method again.
        """
        decoded = None if key in self._users else flow(key)
        uid = self._users[key] if decoded is None else decoded.uid
        uid = uid if uid in self._aggregates or len(self._aggregates) < _MAX_AGGREGATES else None
        self._users[key] = uid
        aggregate = self._aggregates.get(uid)
        if aggregate is None:
            aggregate = self._aggregates[uid] = FlowAggregate(
                FlowCounter(since_ns=counter.since_ns)
            )
        unreported = Count(counter.unreported_packets, counter.unreported_bytes)
        aggregate.counter.grow_by(unreported, counter.last_ns)
        aggregate.report.set_growing()
        counter.mark_reported(*unreported)
        counter.since_ns = counter.last_ns
        if decoded is not None:
            aggregate.add(decoded)

    def remove(self, key: Key) -> None:
        """Remove the flow ``key``; call this method if the flow's counter no longer exists."""
        self._users.pop(key, None)
