"""Reports of flows: separate ones, and aggregated ones."""

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
    """A record, and its attribution if there is one."""

    record: Record
    attribution: Attribution | None


class FlowReport:
    """Report state of a flow, or of an aggregate.

    It has the due time of the next report, and the latest record. Its times come from a monotonic
    clock, so a change of the wall clock can't delay or stop reports.
    """

    __slots__ = (
        "_grew_ns", "_is_growing", "_shown", "attribution", "end", "first_reading", "is_new", "key",
        "record", "schedule",
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
        #: Number of the first reading with the flow; None if a record came first.
        self.first_reading: int | None = None
        self.record = record
        #: Attribution of ``record``.
        self.attribution = attribution
        #: Whether no attempt has counted the record yet.
        self.is_new = record is not None
        #: Latest record of a packet that a reading has shown, until an attempt counts it.
        self._shown: AttributedRecord | None = None
        self.schedule: Schedule | None = None
        #: Totals of the incident so far; None if no attempt of one was reported.
        self.end: IncidentEnd | None = None

    @property
    def is_unlogged(self) -> bool:
        """Return whether the flow has neither a record nor a report."""
        return self.record is None and self.schedule is None

    def is_young(self, reading: int, now_ns: int) -> bool:
        """Return whether an already reported record may still belong to the flow.

        The elapsed time alone does not show this: on a busy machine readings are far apart.
        """
        first, begun_ns = self.first_reading, self._grew_ns
        if not self.is_unlogged or first is None or begun_ns is None:
            return False
        return reading - first < _YOUNG_READINGS and now_ns - begun_ns < _YOUNG_NS

    def add_record(self, record: Record, attribution: Attribution | None, last_ns: int) -> None:
        """Set the record of a later packet.

        ``last_ns`` is the time of the last packet that a reading showed.
        """
        self._store_shown(last_ns)
        self.record = record
        self.attribution = attribution
        self.is_new = True
        self.set_growing()

    def add_packets(self, last_ns: int) -> None:
        """Process a reading with more packets, the last one at ``last_ns``."""
        self.set_growing()
        self._store_shown(last_ns)

    def new_record(self, since_ns: int, last_ns: int) -> AttributedRecord | None:
        """Return the record without an attempt, if its packet is within the given times.

        An earlier record is late: an attempt has counted its packet. A later record's packet is not
        in the reading that showed the unreported packets: it waits for the next attempt.
        """
        is_first = self.schedule is None and self.end is None
        earliest_ns = since_ns - _MAX_CLOCK_DIFFERENCE_NS if is_first else since_ns
        found = [] if self._shown is None else [self._shown]
        if self.is_new and self.record is not None:
            found.append(AttributedRecord(self.record, self.attribution))
        fitting = (
            each
            for each in reversed(found)
            if each.record.time_ns >= earliest_ns and not _is_later(each.record, last_ns)
        )
        return next(fitting, None)

    def add_uncertain_record(self, record: Record) -> None:
        """Use a record that may belong to another packet, if there is none yet.

        Its attribution is not used, because another process may have sent the packet.
        """
        self.record = self.record or record

    def set_growing(self) -> None:
        """Note that the flow has grown."""
        self._is_growing = True

    def is_due(self, now_ns: int) -> bool:
        """Return whether to report the unreported packets now."""
        return self.schedule is None or self.schedule.is_due(now_ns, self._last_ns(now_ns))

    def is_over(self, now_ns: int) -> bool:
        """Return whether the last packet is so old that the next one begins a new attempt."""
        last_ns = self._last_ns(now_ns)
        if self.schedule is None:
            return now_ns - last_ns >= OVER_NS
        return self.schedule.is_over(now_ns, last_ns)

    def mark_reported(self, now_ns: int, last_ns: int) -> None:
        """Note that an attempt was emitted, whose last packet was at ``last_ns``."""
        self.is_new = self.is_new and self.record is not None and _is_later(self.record, last_ns)
        self._shown = None
        if self.schedule is None:
            # The flow may have been reported before a restart.
            before = 0 if self.end is None else self.end.incident.windows
            self.schedule = Schedule(now_ns, before + 1)
        else:
            self.schedule.mark_reported(now_ns)

    def _store_shown(self, last_ns: int) -> None:
        """Store the record separately from later ones, if a reading has shown its packet."""
        if self.is_new and self.record is not None and not _is_later(self.record, last_ns):
            self._shown = AttributedRecord(self.record, self.attribution)

    def _last_ns(self, now_ns: int) -> int:
        if self._is_growing or self._grew_ns is None:
            self._grew_ns, self._is_growing = now_ns, False
        return self._grew_ns


def _is_later(record: Record, last_ns: int) -> bool:
    """Return whether the kernel logged a record's packet after a time, as far as is known."""
    return not record.is_timed_when_read and record.time_ns > last_ns + _MAX_CLOCK_DIFFERENCE_NS


class FlowReports(dict["Key", FlowReport]):
    """Separate reports by flow, and the limits for new ones; each has the flow's latest record."""

    def __init__(self, counter_id: CounterId, opened: OpenIncidents, priority: Priority) -> None:
        """Create an empty mapping; ``priority`` selects destinations and findings."""
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
        """Return the report that a record belongs to; None if its flow has no separate report.

        A record without a port may belong to another flow to the same destination: the kernel may
        have counted its packet there, and it may be reported already.
        """
        there = self._by_destination.get(key) if lacks_port(record) else None
        return self.get(key) or (None if there is None else self[there])

    def admits(self, key: Key, uid: int | None, destination: str | None, now_ns: int) -> bool:
        """Return whether one more flow of a user gets a separate report.

        If it does not, it is aggregated.
        """
        if len(self) - len(self._priority_users) < _MAX_REPORTS and self._quota.grants(uid, now_ns):
            return True
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
        """Remove the report of a flow."""
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
        """Create the separate report of a flow."""
        report = self[key] = FlowReport(key, now_ns, record, attribution)
        self._by_destination[without_port(key)] = key
        return report

    def begin_unlogged(self, key: Key, now_ns: int, reading: int) -> FlowReport:
        """Create the separate report of a flow that a reading was the first to show."""
        report = self.begin(key, now_ns)
        report.first_reading = reading
        return report

    def resume(self, opened: OpenIncident) -> None:
        """Continue an incident that was reported before a restart.

        The next packets are reported at once.
        """
        report = self[opened.key] = FlowReport(opened.key, record=opened.end.record)
        self._by_destination[without_port(opened.key)] = opened.key
        report.is_new = False
        report.end = opened.end

    def mark_reported(
        self, report: FlowReport, attempt: Attempt, now_ns: int, last_ns: int
    ) -> Attempt:
        """Note that an attempt is emitted.

        Return the attempt with the incident that it belongs to.
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
        """Yield the incidents that are over, or all incidents if ``closing``.

        A flow that is over is removed: its next packet begins a new incident.
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
    """Aggregated flows: their unreported packets, their number, and a sample."""

    __slots__ = ("counter", "flows", "report", "sample")

    def __init__(self, counter: FlowCounter) -> None:
        self.counter = counter
        self.flows = 0
        self.sample: list[Flow] = []
        self.report = FlowReport()

    def add(self, flow: Flow) -> None:
        """Add one flow."""
        self.flows += 1
        if len(self.sample) < _MAX_SAMPLE:
            self.sample.append(flow)

    def take(self, reason: AggregationReason) -> Aggregation:
        """Return the description of the flows so far, and reset it for the next report."""
        aggregation = Aggregation(
            reason=reason, flows=self.flows or None, sample=tuple(self.sample)
        )
        self.flows = 0
        self.sample = []
        return aggregation


def has_no_slot(key: Key) -> bool:
    """Return whether an element holds the packets of flows that found no slot of their own."""
    return key.kind == "others" and flow(key).ethertype in _IP
