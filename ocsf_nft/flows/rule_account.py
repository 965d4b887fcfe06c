"""Account of one firewall rule: which event reports each packet that the kernel has counted."""

from __future__ import annotations

import secrets
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ocsf_nft.attempt import Aggregation, Attempt
from ocsf_nft.flow import Flow, flow, key_of, lacks_port, user_of, without_port
from ocsf_nft.flows import incidents
from ocsf_nft.flows.counter_record import counter_record
from ocsf_nft.flows.dns_questions import DnsQuestions
from ocsf_nft.flows.incidents import OpenIncident
from ocsf_nft.flows.overflow import Admission, Aggregates
from ocsf_nft.flows.reconciler import LAST_READINGS, Reconciler
from ocsf_nft.flows.report_schedule import AttributedRecord, FlowReport
from ocsf_nft.flows.scans import FanOuts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ocsf_nft.attempt import AggregationReason, FanOut, IncidentEnd
    from ocsf_nft.flow import CounterId, Key, Reading, RuleReading
    from ocsf_nft.flows.flow_counter import FlowCounter
    from ocsf_nft.flows.incidents import IsFinding, Opened
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Record

#: Function that adds an attribution to an attempt, if more is known than from one of its records.
#: Call it exactly once for each attempt: it consumes the senders that BPF programs reported.
AddAttribution: TypeAlias = "Callable[[Attempt], Attempt]"
#: Flows processed before other tasks get a turn: about a millisecond of work.
_SLICE: Final = 500
#: Maximum delay of a record after its packet; a later record counts as dropped.
_LATE_NS: Final = 60 * 1_000_000_000
#: Maximum number of flows that are known from log records alone. If no counter can be read, the
#: records of further flows wait for it: they may be forged.
_MAX_UNREAD: Final = 1 << 15
#: Rules with packets that come from a user of the sandbox.
_OUTBOUND: Final = frozenset(
    {"egress", "forward", "link", "guard", "vm-forward", "vm-input", "vm-link"}
)
_IP: Final = frozenset({0x0800, 0x86DD})


