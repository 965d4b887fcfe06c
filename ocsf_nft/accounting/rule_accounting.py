"""Account of one firewall rule: packets counted by the kernel, and packets reported in events."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ocsf_nft.accounting import counter_attempt
from ocsf_nft.accounting.flow_counter import FlowCounter
from ocsf_nft.accounting.flow_report import (
    AttributedRecord,
    FlowAggregate,
    FlowReports,
    has_no_slot,
)
from ocsf_nft.accounting.open_incidents import OpenIncident
from ocsf_nft.accounting.overflow_flows import OverflowFlows
from ocsf_nft.accounting.scan_detection import FanOuts
from ocsf_nft.accounting.unaccounted import LAST_READINGS, READINGS, UnaccountedPackets
from ocsf_nft.accounting.unlogged_flows import UnloggedFlows
from ocsf_nft.attempt import Aggregation, Attempt
from ocsf_nft.flow import KINDS, Count, Flow, Key, fallback_keys, flow, keys, user_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ocsf_nft.accounting.counter_id import CounterId
    from ocsf_nft.accounting.flow_report import FlowReport
    from ocsf_nft.accounting.open_incidents import OpenEntry, OpenIncidents
    from ocsf_nft.accounting.priority import Priority
    from ocsf_nft.attempt import AggregationReason, FanOut, IncidentEnd
    from ocsf_nft.flow import Element, Kind, RuleReading
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Record

#: Function that adds an attribution to an attempt, if more is known than from one of its records.
#: Call it exactly once for each attempt: it consumes the senders that BPF programs reported.
AddAttribution: TypeAlias = "Callable[[Attempt], Attempt]"
#: Elements processed before other tasks get a turn: about a millisecond of work.
_SLICE: Final = 500
#: Maximum delay of a record after its packet; a later record counts as dropped.
_LATE_NS: Final = 60 * 1_000_000_000
#: Far more elements than a set has room for (accounting.nft): another process empties it
#: repeatedly.
_CROWDED: Final = 1 << 16
#: Rules whose packets come from a user of the sandbox.
_OUTBOUND: Final = frozenset(
    {"egress", "forward", "link", "guard", "vm-forward", "vm-input", "vm-link"}
)


class RuleAccount:
    """Account of one firewall rule: assigns each refused packet to exactly one event.

    All calls must come from one thread. ``now_ns`` is of a monotonic clock; other times are since
    the epoch (UTC).
    """

    def __init__(
        self,
        counter_id: CounterId,
        opened: OpenIncidents,
        *,
        begun_ns: int,
        priority: Priority,
        add_attribution: AddAttribution,
    ) -> None:
        """Create an empty account for the packet counters of one firewall rule.

        ``opened`` collects open incidents and scans for storage. No packet was counted before
        ``begun_ns``. ``priority`` selects flows for separate events. ``add_attribution`` is
        called exactly once for each attempt, and adds the sending process.
        """
        self.epoch = counter_id.epoch
        self.entries: dict[Kind, dict[bytes, FlowCounter]] = {kind: {} for kind in KINDS}
        #: The kernel's total at the last reading, and the part of it that was in elements.
        self.refused = Count()
        self.in_sets = Count()
        self.reported = 0
        #: The part of ``reported`` that was reported without its flow.
        self.without_flow = 0
        #: Start of the last reading: packets that it lacks came later.
        self.read_ns = self._ended_ns = begun_ns
        self.overflow = FlowAggregate(FlowCounter(since_ns=begun_ns))
        self.evicted = FlowAggregate(FlowCounter(since_ns=begun_ns))
        self.by_user: dict[int | None, FlowAggregate] = {}
        #: Keys of counters that changed since the last commit.
        self.touched: set[Key] = set()
        #: Stored state of the rule; None if the stored state is of other counters.
        self.stored: Mapping[str, Any] | None = None
        #: Records that the kernel had logged by the last reading, and those that were received.
        self.logged = self.received = 0
        self._unreported: set[Key] = set()
        self.counter_id = counter_id
        self._reports = FlowReports(counter_id, opened, priority)
        self._overflow_flows = OverflowFlows(self.by_user)
        #: Flows reported by a record; no reading has shown yet which counter has the packet.
        self._unread: set[Key] = set()
        #: Flows of records whose packets may be in an aggregated report, with the number of
        #: readings by then.
        self._waiting: dict[Key, int] = {}
        #: Until this time a record may come whose packet is in an aggregated report.
        self.late_records_until_ns = 0
        self._readings = 0
        self._unaccounted = UnaccountedPackets()
        #: Packets that arrived during the last reading.
        self._packets_during_reading = 0
        self._is_outbound = counter_id.rule in _OUTBOUND
        self._add_attribution = add_attribution
        self._fan_outs = FanOuts(counter_id, opened)

    def record(
        self, record: Record, now_ns: int, attribution: Attribution | None = None
    ) -> Attempt | None:
        """Process a log record of a refused packet; return an attempt if its event is due at once.

        Return None if a later event reports the packet. Usually, only a flow's first packet gets
        an event at once. ``attribution`` names the sending process.
        """
        self.received += 1
        key = keys(record)[0]
        report = self._reports.find(key, record)
        counter = self._entry(key)
        if report is not None:
            if report.key == key:
                report.add_record(record, attribution, 0 if counter is None else counter.last_ns)
            else:
                report.add_uncertain_record(record)
            return None
        if key in self._overflow_flows or not self._reports.admits(
            key, record.uid, record.destination, now_ns
        ):
            return None
        report = self._reports.begin(key, now_ns, record, attribution)
        if counter is not None and (
            counter.unreported_packets < 1
            or report.new_record(counter.since_ns, counter.last_ns) is None
        ):
            # The next reading shows whether the counter has the record's packet already.
            return None
        if counter is None and now_ns < self.late_records_until_ns:
            # The record also waits if its packet may be in a report without its flow.
            self._waiting[key] = self._readings
            return None
        if counter is None:
            counter = self.entries[key.kind][key.data] = FlowCounter(since_ns=record.time_ns)
            self._unread.add(key)
            if self._is_outbound:
                self._fan_outs.add_flow(key, record.received_ns)
        counter.last_ns = max(counter.last_ns, record.time_ns)
        return self._report_record(
            key, counter, report, AttributedRecord(record, attribution), now_ns
        )

    def take_over(self, before: RuleAccount) -> None:
        """Move some flows to this account from ``before``, the account of the rule's old counters.

        A flow is moved if an event reported a packet that the new counters may still count. The
        move prevents a second report of this packet.
        """
        for key in list(before._unread):
            counter = before.entries[key.kind][key.data]
            self.entries[key.kind][key.data] = counter
            self._unread.add(key)
            self.touched.add(key)
            self.reported -= counter.unreported_packets
            before._drop(key)

    def restore(self, key: Key, counter: FlowCounter) -> None:
        """Add the counter of the flow ``key``, as read from the state database."""
        self.entries[key.kind][key.data] = counter
        if counter.unreported_packets > 0:
            self._unreported.add(key)
        elif counter.is_unread:
            self._unread.add(key)

    def resume(self, opened: OpenEntry) -> None:
        """Continue an incident or scan that was open when the service stopped."""
        if isinstance(opened, OpenIncident):
            self._reports.resume(opened)
        else:
            self._fan_outs.resume(opened)

    def observe(self, reading: RuleReading, began_ns: int, ended_ns: int) -> Iterator[None]:
        """Process a counter reading of the rule, made between ``began_ns`` and ``ended_ns``.

        The iterator yields after each step of the work, so that other tasks can run.
        """
        if began_ns < self.read_ns:  # the wall clock was set back
            self._limit_times(began_ns, ended_ns)
        for kind in KINDS:
            elements = iter(reading.elements.get(kind, ()))
            shown: set[bytes] = set()
            while some := tuple(islice(elements, _SLICE)):
                for element in some:
                    shown.add(element.data)
                    self._update(Key(kind, element.data), element, ended_ns)
                yield
            missing = iter([data for data in self.entries[kind] if data not in shown])
            while some_missing := tuple(islice(missing, _SLICE)):
                for data in some_missing:
                    self._mark_missing(Key(kind, data), began_ns)
                yield
        self._reconcile(reading, began_ns)
        self.refused, self.logged = reading.refused, reading.logged
        self._packets_during_reading = reading.refused.packets - reading.refused_before.packets
        self.read_ns, self._ended_ns = began_ns, ended_ns
        self._readings += 1
        # A balance requested now must include everything that the readings have shown.
        self._move_records(closing=False)

    def aggregate_overflow(self, now_ns: int) -> Iterator[None]:
        """Aggregate the flows of users who have too many flows for separate reports.

        The iterator yields after each step of the work, so that other tasks can run. A later call
        of :meth:`due` then takes less time.
        """
        unreported = iter(list(self._unreported))
        while some := tuple(islice(unreported, _SLICE)):
            for key in some:
                counter = self._entry(key)
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
        self._find_evicted(closing=closing)
        self._move_records(closing=closing)
        yield from self._due_of_waiting(now_ns)
        for key in sorted(self._unreported):
            yield from self._due(key, now_ns, closing=closing, record_wait_ns=record_wait_ns)
        for aggregate, uid, reason in self._aggregates():
            if aggregate.counter.unreported_packets > self._held_back(reason) and (
                closing or aggregate.report.is_due(now_ns)
            ):
                user_flow = Flow(uid=uid, protocol=None)
                yield self._report_counter(
                    aggregate.counter,
                    None,
                    user_flow,
                    aggregate.report,
                    now_ns,
                    aggregate.take(reason),
                )
            elif reason == "many" and aggregate.report.is_over(now_ns):
                del self.by_user[uid]
        yield from self._reports.pop_ended(self._unreported, now_ns, closing=closing)
        yield from self._fan_outs.due(now_ns, closing=closing)

    def pending_packets(self) -> int:
        """Return the number of packets that the kernel has counted but no event reports yet.

        The counted packets are those of the last counter reading.
        """
        counters = [each for kind in self.entries.values() for each in kind.values()]
        counters += [aggregate.counter for aggregate, _, _ in self._aggregates()]
        seen = self.in_sets.packets + self.overflow.counter.seen_packets
        # Some packets arrived during the last reading, after their flow's counter was read. Only
        # the rule's total, which is read last, shows them.
        unseen = self.refused.packets - seen - self.evicted.counter.seen_packets
        # Packets that were reported and not read yet do not reduce the others' number.
        evicted = self._unaccounted.beyond(self.evicted.counter, LAST_READINGS).packets
        return sum(max(each.unreported_packets, 0) for each in counters) + max(
            0, min(unseen, self._packets_during_reading + evicted)
        )

    def _aggregates(self) -> tuple[tuple[FlowAggregate, int | None, AggregationReason], ...]:
        return (
            (self.overflow, None, "unplaced"),
            (self.evicted, None, "evicted"),
            *((aggregate, uid, "many") for uid, aggregate in self.by_user.items()),
        )

    def _entry(self, key: Key) -> FlowCounter | None:
        return self.entries[key.kind].get(key.data)

    def _update(self, key: Key, element: Element, ended_ns: int) -> None:
        counter = self._entry(key)
        if counter is None:
            counter = self.entries[key.kind][key.data] = FlowCounter(since_ns=self.read_ns)
            if self._is_outbound and not has_no_slot(key):
                self._fan_outs.add_flow(key, ended_ns)
        self._unread.discard(key)
        before = counter.unreported_bytes
        fresh = counter.update(element, ended_ns, self.read_ns)
        if fresh:
            self.in_sets = Count(
                self.in_sets.packets + fresh, self.in_sets.bytes + counter.unreported_bytes - before
            )
            self._unreported.add(key)
            self.touched.add(key)
            if report := self._reports.get(key):
                report.add_packets(counter.last_ns)
            if self._is_outbound:
                self._fan_outs.count(user_of(key), fresh)

    def _limit_times(self, began_ns: int, ended_ns: int) -> None:
        for kind in KINDS:
            for counter in self.entries[kind].values():
                counter.limit_times(began_ns)
        for report in self._reports.values():
            report.limit_times(ended_ns)

    def _mark_missing(self, key: Key, began_ns: int) -> None:
        """Mark the flow ``key`` as missing from the latest counter reading, begun at ``began_ns``.

        After two such readings, a fully reported flow is removed if its set element has expired. It
        is also removed if too many flows are stored. A flow that no reading has shown yet is not
        removed.
        """
        counter = self.entries[key.kind][key.data]
        counter.is_shown = False
        if counter.is_unread:
            # Its packet came before the reading, so another element counted it. Two readings must
            # lack it, because the kernel may omit an element while it enlarges its table.
            counter.missed += counter.last_ns < began_ns
        elif counter.unreported_packets < 1 and (
            began_ns > counter.expires_ns or len(self.entries[key.kind]) > _CROWDED
        ):
            counter.missed += 1
            if counter.missed > 1 and counter.unreported_packets:
                self._unread.add(key)
            elif counter.missed > 1:
                self._drop(key)

    def _move_records(self, *, closing: bool) -> None:
        """Avoid a second report of packets that are logged as one flow, but counted as another.

        An event of the logged flow reports the packets, so the other flow's counter is reduced.
        With ``closing``, this counter is reduced even if it has too few packets.
        """
        # This happens, for example, if the nftables set has no free slot for the first flow.
        unlogged: UnloggedFlows | None = None
        for key in list(self._unread):
            counter = self._entry(key)
            if counter is None or counter.missed < LAST_READINGS:
                continue
            unlogged = unlogged or UnloggedFlows(self._unlogged_counters())
            packets = -counter.unreported_packets
            candidates = [*self._other_counters(key), *unlogged.find(packets, key)]
            enough = (each for each in candidates if each[1].unreported_packets >= packets)
            # At the end, or after eight readings: take the first of the other counters. Before
            # that, a later call searches again if no counter has enough packets.
            is_last = closing or counter.missed > READINGS
            other_key, other = next(enough, candidates[0] if is_last else (None, None))
            if other is not None:
                unreported = Count(counter.unreported_packets, counter.unreported_bytes)
                other.grow_by(unreported, other.last_ns)
                self.touched.update(() if other_key is None else (other_key,))
                self._drop(key)

    def _other_counters(self, key: Key) -> list[tuple[Key | None, FlowCounter]]:
        """Return other counters that may have counted packets of the flow ``key``, likeliest first.

        Each counter is paired with its key in an nftables set. The last two counters are in no set,
        so their key is None.
        """
        # `overflow` has the packets for which no slot was free under any key. `evicted` has those
        # of set elements that the kernel evicted.
        found = [(each, there) for each in fallback_keys(key) if (there := self._entry(each))]
        return [*found, (None, self.overflow.counter), (None, self.evicted.counter)]

    def _unlogged_counters(self) -> Iterator[tuple[Key, FlowCounter]]:
        for key in self._unreported:
            report, counter = self._reports.get(key), self._entry(key)
            if counter is not None and (report is None or report.is_unlogged):
                yield key, counter

    def _drop(self, key: Key) -> None:
        del self.entries[key.kind][key.data]
        self.touched.add(key)
        self._overflow_flows.remove(key)
        self._unread.discard(key)

    def _reconcile(self, reading: RuleReading, began_ns: int) -> None:
        """Update the number of packets that were counted for the rule, but for no flow.

        There are such packets if the nftables set is full, or if the kernel has deleted an entry.
        ``began_ns`` is the start of ``reading``. It becomes the time of new packets that found a
        full set.
        """
        if self.overflow.counter.grow(*reading.overflow):
            # This counter has the packets that found a full set. The kernel gives no time for it.
            self.overflow.counter.last_ns = began_ns
            self.overflow.report.set_growing()
        # Other packets without an element: for example, the kernel has evicted the element.
        self._unaccounted.add(reading.refused_before, self.in_sets, reading.overflow)

    def _find_evicted(self, *, closing: bool) -> None:
        """Update the number of packets in set entries that the kernel deleted before a reading.

        Each reading gives a number: the rule's total minus the packets in all entries. The minimum
        of the last eight readings is used; with ``closing``, the minimum of the last two.
        """
        sure = self._unaccounted.beyond(
            self.evicted.counter, LAST_READINGS if closing else READINGS
        )
        if sure.packets > 0:
            known = self.evicted.counter
            known.grow(known.seen_packets + sure.packets, max(known.seen_bytes + sure.bytes, 0))
            known.last_ns = self.read_ns
            self.evicted.report.set_growing()

    def _due_of_waiting(self, now_ns: int) -> Iterator[Attempt]:
        """Yield an attempt for each waiting log record of a packet that no event has reported.

        A log record waits if an event of several flows may have reported its packet already.
        """
        for key, readings in list(self._waiting.items()):
            report = self._reports.get(key)
            record = None if report is None else report.record
            if report is None or record is None or self._entry(key) is not None:
                del self._waiting[key]
                continue
            # A common counter of several flows may have the packet.
            for other_key, counter in self._other_counters(key):
                # One packet for each flow in _unread may have been reported from its record.
                if counter.unreported_packets > len(self._unread):
                    del self._waiting[key]
                    named = AttributedRecord(record, report.attribution)
                    yield self._report_record(other_key, counter, report, named, now_ns)
                    break
            else:
                # No such counter has it: the event of several flows has reported the packet.
                if self._readings - readings >= LAST_READINGS:
                    del self._waiting[key], self._reports[key]

    def _due(
        self, key: Key, now_ns: int, *, closing: bool, record_wait_ns: int
    ) -> Iterator[Attempt]:
        counter = self._entry(key)
        if counter is None or counter.unreported_packets < 1:
            self._unreported.discard(key)
            return
        if has_no_slot(key) and counter.unreported_packets <= self._held_back("unplaced"):
            return
        report = self._report_of(key, counter, now_ns)
        if report is None:
            return
        # The packets may be those of an already reported record of another flow, or the flow's
        # record may not be processed yet.
        is_waiting = report.awaits_record(record_wait_ns, now_ns) or (
            bool(self._unread) and report.is_young(self._readings, now_ns)
        )
        if closing or (report.is_due(now_ns) and not is_waiting):
            self._unreported.discard(key)
            named = report.new_record(counter.since_ns, counter.last_ns)
            if named is not None and counter.unreported_packets == 1:
                yield self._report_record(key, counter, report, named, now_ns)
            else:
                aggregation = Aggregation(reason="unplaced") if has_no_slot(key) else None
                yield self._report_counter(counter, key, flow(key), report, now_ns, aggregation)

    def _report_of(self, key: Key, counter: FlowCounter, now_ns: int) -> FlowReport | None:
        """Return the FlowReport of a flow; create it if the flow is new.

        If too many flows have separate reports, this method adds the flow's unreported packets to
        an aggregate, and returns None.
        """
        report = self._reports.get(key)
        if report is None and key not in self._overflow_flows:
            decoded = flow(key)
            if has_no_slot(key) or self._reports.admits(
                key, decoded.uid, decoded.destination, now_ns
            ):
                report = self._reports.begin_unlogged(key, now_ns, self._readings)
        if report is None:
            self._overflow_flows.add(key, counter)
            self._unreported.discard(key)
            self.touched.add(key)
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
        named = report.new_record(counter.since_ns, counter.last_ns)
        attempt = counter_attempt.attempt(
            self.counter_id,
            counter,
            key,
            decoded,
            packets=counter.unreported_packets - held,
            number=self.reported,
            read_ns=self._ended_ns,
            sample_record=report.record if named is None else named.record,
            attribution=None if named is None else named.attribution,
            aggregation=aggregation,
        )
        if aggregation is not None:
            self.without_flow += attempt.packets
            if aggregation.reason != "many":
                self.late_records_until_ns = now_ns + _LATE_NS
        if key is not None and held:
            self._unreported.add(key)
        return self._mark_reported(key, report, attempt, now_ns, counter.last_ns)

    def _mark_reported(
        self, key: Key | None, report: FlowReport, attempt: Attempt, now_ns: int, last_ns: int
    ) -> Attempt:
        self.reported += attempt.packets
        if key is not None:
            self.touched.add(key)
        return self._reports.mark_reported(report, self._add_attribution(attempt), now_ns, last_ns)

    def _held_back(self, reason: AggregationReason) -> int:
        # Number of packets that an event of several flows must leave out, to report none twice.
        # An event may report a packet from its log record before any reading shows the packet. The
        # common counter of several flows may include it, so one is left out for each such flow.
        # With ``many`` (too many flows of one user), the aggregate is the sum of the flows' own
        # counters, and the reported packets are already subtracted from these.
        return 0 if reason == "many" else len(self._unread)
