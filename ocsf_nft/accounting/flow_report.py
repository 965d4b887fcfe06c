"""The report state of flows: when a flow's next event is due, and which flows share an event.

A flow is all refused packets of one user id with the same protocol, destination and port.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.accounting import incidents
from ocsf_nft.accounting.flow_quota import Quota
from ocsf_nft.accounting.open_incidents import OpenIncident
from ocsf_nft.accounting.report_schedule import OVER_NS, Schedule
from ocsf_nft.accounting.unaccounted import LAST_READINGS
from ocsf_nft.attempt import Aggregation
from ocsf_nft.flow import flow, lacks_port, without_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from ocsf_nft.accounting.counter_id import CounterId
    from ocsf_nft.accounting.flow_counter import FlowCounter
    from ocsf_nft.accounting.open_incidents import OpenIncidents
    from ocsf_nft.accounting.priority import Priority
    from ocsf_nft.attempt import AggregationReason, Attempt, IncidentEnd
    from ocsf_nft.flow import Flow, Key
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Record

_MAX_SAMPLE: Final = 10
#: Maximum number of flows with separate reports at the same time.
_MAX_REPORTS: Final = 4000
#: Maximum number of additional separate reports, for destinations with priority.
_MAX_PRIORITY_REPORTS: Final = 256
_MAX_PRIORITY_REPORTS_PER_USER: Final = 16
#: Two readings show that a record's packet was counted elsewhere. The first of them may have begun
#: before the record came.
_YOUNG_READINGS: Final = LAST_READINGS + 1
#: Limit if no more readings succeed.
_YOUNG_NS: Final = 60 * 1_000_000_000
#: An element's idle time is in kernel ticks (10 ms). Times in a journal are wrong by up to 0.1 s.
_MAX_CLOCK_DIFFERENCE_NS: Final = 200_000_000
_IP: Final = frozenset({0x0800, 0x86DD})


class AttributedRecord(NamedTuple):
    """Kernel log record, and the attribution of its packet to a process (None if unknown)."""

    record: Record
    attribution: Attribution | None


class FlowReport:
    """Due time of the next event about a flow's refused packets, and the flow's latest log record.

    Flows that share events have one common FlowReport, with ``key`` None. ``begun_ns`` is when the
    flow was first seen (monotonic clock).
    """

    __slots__ = (
        "_grew_ns", "_is_growing", "_is_of_old_clock", "_saved", "attribution", "end",
        "first_reading", "is_new", "key", "record", "schedule",
    )  # fmt: skip

    def __init__(
        self,
        key: Key | None = None,
        begun_ns: int | None = None,
        record: Record | None = None,
        attribution: Attribution | None = None,
    ) -> None:
        #: Key of the flow; None for an aggregate.
        self.key = key
        #: Time of the latest growth; set at the next query.
        self._grew_ns = begun_ns
        self._is_growing = False
        #: Sequence number of the flow's first counter reading; None if a log record came first.
        self.first_reading: int | None = None
        self.record = record
        #: Attribution of ``record``.
        self.attribution = attribution
        #: Whether no attempt has counted the record yet.
        self.is_new = record is not None
        #: Whether the clock was set back after the record's packet, so that its time seems later.
        self._is_of_old_clock = False
        #: Latest record of a packet that a reading has shown, until an attempt counts it.
        self._saved: AttributedRecord | None = None
        self.schedule: Schedule | None = None
        #: Totals of the incident so far; None if no attempt of one was reported.
        self.end: IncidentEnd | None = None

    @property
    def is_unlogged(self) -> bool:
        """Return True if the flow has no kernel log record and no event yet."""
        return self.record is None and self.schedule is None

    def is_young(self, reading: int, now_ns: int) -> bool:
        """Return True if the flow is too new for an event.

        A flow without a log record waits for three counter readings (at most 60 seconds). These
        readings may show that its packets belong to another flow. ``reading`` is the number of the
        latest reading.
        """
        # A packet with an incomplete header may be counted for this flow, but logged as another.
        # Then the other flow's event reports it, and it is later subtracted from this flow. A flow
        # with a log record does not wait.
        first, begun_ns = self.first_reading, self._grew_ns
        if not self.is_unlogged or first is None or begun_ns is None:
            return False
        return reading - first < _YOUNG_READINGS and now_ns - begun_ns < _YOUNG_NS

    def awaits_record(self, wait_ns: int, now_ns: int) -> bool:
        """Return True if the flow has no log record yet, and is less than ``wait_ns`` old."""
        begun_ns = self._grew_ns
        return self.is_unlogged and begun_ns is not None and now_ns - begun_ns < wait_ns

    def add_record(self, record: Record, attribution: Attribution | None, last_ns: int) -> None:
        """Store a kernel log record as the flow's latest one, with the attribution of its packet.

        The next event reports the packets up to ``last_ns``. The previous record remains available
        for this event if the event reports that record's packet.
        """
        self._save_record(last_ns)
        self.record = record
        self.attribution = attribution
        self.is_new = True
        self._is_of_old_clock = False
        self.set_growing()

    def add_packets(self, last_ns: int) -> None:
        """Mark the flow as growing, because a counter reading shows new packets of the flow.

        ``last_ns`` is the time of the last of these packets (ns since the epoch, UTC).
        """
        self.set_growing()
        self._save_record(last_ns)

    def limit_times(self, now_ns: int) -> None:
        """Mark the time of the stored log record as invalid if this time is later than ``now_ns``.

        ``now_ns`` is the end of a counter reading (ns since the epoch, UTC).
        """
        if self.record is not None and self.record.time_ns > now_ns:
            # The wall clock was set back after the record.
            self._is_of_old_clock = True

    def new_record(self, since_ns: int, last_ns: int) -> AttributedRecord | None:
        """Return the newest log record that fits the flow's next event; None if no record fits.

        The event reports the packets from ``since_ns`` to ``last_ns``. A record fits if its packet
        is one of these packets.
        """
        is_first = self.schedule is None and self.end is None
        earliest_ns = since_ns - _MAX_CLOCK_DIFFERENCE_NS if is_first else since_ns
        found = [] if self._saved is None else [self._saved]
        if self.is_new and self.record is not None:
            found.append(AttributedRecord(self.record, self.attribution))
        fitting = (
            each
            for each in reversed(found)
            if each.record.time_ns >= earliest_ns and not self._is_later(each.record, last_ns)
        )
        return next(fitting, None)

    def add_uncertain_record(self, record: Record) -> None:
        """Store a log record that may be of another flow, unless a record is already stored.

        The record gets no attribution, because another process may have sent its packet.
        """
        self.record = self.record or record

    def set_growing(self) -> None:
        """Mark the flow as growing: it has new packets.

        The time of these packets is set later, by the next call of :meth:`is_due` or
        :meth:`is_over`. It is the ``now_ns`` of that call.
        """
        self._is_growing = True

    def is_due(self, now_ns: int) -> bool:
        """Return True if the flow's unreported packets must be reported at ``now_ns``."""
        return self.schedule is None or self.schedule.is_due(now_ns, self._last_ns(now_ns))

    def is_over(self, now_ns: int) -> bool:
        """Return True if the flow has ended, so that its next packet begins a new series of events.

        A flow ends 10 seconds after its last packet or its last event, whichever is later.
        """
        last_ns = self._last_ns(now_ns)
        if self.schedule is None:
            return now_ns - last_ns >= OVER_NS
        return self.schedule.is_over(now_ns, last_ns)

    def mark_reported(self, now_ns: int, last_ns: int) -> None:
        """Update the state after a new event of the flow, and set the due time of the next event.

        ``now_ns`` is from a monotonic clock. ``last_ns`` is the time of the event's last packet.
        """
        # The record of a later packet stays stored for a later event.
        record = self.record
        self.is_new = self.is_new and record is not None and self._is_later(record, last_ns)
        self._saved = None
        if self.schedule is None:
            # The flow may have been reported before a restart.
            before = 0 if self.end is None else self.end.incident.windows
            self.schedule = Schedule(now_ns, before + 1)
        else:
            self.schedule.mark_reported(now_ns)

    def _save_record(self, last_ns: int) -> None:
        # The next event counts only packets up to `last_ns`, the last that a reading has shown.
        if self.is_new and self.record is not None and not self._is_later(self.record, last_ns):
            self._saved = AttributedRecord(self.record, self.attribution)

    def _is_later(self, record: Record, last_ns: int) -> bool:
        """Return True if a log record's packet was certainly refused after ``last_ns``.

        Return False if the record's time is uncertain.
        """
        if record.is_timed_when_read or (self._is_of_old_clock and record is self.record):
            return False
        return record.time_ns > last_ns + _MAX_CLOCK_DIFFERENCE_NS

    def _last_ns(self, now_ns: int) -> int:
        if self._is_growing or self._grew_ns is None:
            self._grew_ns, self._is_growing = now_ns, False
        return self._grew_ns


