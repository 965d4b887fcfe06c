"""Limits on separate events for flows: flows beyond the limits share the events of their user.

Without a limit for each user, one user with many flows could use up all separate events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ocsf_nft.attempt import Aggregation
from ocsf_nft.flow import Count, flow, user_of
from ocsf_nft.flows.flow_counter import FlowCounter
from ocsf_nft.flows.report_schedule import FlowReport

if TYPE_CHECKING:
    from ocsf_nft.flow import Flow, Key
    from ocsf_nft.record import Record

_BURST: Final = 1000
_NS_PER_FLOW: Final = 100_000_000  # ten a second after the burst
#: Users with a quota, and users with an aggregate of their own. A process with a namespace may have
#: thousands of user ids.
_MAX_USERS: Final = 256
#: Maximum number of flows with separate events at the same time.
_MAX_REPORTS: Final = 4000
#: The same for flows to preferred destinations beyond the other limits.
_MAX_PREFERRED: Final = 256
_MAX_PREFERRED_PER_USER: Final = 16
_MAX_SAMPLE: Final = 10


class Quota:
    """Limit of separately reported flows per user: 1,000 flows at once, then ten flows a second.

    The limit has room for 256 users at a time. Flows of further users are not reported separately.
    """

    def __init__(self) -> None:
        # A token bucket for each user: the time at which all granted flows will have been earned.
        self._earned_ns: dict[int | None, int] = {}

    def grants(self, uid: int | None, now_ns: int) -> bool:
        """Return True if one more flow of a user may be reported separately, and count it.

        ``uid`` is None for packets that no socket sent. ``now_ns`` is from a monotonic clock.
        """
        if uid not in self._earned_ns and len(self._earned_ns) >= _MAX_USERS:
            self._evict_unused(now_ns)
            if len(self._earned_ns) >= _MAX_USERS:
                return False
        full = now_ns - _BURST * _NS_PER_FLOW
        earned_ns = max(self._earned_ns.get(uid, full), full)
        if earned_ns + _NS_PER_FLOW > now_ns:
            return False
        self._earned_ns[uid] = earned_ns + _NS_PER_FLOW
        return True

    def _evict_unused(self, now_ns: int) -> None:
        # A user needs no entry when the user's bucket is full again.
        full = now_ns - _BURST * _NS_PER_FLOW
        self._earned_ns = {uid: at for uid, at in self._earned_ns.items() if at > full}


class Admission:
    """Limits on the flows that have separate events at the same time.

    There is a reserve for flows to ``preferred`` IP addresses, such as a cloud's metadata service.
    """

    def __init__(self, preferred: frozenset[str]) -> None:
        self._preferred = preferred
        self._quota = Quota()
        #: Users of the flows in the reserve.
        self._in_reserve: dict[Key, int | None] = {}

    def admit(self, key: Key, flow: Flow | Record, reports: int, now_ns: int) -> bool:
        """Return True if the new flow ``key`` may have its own events, and count it.

        ``flow`` has its user and destination. ``reports`` is the number of flows with their own
        events. ``now_ns`` is of a monotonic clock.
        """
        uid = flow.uid
        if reports - len(self._in_reserve) < _MAX_REPORTS and self._quota.grants(uid, now_ns):
            return True
        if (
            flow.destination not in self._preferred
            or len(self._in_reserve) >= _MAX_PREFERRED
            or list(self._in_reserve.values()).count(uid) >= _MAX_PREFERRED_PER_USER
        ):
            return False
        self._in_reserve[key] = uid
        return True

    def release(self, key: Key) -> None:
        """Stop counting the ended flow ``key``."""
        self._in_reserve.pop(key, None)


@dataclass(slots=True, eq=False)
class FlowAggregate:
    """Flows of one user that share events: their unreported packets, their number, a sample."""

    counter: FlowCounter
    flows: int = 0
    sample: list[Flow] = field(default_factory=list)
    report: FlowReport = field(default_factory=FlowReport)

    def add(self, flow: Flow) -> None:
        """Count one more flow, and add it to the sample of at most ten flows."""
        self.flows += 1
        if len(self.sample) < _MAX_SAMPLE:
            self.sample.append(flow)

    def take(self) -> Aggregation:
        """Return the flows added since the last call."""
        found = Aggregation(reason="many", flows=self.flows or None, sample=tuple(self.sample))
        self.flows = 0
        self.sample = []
        return found


class Aggregates(dict[int | None, FlowAggregate]):
    """Aggregates of the flows without separate events, by user id; further users share None."""

    def add(self, key: Key, counter: FlowCounter) -> None:
        """Move the unreported packets of the flow ``key`` from ``counter`` to its user's aggregate.

        Call this again for new packets of the flow.
        """
        uid = user_of(key)
        uid = uid if uid in self or len(self) < _MAX_USERS else None
        if uid not in self:
            self[uid] = FlowAggregate(FlowCounter(since_ns=counter.since_ns))
        aggregate = self[uid]
        unreported = Count(counter.unreported_packets, counter.unreported_bytes)
        aggregate.counter.grow_by(unreported, counter.last_ns)
        aggregate.report.set_growing()
        counter.mark_reported(*unreported)
        counter.since_ns = counter.last_ns
        if not counter.is_aggregated:
            counter.is_aggregated = True
            aggregate.add(flow(key))