class RuleAccount:
    """Account of one firewall rule: assigns each refused packet to exactly one event.

    All calls must come from one thread. ``now_ns`` is of a monotonic clock; other times are since
    the epoch (UTC).
    """

    def __init__(
        self,
        counter_id: CounterId,
        *,
        begun_ns: int,
        preferred: frozenset[str],
        is_finding: IsFinding,
        add_attribution: AddAttribution,
    ) -> None:
        """Create an empty account for the packet counters of one firewall rule.

        No packet was counted before ``begun_ns``. Flows to ``preferred`` addresses have a reserve
        of separate events. ``add_attribution`` is called exactly once for each attempt, and adds
        the sending process.
        """
        self.counter_id = counter_id
        #: Random text, so that a new account for the same counters, after the loss of this one,
        #: makes no event with the uid of an earlier event.
        self.serial = secrets.token_hex(4)
        self.counters = Reconciler(begun_ns)
        self.reported = 0
        #: The part of ``reported`` that was reported without its flow.
        self.without_flow = 0
        #: Number of records that were received.
        self.received = 0
        #: Records known as dropped, minus those known as forged that an event has reported.
        self.dropped_records = 0
        #: Records known as forged that an event has reported.
        self.forged_records = 0
        #: Until this time a record of a packet in an aggregated report may come.
        self.late_records_until_ns = 0
        #: Until this time records may be forged.
        self.doubted_until_ns = 0
        self.by_user = Aggregates()
        #: Changes of open incidents and scans since the last commit.
        self.opened: Opened = {}
        #: Stored state of the rule; None if the stored state is of other counters.
        self.stored: Mapping[str, Any] | None = None
        self._reports: dict[Key, FlowReport] = {}
        #: The latest of the flows that differ only in their port.
        self._by_destination: dict[Key, Key] = {}
        self._admission = Admission(preferred)
        self._overflow_report = FlowReport()
        self._evicted_report = FlowReport()
        #: Flows of records whose packets may be in an aggregated report, with the number of
        #: readings by then.
        self._waiting: dict[Key, int] = {}
        #: Unread flows at the last call of :meth:`explained_packets`.
        self._asked: frozenset[Key] = frozenset()
        #: Records since the last reading of the flows, and how many of them began a new flow.
        self._records = self._new_flows = 0
        self._fan_outs = FanOuts(counter_id, self.opened)
        self._questions = DnsQuestions()
        self._is_finding = is_finding
        self._add_attribution = add_attribution

    def record(
        self, record: Record, now_ns: int, attribution: Attribution | None = None
    ) -> Attempt | None:
        """Process a refused packet's log record; return the content of its event, if due at once.

        Usually, a flow's first packet gets an event at once. Otherwise return None: a later event
        reports the packet. ``attribution`` names the sending process.
        """
        self.received += 1
        self._records += 1
        key = key_of(record)
        counter = self.counters.entry(key)
        if (known := self._report_about(key, record)) is not None:
            if known.key == key:
                known.add_record(record, attribution, 0 if counter is None else counter.last_ns)
                if self._questions.add(key, record.question) and known.end is not None:
                    self._store_incident(key, known.end)
            else:
                known.add_uncertain_record(record)
            return None
        is_aggregated = counter is not None and counter.is_aggregated
        if is_aggregated or not self._admission.admit(key, record, len(self._reports), now_ns):
            return None
        report = self._begin(key, FlowReport(key, now_ns, record, attribution))
        self._questions.add(key, record.question)
        if counter is None:
            is_doubted = now_ns < max(self.late_records_until_ns, self.doubted_until_ns)
            if is_doubted or len(self.counters.unread) >= _MAX_UNREAD:
                # The packet may be in a report without its flow, or the record may be forged.
                self._waiting[key] = self.counters.readings
                return None
            counter = self.counters.add_unread(key, record.time_ns)
            self._new_flows += 1
            self._add_to_scan(key, record.received_ns)
        elif (
            counter.unreported_packets < 1
            or report.new_record(counter.since_ns, counter.last_ns) is None
        ):
            # The next reading shows whether the counter has the record's packet already.
            return None
        counter.last_ns = max(counter.last_ns, record.time_ns)
        named = AttributedRecord(record, attribution)
        return self._report_record(key, counter, report, named, now_ns)

    def resume(self, identity: str, opened: OpenIncident | FanOut) -> None:
        """Continue an incident or scan that was open when the service stopped.

        The next packets of the incident's flow are reported at once. Raises ValueError if the
        identity is another one.
        """
        if isinstance(opened, OpenIncident):
            report = FlowReport(opened.key, record=opened.end.record)
            report.is_new = False
            report.end = opened.end
            self._begin(opened.key, report)
            incident = opened.end.incident
            self._questions.resume(opened.key, incident.questions, opened.questions)
            found = incident.identity
        else:
            self._fan_outs.resume(opened)
            found = opened.identity
        if found != identity:
            raise ValueError("stored under another identity")

    def observe(self, found: RuleReading, reading: Reading) -> Iterator[None]:
        """Process the part of ``reading`` that is of this rule.

        The iterator yields after each step of the work, so that other tasks can run.
        """
        if self.counters.check_clock(reading):
            for each in self._reports.values():
                each.limit_times(reading.ended_ns)
        if found.elements is not None:
            self._records = self._new_flows = 0
            self.counters.explained = frozenset()
        before = self.counters.overflow.unreported_packets
        for grown in self.counters.observe(found, reading):
            for key, counter, packets, is_new in grown:
                if is_new and not has_no_slot(key):
                    self._add_to_scan(key, reading.ended_ns)
                if packets and (report := self._reports.get(key)):
                    report.add_packets(counter.last_ns)
                self._fan_outs.count(user_of(key), packets)
            yield
        if self.counters.overflow.unreported_packets != before:
            self._overflow_report.set_growing()
        # A balance requested now must include everything that the readings have shown.
        self._move_records(closing=False)

    def _move_records(self, *, closing: bool) -> None:
        self.counters.move_records(self._is_unlogged, closing=closing)
        self.reported += self.counters.adopted_packets
        self.counters.adopted_packets = 0

    def _add_to_scan(self, key: Key, time_ns: int) -> None:
        if self.counter_id.rule in _OUTBOUND:
            self._fan_outs.add_flow(key, time_ns)

    def explained_packets(self, now_ms: int) -> int | None:
        """Return how many packets log records have shown since the last reading of the flows.

        Another reading of the flows is needed if the total grows by another number. None if it is
        needed anyway. ``now_ms`` is the present time by the monotonic clock.
        """
        unread = len(self.counters.unread)
        if self._waiting or self.stored is None or not self.counters.is_settled(now_ms):
            return None
        # The records' events report the packets of new flows. Only a reading shows how many
        # packets of other flows came, and when.
        if not self._records == self._new_flows == unread:
            return None
        self._asked = frozenset(self.counters.unread)
        return unread

    def note_explained(self) -> None:
        """Note that the total has grown by the result of :meth:`explained_packets`."""
        self.counters.explained = self._asked

    def is_active(self) -> bool:
        """Return True if an event may become due without a new packet."""
        return bool(
            self._reports
            or self._waiting
            or self.by_user
            or self._fan_outs
            or self.counters.is_active()
        )

    def aggregate_overflow(self, now_ns: int) -> Iterator[None]:
        """Aggregate the flows of users who have too many flows for separate reports.

        The iterator yields after each step of the work, so that other tasks can run. A later call
        of :meth:`due` then takes less time.
        """
        unreported = iter(list(self.counters.unreported))
        while some := tuple(islice(unreported, _SLICE)):
            for key in some:
                counter = self.counters.entry(key)
                if counter is not None and counter.unreported_packets > 0 and not has_no_slot(key):
                    self._report_of(key, counter, now_ns)
            yield

    def due(
        self, now_ns: int, *, closing: bool, record_wait_ns: int = 0
    ) -> Iterator[Attempt | FanOut | IncidentEnd]:
        """Yield the attempts, scans and ended incidents that must be reported now.

        With ``closing``, report all packets that no event reports yet, and end all incidents and
        scans. Otherwise a new flow waits up to ``record_wait_ns`` for its log record.
        """
        if self.counters.find_evicted(closing=closing):
            self._evicted_report.set_growing()
        self._move_records(closing=closing)
        yield from self._due_of_waiting(now_ns)
        for key in sorted(self.counters.unreported):
            yield from self._due(key, now_ns, closing=closing, record_wait_ns=record_wait_ns)
        for counter, report, uid, reason in self._aggregates():
            if counter.unreported_packets > self._held_back(reason) and (
                closing or report.is_due(now_ns)
            ):
                found = self.by_user[uid].take() if reason == "many" else Aggregation(reason=reason)
                user_flow = Flow(uid=uid, protocol=None)
                yield self._report_counter(counter, None, user_flow, report, now_ns, found)
            elif reason == "many" and report.is_over(now_ns):
                del self.by_user[uid]
        yield from self._ended(now_ns, closing=closing)
        yield from self._fan_outs.due(now_ns, closing=closing)

    def _ended(self, now_ns: int, *, closing: bool) -> Iterator[IncidentEnd]:
        for key, report in list(self._reports.items()):
            is_over = key not in self.counters.unreported and report.is_over(now_ns)
            if is_over:
                self._remove(key)
            end = report.end
            if end is not None and (is_over or closing):
                report.end = None
                self.opened[end.incident.identity] = None
                yield replace(end, is_stopped=not is_over)

    def pending_packets(self) -> int:
        """Return how many packets the kernel had counted at the last reading, but no event reports.

        The number is 0 at the end, if nothing is lost.
        """
        return self.counters.pending_packets(each.counter for each in self.by_user.values())

    def _aggregates(
        self,
    ) -> tuple[tuple[FlowCounter, FlowReport, int | None, AggregationReason], ...]:
        return (
            (self.counters.overflow, self._overflow_report, None, "unplaced"),
            (self.counters.evicted, self._evicted_report, None, "evicted"),
            *((each.counter, each.report, uid, "many") for uid, each in self.by_user.items()),
        )

    def _report_about(self, key: Key, record: Record) -> FlowReport | None:
        # A record without its port may be of any flow to the destination.
        alike = self._by_destination.get(key) if lacks_port(record) else None
        return self._reports.get(key) or (None if alike is None else self._reports[alike])

    def _begin(self, key: Key, report: FlowReport) -> FlowReport:
        self._reports[key] = report
        self._by_destination[without_port(key)] = key
        return report

    def _remove(self, key: Key) -> None:
        del self._reports[key]
        self._questions.remove(key)
        self._admission.release(key)
        if self._by_destination.get(without_port(key)) == key:
            del self._by_destination[without_port(key)]

    def _is_unlogged(self, key: Key) -> bool:
        report = self._reports.get(key)
        return report is None or report.is_unlogged

    def _due_of_waiting(self, now_ns: int) -> Iterator[Attempt]:
        # A log record waits if an event of several flows may have reported its packet already.
        for key, readings in list(self._waiting.items()):
            report = self._reports.get(key)
            record = None if report is None else report.record
            if report is None or record is None or self.counters.entry(key) is not None:
                del self._waiting[key]
                continue
            # A common counter of several flows may have the packet.
            for other_key, counter in self.counters.other_counters(key):
                # One packet for each unread flow may have been reported from its record.
                if counter.unreported_packets > len(self.counters.unread):
                    del self._waiting[key]
                    named = AttributedRecord(record, report.attribution)
                    yield self._report_record(other_key, counter, report, named, now_ns)
                    break
            else:
                # No such counter has it: the event of several flows has reported the packet.
                if self.counters.readings - readings >= LAST_READINGS:
                    del self._waiting[key]
                    self._remove(key)

    def _due(
        self, key: Key, now_ns: int, *, closing: bool, record_wait_ns: int
    ) -> Iterator[Attempt]:
        counter = self.counters.entry(key)
        if counter is None or counter.unreported_packets < 1:
            self.counters.unreported.discard(key)
            return
        if has_no_slot(key) and counter.unreported_packets <= self._held_back("unplaced"):
            return
        report = self._report_of(key, counter, now_ns)
        if report is None:
            return
        # The packets may be those of an already reported record of another flow, or the flow's
        # record may not be processed yet.
        is_waiting = report.awaits_record(record_wait_ns, now_ns) or (
            bool(self.counters.unread) and report.is_young(self.counters.readings, now_ns)
        )
        if closing or (report.is_due(now_ns) and not is_waiting):
            self.counters.unreported.discard(key)
            named = report.new_record(counter.since_ns, counter.last_ns)
            if named is not None and counter.unreported_packets == 1:
                yield self._report_record(key, counter, report, named, now_ns)
            else:
                aggregation = Aggregation(reason="unplaced") if has_no_slot(key) else None
                yield self._report_counter(counter, key, flow(key), report, now_ns, aggregation)

    def _report_of(self, key: Key, counter: FlowCounter, now_ns: int) -> FlowReport | None:
        """Return the FlowReport of a flow; None if its packets were added to an aggregate."""
        report = self._reports.get(key)
        if report is None and not counter.is_aggregated:
            reports = len(self._reports)
            if has_no_slot(key) or self._admission.admit(key, flow(key), reports, now_ns):
                report = self._begin(key, FlowReport(key, now_ns))
                report.first_reading = self.counters.readings
        if report is None:
            self.by_user.add(key, counter)
            self.counters.unreported.discard(key)
            self.counters.touched.add(key)
        return report

    def _report_record(
        self,
        key: Key | None,
        counter: FlowCounter,
        report: FlowReport,
        named: AttributedRecord,
        now_ns: int,
    ) -> Attempt:
        attempt = Attempt.of(named.record, named.attribution)
        counter.mark_reported(1, attempt.bytes or 0)
        counter.since_ns = named.record.time_ns
        last_ns = max(counter.last_ns, named.record.time_ns)
        return self._mark_reported(key, report, attempt, now_ns, last_ns)

    def _report_counter(  # noqa: PLR0913, PLR0917 - the facts of one report
        self,
        counter: FlowCounter,
        key: Key | None,
        decoded: Flow,
        report: FlowReport,
        now_ns: int,
        aggregation: Aggregation | None,
    ) -> Attempt:
        held = 0 if aggregation is None else self._held_back(aggregation.reason)
        packets, octets = counter.unreported_packets - held, max(counter.unreported_bytes, 0)
        named = report.new_record(counter.since_ns, counter.last_ns)
        start_ns, end_ns = counter.window()
        attempt = Attempt(
            record=counter_record(
                self.counter_id,
                key,
                decoded,
                report.record if named is None else named.record,
                number=f"{self.serial}/{self.reported}",
                counted=f"counter packets {packets} bytes {octets}",
                time_ns=end_ns,
                read_ns=self.counters.ended_ns,
            ),
            packets=packets,
            bytes=octets,
            start_ns=start_ns,
            end_ns=end_ns,
            aggregation=aggregation,
            attribution=None if named is None else named.attribution,
        )
        counter.mark_reported(packets, octets)
        counter.since_ns = end_ns
        if aggregation is not None:
            self.without_flow += attempt.packets
            if aggregation.reason != "many":
                self.late_records_until_ns = now_ns + _LATE_NS
        if key is not None and held:
            self.counters.unreported.add(key)
        return self._mark_reported(key, report, attempt, now_ns, counter.last_ns)

    def _mark_reported(
        self, key: Key | None, report: FlowReport, attempt: Attempt, now_ns: int, last_ns: int
    ) -> Attempt:
        """Mark the packets of an attempt as reported; return it with sender and incident."""
        self.reported += attempt.packets
        if key is not None:
            self.counters.touched.add(key)
        attempt = self._add_attribution(attempt)
        self._fan_outs.add_attempt(attempt)
        report.mark_reported(now_ns, last_ns)
        if report.key is None or attempt.aggregation is not None:
            return attempt
        attempt = replace(attempt, questions=self._questions.take(report.key, attempt))
        end = incidents.extend_incident(report.end, report.key, attempt, self._is_finding)
        report.end = end
        self._store_incident(report.key, end)
        return replace(attempt, incident=end.incident)

    def _store_incident(self, key: Key, end: IncidentEnd) -> None:
        self.opened[end.incident.identity] = OpenIncident(key, end, self._questions.unreported(key))

    def _held_back(self, reason: AggregationReason) -> int:
        # Number of packets that an event of several flows must leave out, to report none twice.
        # An event may report a packet from its log record before any reading shows the packet. The
        # common counter of several flows may include it, so one is left out for each such flow.
        # With ``many`` (too many flows of one user), the aggregate is the sum of the flows' own
        # counters, and the reported packets are already subtracted from these.
        return 0 if reason == "many" else len(self.counters.unread)


def has_no_slot(key: Key) -> bool:
    """Return True if ``key`` is the key of a common counter for several IPv4 or IPv6 flows.

    The kernel counts a flow in this counter if the nftables set for separate flows is full.
    """
    return key.kind == "others" and flow(key).ethertype in _IP