class FlowReports(dict["Key", FlowReport]):
    """Map from flow keys to report states, for the flows of one rule that have separate events.

    The number of these flows is limited. The other flows of the rule share events.
    """

    def __init__(self, counter_id: CounterId, opened: OpenIncidents, priority: Priority) -> None:
        """Create an empty map from flow keys to FlowReport objects, for one firewall rule.

        ``opened`` collects incidents (a flow's repeated refused packets) for the state database.
        ``priority`` selects incidents for Detection Finding events, and destinations with a higher
        flow limit.
        """
        super().__init__()
        self._counter_id = counter_id
        self._opened = opened
        self._priority = priority
        self._quota = Quota()
        #: Users of the flows that have a separate report only because of their destination.
        self._priority_users: dict[Key, int | None] = {}
        #: The latest of the flows that differ only in their port.
        self._by_destination: dict[Key, Key] = {}

    def find(self, key: Key, record: Record) -> FlowReport | None:
        """Return the FlowReport of the flow ``key``; None if not found.

        ``record`` is the flow's log record. If it lacks the destination port, the FlowReport may be
        of another flow with the same user, protocol and destination.
        """
        # The latest flow of the same user, protocol and destination.
        there = self._by_destination.get(key) if lacks_port(record) else None
        return self.get(key) or (None if there is None else self[there])

    def admits(self, key: Key, uid: int | None, destination: str | None, now_ns: int) -> bool:
        """Return True if a new flow may have its own events; then count it toward the limits.

        Otherwise the flow must share events with other flows. ``now_ns`` is of a monotonic clock.
        """
        if len(self) - len(self._priority_users) < _MAX_REPORTS and self._quota.grants(uid, now_ns):
            return True
        # Some more flows are admitted to destinations such as a cloud's metadata service.
        if (
            destination not in self._priority.destinations
            or len(self._priority_users) >= _MAX_PRIORITY_REPORTS
        ):
            return False
        if (
            sum(other == uid for other in self._priority_users.values())
            >= _MAX_PRIORITY_REPORTS_PER_USER
        ):
            return False
        self._priority_users[key] = uid
        return True

    def __delitem__(self, key: Key) -> None:
        """Remove the report state of the flow ``key``."""
        super().__delitem__(key)
        self._priority_users.pop(key, None)
        if self._by_destination.get(without_port(key)) == key:
            del self._by_destination[without_port(key)]

    def begin(
        self,
        key: Key,
        now_ns: int,
        record: Record | None = None,
        attribution: Attribution | None = None,
    ) -> FlowReport:
        """Create and return the report state of the new flow ``key``.

        ``record`` is the flow's first kernel log record; None if there is none yet.
        """
        report = self[key] = FlowReport(key, now_ns, record, attribution)
        self._by_destination[without_port(key)] = key
        return report

    def begin_unlogged(self, key: Key, now_ns: int, reading: int) -> FlowReport:
        """Create and return the report state of a new flow that has no log record yet.

        ``reading`` is the sequence number of the counter reading in which the flow first appeared.
        """
        report = self.begin(key, now_ns)
        report.first_reading = reading
        return report

    def resume(self, opened: OpenIncident) -> None:
        """Continue an incident that was open when the service stopped.

        The next packets of the incident's flow are reported at once.
        """
        report = self[opened.key] = FlowReport(opened.key, record=opened.end.record)
        self._by_destination[without_port(opened.key)] = opened.key
        report.is_new = False
        report.end = opened.end

    def mark_reported(
        self, report: FlowReport, attempt: Attempt, now_ns: int, last_ns: int
    ) -> Attempt:
        """Mark the packets in ``attempt`` as reported; return ``attempt`` with the flow's incident.

        An incident is a series of one flow's refused packets. An ``attempt`` of several flows is
        returned unchanged. ``now_ns`` is monotonic; ``last_ns`` (UTC) is the last packet's time.
        """
        report.mark_reported(now_ns, last_ns)
        key = report.key
        if key is None or attempt.aggregation is not None:
            return attempt
        report.end = end = incidents.extend_incident(
            report.end, key, attempt, self._priority.is_finding
        )
        self._opened.update(OpenIncident(self._counter_id, key, end))
        return dataclasses.replace(attempt, incident=end.incident)

    def pop_ended(
        self, unreported: AbstractSet[Key], now_ns: int, *, closing: bool
    ) -> Iterator[IncidentEnd]:
        """Remove ended flows, and yield the ends of their incidents (repeated refused packets).

        Flows in ``unreported`` have packets for another event, so they have not ended. With
        ``closing`` (last call), all incidents end, even if their flows remain.
        """
        for key, report in list(self.items()):
            is_over = key not in unreported and report.is_over(now_ns)
            if is_over:
                del self[key]
            end = report.end
            if end is not None and (is_over or closing):
                report.end = None
                self._opened.close(end.incident.identity)
                yield end


class FlowAggregate:
    """Flows that are reported together: their common counter, their number and a sample of them."""

    __slots__ = ("counter", "flows", "report", "sample")

    def __init__(self, counter: FlowCounter) -> None:
        self.counter = counter
        self.flows = 0
        self.sample: list[Flow] = []
        self.report = FlowReport()

    def add(self, flow: Flow) -> None:
        """Count one more flow, and add it to the sample of at most ten flows."""
        self.flows += 1
        if len(self.sample) < _MAX_SAMPLE:
            self.sample.append(flow)

    def take(self, reason: AggregationReason) -> Aggregation:
        """Return a summary of the flows added since the last call, and begin a new summary.

        The summary has the number of these flows, and a sample of at most ten. ``reason`` is why
        the flows are reported together, such as ``evicted``.
        """
        aggregation = Aggregation(
            reason=reason, flows=self.flows or None, sample=tuple(self.sample)
        )
        self.flows = 0
        self.sample = []
        return aggregation


def has_no_slot(key: Key) -> bool:
    """Return True if ``key`` is the key of a common counter for several IPv4 or IPv6 flows.

    The kernel counts a flow in this counter if the nftables set for separate flows is full.
    """
    return key.kind == "others" and flow(key).ethertype in _IP
