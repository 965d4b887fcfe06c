"""Counts and times of each flow over hours, with idle gaps, expiry, restarts and clock steps."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ocsf_nft.attempt import Attempt
from ocsf_nft.flow import KINDS
from ocsf_nft.flows.sandbox_account import SandboxAccount
from tests.flows.flow_oracle import FlowOracle, Sent
from tests.flows.kernel_model import RULE, START_NS, Kernel, Packet, keys
from tests.flows.reading import changes, on_demand
from tests.flows.stored import FILE, AccountFile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.attempt import FanOut, IncidentEnd
    from ocsf_nft.record import Record

#: One flow for each user: a record of one flow never matches a packet of another.
FLOWS = (
    Packet(uid=1000, protocol=6, destination="192.0.2.1", port=443),
    Packet(uid=0, protocol=17, destination="2001:db8::1", port=53),
    Packet(uid=None, protocol=None, destination=None, port=None, ethertype=0x0806),
)
SECOND_MS, MINUTE_MS, HOUR_MS = 1_000, 60_000, 3_600_000
#: Durations close to the account's limits: the service's pauses, the end of a flow (10 s), a
#: record's delay and the longest report interval (1 minute), and an element's timeout (10 minutes)
#: and half of it.
GAPS_MS = st.one_of(
    st.sampled_from([1, 500, SECOND_MS, 2 * SECOND_MS]),
    st.builds(
        int.__add__,
        st.sampled_from([10 * SECOND_MS, MINUTE_MS, 5 * MINUTE_MS, 10 * MINUTE_MS]),
        st.sampled_from([-SECOND_MS, -10, 0, 10, SECOND_MS]),
    ),
    st.sampled_from([400 * SECOND_MS, 11 * MINUTE_MS, HOUR_MS, 7 * HOUR_MS]),
)
CLOCK_STEPS_MS = st.builds(
    int.__mul__,
    st.sampled_from([-1, 1]),
    st.sampled_from([SECOND_MS, 5 * SECOND_MS, MINUTE_MS, HOUR_MS, 30 * HOUR_MS]),
)
TRAFFIC = st.lists(
    st.tuples(st.sampled_from(range(len(FLOWS))), st.integers(1, 4), st.booleans()), max_size=3
)
#: The duration of each part of a reading.
DUMP_MS = st.sampled_from([0, 0, 1, 1_000])


class OverTime(RuleBasedStateMachine):
    """Three flows, each with an oracle of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.kernel = Kernel()
        self.database = AccountFile(Path(self.folder.name) / FILE).opened()
        self.account = SandboxAccount("sb", begun_ns=START_NS)
        self.flows = [FlowOracle() for _ in FLOWS]
        self.numbers: dict[str, tuple[int, int]] = {}
        self.clock_settings = 0
        self.evicted = 0
        self.read_ms = 0
        self.bytes = 40

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()

    @initialize()
    def begin(self) -> None:
        self._read()

    @rule(traffic=TRAFFIC)
    def send(self, traffic: list[tuple[int, int, bool]]) -> None:
        self._send(traffic)

    @rule(milliseconds=GAPS_MS)
    def pass_time(self, milliseconds: int) -> None:
        self.kernel.now_ms += milliseconds
        self._drop_late_records()

    @rule(milliseconds=CLOCK_STEPS_MS)
    def set_clock(self, milliseconds: int) -> None:
        self.kernel.clock_offset_ns += milliseconds * 1_000_000
        self.clock_settings += 1

    @rule(traffic=TRAFFIC, dump_ms=DUMP_MS)
    def read(self, traffic: list[tuple[int, int, bool]], dump_ms: int) -> None:
        self._read(traffic, dump_ms)

    @rule()
    def report(self) -> None:
        self._report()

    @rule(milliseconds=GAPS_MS, traffic=TRAFFIC)
    def resume_flows_after_a_gap(
        self, milliseconds: int, traffic: list[tuple[int, int, bool]]
    ) -> None:
        """Read until the gap ends and after it, as a running service does."""
        self.kernel.now_ms += milliseconds
        self._drop_late_records()
        self._read()
        self._report()
        self.kernel.now_ms += SECOND_MS
        self._send(traffic)
        self.deliver(len(self.kernel.log))
        self._read()
        self._report()

    @rule(number=st.integers(1, 6))
    def deliver(self, number: int) -> None:
        for _ in range(min(number, len(self.kernel.log))):
            # The time of each packet is known, because it was logged before it is read.
            record = replace(self.kernel.log.popleft(), received_ns=self.kernel.now_ns + 1)
            flow, packet = self.numbers[record.origin.identity]
            self.flows[flow].note_record(packet, self.kernel.now_ms)
            attempt = self.account.record(record, self.kernel.now_ms * 1_000_000)
            self._check([] if attempt is None else [attempt])

    @precondition(lambda self: self.kernel.log)
    @rule(number=st.integers(1, 6))
    def drop(self, number: int) -> None:
        for _ in range(min(number, len(self.kernel.log))):
            self.kernel.log.popleft()

    @rule(milliseconds=GAPS_MS, traffic=TRAFFIC, is_killed=st.booleans())
    def restart(
        self, milliseconds: int, traffic: list[tuple[int, int, bool]], is_killed: bool
    ) -> None:
        if not is_killed:
            self._settle()
        self.kernel.now_ms += milliseconds
        self._send(traffic)
        # The kernel keeps no records for a service that does not run.
        self.kernel.log.clear()
        self.database.close()
        self.database.open()
        self.account = SandboxAccount("sb", begun_ns=START_NS)
        self.database.load(self.account)
        for flow in self.flows:
            flow.restart()
        self._read()

    @rule()
    def settle(self) -> None:
        self._settle()
        (balance,) = self.account.balances()
        # The packet of a late record is shown as pending for nine readings.
        if not any(flow.has_late_record for flow in self.flows):
            assert (balance.counter_mismatch, balance.pending) == (0, 0)
        counted = sum(flow.counted for flow in self.flows)
        assert counted + self.evicted == balance.reported == len(self.kernel.packets)
        for flow in self.flows:
            flow.check_sum()
            assert flow.has_late_record or flow.least <= flow.counted
            if flow.is_exact:
                assert flow.counted == flow.least == flow.most
                assert flow.unreported == []
                done_bytes = sum(flow.packets[each].bytes for each in flow.done)
                expected = done_bytes + flow.borrowed_bytes
                assert flow.counted_bytes == expected or not flow.has_exact_bytes

    @invariant()
    def no_flow_is_reported_beyond_what_was_shown_of_it(self) -> None:
        for flow in self.flows:
            flow.check_sum()

    def _send(self, traffic: Iterable[tuple[int, int, bool]]) -> None:
        for number, times, is_logged in traffic:
            for _ in range(times):
                self._refuse(number, is_logged=is_logged)

    def _refuse(self, number: int, *, is_logged: bool) -> None:
        flow, what = self.flows[number], FLOWS[number]
        self.bytes = 40 + (self.bytes + 7) % 1460
        packet = Packet(
            what.uid, what.protocol, what.destination, what.port, what.ethertype, self.bytes
        )
        self.kernel.refuse(packet, is_logged=is_logged)
        if is_logged:
            identity = self.kernel.log[-1].origin.identity
            self.numbers[identity] = (number, len(flow.packets))
        flow.packets.append(
            Sent(self.kernel.now_ms, self.kernel.now_ns, packet.bytes, self.clock_settings)
        )

    def _read(
        self,
        traffic: Iterable[tuple[int, int, bool]] = (),
        dump_ms: int = 0,
        *,
        is_complete: bool = False,
    ) -> None:
        waiting = list(traffic)
        dumps: list[tuple[int, list[int]]] = []

        def between() -> None:
            self._send([waiting.pop()] if waiting else [])
            self.kernel.now_ms += dump_ms
            dumps.append((self.kernel.now_ms, [len(flow.packets) for flow in self.flows]))

        reading = self.kernel.read(between)
        found = reading if is_complete else on_demand(self.account, reading)
        if found.explained:  # the flows were not read
            for _ in self.account.observe(found):
                pass
            return
        for number, flow in enumerate(self.flows):
            (kind, _), *_ = keys(FLOWS[number].record(0, 0))
            now_ms, sent = dumps[KINDS.index(kind)]
            flow.show(sent[number], now_ms, reading, self.kernel.now_ms, self.clock_settings)
        for _ in self.account.observe(found):
            pass
        self._commit()
        self.read_ms = self.kernel.now_ms
        self._drop_late_records()

    def _report(self, *, closing: bool = False) -> None:
        self._check(self.account.due(self.kernel.now_ms * 1_000_000, closing=closing))
        if any(flow.ahead for flow in self.flows):
            return
        for flow in self.flows:
            flow.check_report_in_time(self.kernel.now_ms)

    def _settle(self) -> None:
        """Process all records, and read twice, as a service does when it ends."""
        self.deliver(len(self.kernel.log))
        self._read(is_complete=True)
        self._read(is_complete=True)
        self._report(closing=True)

    def _check(self, found: Iterable[Attempt | FanOut | IncidentEnd]) -> None:
        for each in found:
            if isinstance(each, Attempt):
                self._check_attempt(each)
        self._commit()

    def _check_attempt(self, attempt: Attempt) -> None:
        record = attempt.record
        assert attempt.packets >= 1
        assert attempt.start_ns <= attempt.end_ns
        if attempt.aggregation is not None:
            assert attempt.aggregation.reason == "evicted"
            self.evicted += attempt.packets
            return
        number = _flow_of(record)
        if record.origin.transport == "counters":
            self.flows[number].check_counted(attempt)
        else:
            of, packet = self.numbers[record.origin.identity]
            assert of == number
            self.flows[number].check_recorded(attempt, packet)

    def _commit(self) -> None:
        self.database.put(changes(self.account))

    def _drop_late_records(self) -> None:
        """Drop records of packets that are older than 55 s and older than the latest reading."""
        late_ms = min(self.kernel.now_ms - 55 * SECOND_MS, self.read_ms)
        while self.kernel.log:
            flow, packet = self.numbers[self.kernel.log[0].origin.identity]
            if self.flows[flow].packets[packet].at_ms >= late_ms:
                return
            self.kernel.log.popleft()


