"""Limits on separate events for flows: flows beyond the limits share the events of their user.

Without a limit for each user, one user with many flows could use up all separate events. The
kernel's sets have similar quotas (accounting.nft): what is an event here has a slot there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.attempt import Aggregation
from ocsf_nft.flow import Count, flow, user_of
from ocsf_nft.flows.flow_counter import FlowCounter
from ocsf_nft.flows.report_schedule import FlowReport

if TYPE_CHECKING:
    from ocsf_nft.flow import Flow, Key
    from ocsf_nft.record import Record

_SECOND_NS: Final = 1_000_000_000
#: Users with an aggregate of their own. A process with a namespace may have thousands of user ids.
_MAX_USERS: Final = 256
#: Maximum number of flows with separate events at the same time.
_MAX_REPORTS: Final = 4000
#: The same for flows to preferred destinations beyond the other limits.
_MAX_PREFERRED: Final = 256
_MAX_PREFERRED_PER_USER: Final = 16
#: The same for the first flows of users: the reserve of the kernel's sets, of both IP versions.
_MAX_FIRST: Final = 12_288
#: Shortest time between two searches for users who need no quota.
_EVICTION_NS: Final = _SECOND_NS
_MAX_SAMPLE: Final = 10


class _Rate(NamedTuple):
    """Number of flows that a user may have at once, and the time after which one more may come.

    ``users`` is the maximum number of users with a quota at a time.
    """

    burst: int
    ns_per_flow: int
    users: int


_USUAL: Final = _Rate(burst=1000, ns_per_flow=_SECOND_NS // 10, users=4096)
#: The first flows of a user while other users have all separate events: as the reserve of the
#: kernel's sets.
_FIRST: Final = _Rate(burst=4, ns_per_flow=300 * _SECOND_NS, users=3072)


class Quota:
    """Limit of separately reported flows per user: by default 1,000 at once, then ten a second.

    The limit has room for a number of users at a time. Flows of further users are not granted.
    """

    def __init__(self, rate: _Rate = _USUAL) -> None:
        # A token bucket for each user: the time at which all granted flows will have been earned.
        self._earned_ns: dict[int | None, int] = {}
        self._rate = rate
        self._all_ns = rate.burst * rate.ns_per_flow
        #: Time of the last search for unused entries: with thousands of users it takes long.
        self._evicted_ns: int | None = None

    def grants(self, uid: int | None, now_ns: int) -> bool:
        """Return True if one more flow of a user may be reported separately, and count it.

        ``uid`` is None for packets that no socket sent. ``now_ns`` is from a monotonic clock.
        """
        if not self.has_room(uid):
            self._evict_unused(now_ns)
            if not self.has_room(uid):
                return False
        full = now_ns - self._all_ns
        earned_ns = max(self._earned_ns.get(uid, full), full)
        if earned_ns + self._rate.ns_per_flow > now_ns:
            return False
        self._earned_ns[uid] = earned_ns + self._rate.ns_per_flow
        return True

    def has_room(self, uid: int | None) -> bool:
        """Return True if the user has a quota, or may get one."""
        return uid in self._earned_ns or len(self._earned_ns) < self._rate.users

    def _evict_unused(self, now_ns: int) -> None:
        if self._evicted_ns is not None and now_ns < self._evicted_ns + _EVICTION_NS:
            return
        self._evicted_ns = now_ns
        # A user needs no entry when the user's bucket is full again.
        full = now_ns - self._all_ns
        self._earned_ns = {uid: at for uid, at in self._earned_ns.items() if at > full}


class Admission:
    """Limits on the flows that have separate events at the same time.

    There are two reserves: for flows to ``preferred`` IP addresses, such as a cloud's metadata
    service; and for the first flows of each user, while other users have all separate events.
    """

    def __init__(self, preferred: frozenset[str]) -> None:
        self._preferred = preferred
        self._quota = Quota()
        self._first_quota = Quota(_FIRST)
        #: Users of the flows to preferred addresses in the reserve.
        self._in_reserve: dict[Key, int | None] = {}
        #: First flows in the reserve.
        self._first: set[Key] = set()

    def admit(self, key: Key, flow: Flow | Record, reports: int, now_ns: int) -> bool:
        """Return True if the new flow ``key`` may have its own events, and count it.

        ``flow`` has its user and destination. ``reports`` is the number of flows with their own
        events. ``now_ns`` is of a monotonic clock.
        """
        uid = flow.uid
        has_room = reports - len(self._in_reserve) - len(self._first) < _MAX_REPORTS
        if has_room and self._quota.grants(uid, now_ns):
            return True
        if flow.destination in self._preferred and self._has_preferred_slot(uid):
            self._in_reserve[key] = uid
            return True
        # A user who has used up the usual quota takes nothing from the reserve.
        if (has_room and self._quota.has_room(uid)) or len(self._first) >= _MAX_FIRST:
            return False
        if not self._first_quota.grants(uid, now_ns):
            return False
        self._first.add(key)
        return True

    def _has_preferred_slot(self, uid: int | None) -> bool:
        users = self._in_reserve.values()
        return len(users) < _MAX_PREFERRED and list(users).count(uid) < _MAX_PREFERRED_PER_USER

    def release(self, key: Key) -> None:
        """Stop counting the ended flow ``key``."""
        self._in_reserve.pop(key, None)
        self._first.discard(key)


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
