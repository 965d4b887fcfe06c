"""The flows of a user that has too many: they are told together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.accounting.flow_counter import FlowCounter
from ocsf_nft.accounting.flow_report import FlowAggregate
from ocsf_nft.flow import Count, flow

if TYPE_CHECKING:
    from ocsf_nft.flow import Key

#: Users whose flows are told together by user; those of all others are told as nobody's.
_MAX_AGGREGATES: Final = 256


class OverflowFlows:
    """Which flows are told with others, and whose they are; what they owe is in ``aggregates``."""

    def __init__(self, aggregates: dict[int | None, FlowAggregate]) -> None:
        self._aggregates = aggregates
        self._users: dict[Key, int | None] = {}

    def __contains__(self, key: Key) -> bool:
        """Whether a flow is told with others from now on."""
        return key in self._users

    def add(self, key: Key, counter: FlowCounter) -> None:
        """Owe what a flow owes together with the other flows of its user."""
        what = None if key in self._users else flow(key)
        uid = self._users[key] if what is None else what.uid
        uid = uid if uid in self._aggregates or len(self._aggregates) < _MAX_AGGREGATES else None
        self._users[key] = uid
        aggregate = self._aggregates.get(uid)
        if aggregate is None:
            aggregate = self._aggregates[uid] = FlowAggregate(
                FlowCounter(since_ns=counter.since_ns)
            )
        owed = Count(counter.unreported_packets, counter.unreported_bytes)
        aggregate.counter.grow_by(owed, counter.last_ns)
        aggregate.report.set_growing()
        counter.mark_reported(*owed)
        counter.since_ns = counter.last_ns
        if what is not None:
            aggregate.add(what)

    def remove(self, key: Key) -> None:
        """A flow is no more."""
        self._users.pop(key, None)