def _flow_of(record: Record) -> int:
    (number,) = (
        number
        for number, each in enumerate(FLOWS)
        if (each.uid, each.protocol, each.destination, each.port, each.ethertype)
        == (
            record.uid,
            record.protocol,
            record.destination,
            record.destination_port,
            record.ethertype,
        )
    )
    assert record.rule == RULE
    return number


def test_record_that_is_read_after_its_element_expired_counts_once() -> None:
    """The process did not run for 11 minutes between a packet and the next reading."""
    machine = OverTime()
    try:
        machine.begin()
        machine.resume_flows_after_a_gap(milliseconds=1, traffic=[(0, 1, False), (0, 1, False)])
        machine.send([(0, 1, True)])
        machine.pass_time(11 * MINUTE_MS)
        machine.send([(0, 1, False)])
        machine.settle()
        assert (machine.flows[0].counted, machine.evicted) == (3, 1)
    finally:
        machine.teardown()


def test_record_from_before_a_change_of_the_clock_belongs_to_its_own_packet() -> None:
    machine = OverTime()
    try:
        machine.begin()
        machine.send([(0, 2, True)])
        machine.set_clock(-SECOND_MS)
        machine.settle()
        machine.read([(0, 1, False)], SECOND_MS)
        machine.report()
        machine.settle()
        assert machine.flows[0].counted == 3
    finally:
        machine.teardown()


TestOverTime = OverTime.TestCase
TestOverTime.settings = settings(stateful_step_count=30, report_multiple_bugs=False)


def test_record_of_a_packet_that_no_reading_shows_stands_for_an_earlier_one() -> None:
    run = OverTime()
    run.begin()
    run.restart(is_killed=False, milliseconds=1, traffic=[(2, 1, False)])
    run.send(traffic=[(2, 1, True)])
    run.deliver(number=1)
    run.resume_flows_after_a_gap(milliseconds=660_000, traffic=[])
    run.settle()
    run.teardown()
