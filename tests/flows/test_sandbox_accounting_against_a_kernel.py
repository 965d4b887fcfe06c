"""State machine test of an account against a model of the kernel: all packets are reported once."""

from __future__ import annotations

import sqlite3
import tempfile
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ocsf_nft.attempt import Attempt, IncidentEnd
from ocsf_nft.flows import scans
from ocsf_nft.flows.sandbox_account import SandboxAccount
from tests.flows.kernel_model import START_NS, Kernel, Packet, stamped
from tests.flows.reading import changes, on_demand
from tests.flows.stored import FILE, AccountFile

#: Packets that make an incident a finding in this test.
FINDING = 3

if TYPE_CHECKING:
    from ocsf_nft.attempt import FanOut, Incident
    from ocsf_nft.flow import Key, Reading
    from ocsf_nft.record import Record

UIDS = st.sampled_from([None, 0, 1000])
PACKETS = st.one_of(
    st.builds(
        Packet,
        uid=UIDS,
        protocol=st.sampled_from([6, 17]),
        destination=st.sampled_from(["192.0.2.1", "192.0.2.2", "169.254.169.254", "2001:db8::1"]),
        port=st.sampled_from([None, 80, 443]),
        bytes=st.integers(40, 1500),
    ),
    st.builds(
        Packet,
        uid=UIDS,
        protocol=st.sampled_from([1, 47]),
        destination=st.sampled_from(["192.0.2.1", "2001:db8::1"]),
        port=st.none(),
    ),
    st.builds(
        Packet,
        uid=UIDS,
        protocol=st.none(),
        destination=st.none(),
        port=st.none(),
        ethertype=st.sampled_from([0x0806, 0x88CC, 0x0800]),
    ),
)
TRAFFIC = st.lists(st.tuples(PACKETS, st.booleans()), max_size=6)
SHORT_MS = st.sampled_from([1, 100, 600, 2_000, 11_000, 70_000])


class Reported(RuleBasedStateMachine):
    """Traffic, readings, records that come late or never, restarts and new counters."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        # Few flows make a fan-out here, because the test has few.
        self.few = mock.patch.object(scans, "FLOWS", 3)
        self.few.start()
        self.kernel = Kernel()
        self.database = AccountFile(Path(self.folder.name) / FILE).opened()
        self.account = self._new_account()
        self.has_reading = False
        self.read_ns = START_NS
        self.reported = 0
        self.refused_earlier = 0
        self.identities: set[str] = set()
        self.ends: dict[tuple[object, ...], int] = defaultdict(int)
        self.left_out: set[Key] = set()
        self.sent: set[tuple[object, ...]] = set()
        #: Open incidents by identity, as last reported; and ended ones.
        self.open: dict[str, tuple[Incident, int]] = {}
        self.ended: set[str] = set()
        self.fan_outs: dict[str, FanOut] = {}

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()
        self.few.stop()

    @initialize()
    def begin(self) -> None:
        self._observe(self.kernel.read())

    @rule(traffic=TRAFFIC)
    def send(self, traffic: list[tuple[Packet, bool]]) -> None:
        for packet, is_logged in traffic:
            self._send(packet, is_logged=is_logged)

    @rule(number=st.integers(1, 6), are_stamped=st.booleans())
    def deliver(self, number: int, are_stamped: bool) -> None:
        for _ in range(min(number, len(self.kernel.log))):
            record = self.kernel.log.popleft()
            self._deliver(record if are_stamped else stamped(record, self.kernel.now_ns))

    @precondition(lambda self: self.kernel.log)
    @rule(number=st.integers(1, 6))
    def drop(self, number: int) -> None:
        for _ in range(min(number, len(self.kernel.log))):
            self.kernel.log.popleft()

    @rule(traffic=TRAFFIC, has_duplicates=st.booleans(), data=st.data())
    def read(
        self, traffic: list[tuple[Packet, bool]], has_duplicates: bool, data: st.DataObject
    ) -> None:
        # No element is omitted by two successive readings.
        present_keys = [key for key in self.kernel.present_keys() if key not in self.left_out]
        left_out = (
            set(data.draw(st.lists(st.sampled_from(present_keys), max_size=2)))
            if present_keys
            else set()
        )
        queue = list(traffic)

        def between() -> None:
            if queue:
                packet, is_logged = queue.pop()
                self._send(packet, is_logged=is_logged)

        reading = self.kernel.read(between, left_out, has_duplicates=has_duplicates)
        self.left_out = left_out
        self._observe(reading)

    @rule()
    def aggregate_overflow(self) -> None:
        for _ in self.account.aggregate_overflow(self.kernel.now_ns):
            pass

    @rule()
    def report(self) -> None:
        self._process(list(self.account.due(self.kernel.now_ns)))

    @rule(milliseconds=SHORT_MS)
    def wait(self, milliseconds: int) -> None:
        self.kernel.now_ms += milliseconds
        self._drop_late_records()

    @rule()
    def wait_until_all_elements_expire(self) -> None:
        self.kernel.now_ms += 660_000
        self._drop_late_records()

    @rule()
    def wait_until_some_elements_expire_before_a_reading(self) -> None:
        """Wait as with a job that runs every ten minutes.

        Its element expires and is created again at once.
        """
        self.kernel.log.clear()
        self.kernel.now_ms += 599_000
        self._observe(self.kernel.read())
        self.left_out = set()
        self._process(list(self.account.due(self.kernel.now_ns)))
        self.kernel.now_ms += 1_001

    @rule()
    def restart(self) -> None:
        # The kernel stores no records for a service that does not run.
        self.kernel.log.clear()
        self.database.close()
        self.database.open()
        self.account = self._new_account()
        self.has_reading = False
        self.database.load(self.account)

    @rule(number=st.integers(1, 4))
    def kill_during_a_report(self, number: int) -> None:
        self._process(list(islice(self.account.due(self.kernel.now_ns), number)))
        self.restart()

    @rule(is_killed=st.booleans())
    def replace_the_counters_of_continuing_flows(self, is_killed: bool) -> None:
        # An event may have reported a packet that no reading has shown yet.
        if self.kernel.log or self.reported != self._refused():
            self._settle()
        self.kernel.renew_counters()
        self.refused_earlier = self.reported
        self._observe(self.kernel.read())
        if is_killed:
            self.restart()

    @rule()
    def replace_the_counters(self) -> None:
        # Packets refused between the last reading and the end of the counters stay unknown. So do
        # the counters of a record that comes meanwhile.
        self._settle()
        self.kernel.renew_counters()
        self.refused_earlier = self.reported
        self._observe(self.kernel.read())

    @rule()
    def close(self) -> None:
        self._settle()
        self._deliver_nothing_more()
        assert self.reported == self._refused()
        (balance,) = self.account.balances()
        assert balance.refused == self.kernel.refused.packets
        assert balance.pending == 0
        assert balance.counter_mismatch == 0

    @invariant()
    def reported_packets_never_exceed_refused_ones(self) -> None:
        assert self.reported <= self._refused()

    @invariant()
    def counters_and_events_agree_at_any_time(self) -> None:
        if self.has_reading:  # a service reads the counters before it shows them
            assert [each.counter_mismatch for each in self.account.balances()] == [0]

    def _deliver_nothing_more(self) -> None:
        assert list(self.account.due(self.kernel.now_ns, closing=True)) == []
        assert self.open == {}
        assert {each.stage for each in self.fan_outs.values()} <= {"ended"}
        with sqlite3.connect(self.database.path) as connection:
            assert connection.execute(
                "SELECT count(*) FROM part WHERE kind = 'open'"
            ).fetchone() == (0,)
        connection.close()

    def _settle(self) -> None:
        """Process all records and then two readings, as at the end of a run."""
        while self.kernel.log:
            self._deliver(self.kernel.log.popleft())
        for _ in range(2):
            self._observe(self.kernel.read(), is_complete=True)
        self.left_out = set()
        self._process(list(self.account.due(self.kernel.now_ns, closing=True)))

    def _send(self, packet: Packet, *, is_logged: bool) -> None:
        self.kernel.refuse(packet, is_logged=is_logged)
        self.sent.add((packet.uid, packet.protocol, packet.destination, packet.port))

    def _deliver(self, record: Record) -> None:
        attempt = self.account.record(record, self.kernel.now_ns)
        self._process([] if attempt is None else [attempt])

    def _observe(self, reading: Reading, *, is_complete: bool = False) -> None:
        found = reading if is_complete else on_demand(self.account, reading)
        for _ in self.account.observe(found):
            pass
        if found.explained:  # the flows were not read
            return
        # In one transaction, as a service does it.
        self._process(list(self.account.due_of_ended(self.kernel.now_ns)))
        self.has_reading = True
        self.read_ns = reading.ended_ns
        self._drop_late_records()

    def _drop_late_records(self) -> None:
        """Drop records that come a minute or more after their packet, and after a reading."""
        late_ns = min(self.kernel.now_ns - 55 * 10**9, self.read_ns)
        while self.kernel.log and self.kernel.log[0].time_ns < late_ns:
            self.kernel.log.popleft()

    def _process(self, found: list[Attempt | FanOut | IncidentEnd]) -> None:
        for each in found:
            if isinstance(each, Attempt):
                self._check(each)
                self._check_incident(each)
            elif isinstance(each, IncidentEnd):
                assert (each.incident, each.end_ns) == self.open.pop(each.incident.identity)
                self.ended.add(each.incident.identity)
            else:
                self._check_fan_out(each)
        self._commit("event")

    def _check(self, attempt: Attempt) -> None:
        record = attempt.record
        assert attempt.packets >= 1
        assert attempt.start_ns <= attempt.end_ns
        assert record.origin.identity not in self.identities
        self.identities.add(record.origin.identity)
        self.reported += attempt.packets
        if attempt.aggregation is not None or record.destination is None:
            return
        flow = (record.uid, record.protocol, record.destination, record.destination_port)
        # A packet without port in its key may have found no slot for its key with port.
        assert flow in self.sent or any(
            flow[:3] == sent[:3] and flow[3] in {None, 0} for sent in self.sent
        )
        if record.origin.transport == "counters":
            assert attempt.start_ns >= self.ends[flow]
            self.ends[flow] = attempt.end_ns

    def _check_incident(self, attempt: Attempt) -> None:
        incident = attempt.incident
        assert (incident is None) is (attempt.aggregation is not None)
        if incident is None:
            return
        assert incident.identity not in self.ended
        before, _ = self.open.get(incident.identity, (None, 0))
        latest = () if before is None else before.latest
        assert incident.windows == 1 + (0 if before is None else before.windows)
        packets_before = 0 if before is None else before.packets
        assert packets_before + attempt.packets == incident.packets
        found_at = None if before is None else before.found_at
        if found_at is None and incident.packets >= FINDING:
            found_at = incident.windows
        assert incident.found_at == found_at
        assert incident.latest == (*latest, attempt.record.origin.identity)[-10:]
        assert incident.start_ns <= attempt.start_ns
        assert before is None or incident.start_ns <= before.start_ns
        self.open[incident.identity] = (incident, attempt.end_ns)

    def _check_fan_out(self, found: FanOut) -> None:
        before = self.fan_outs.get(found.identity)
        assert (found.stage == "begun") is (before is None)
        if before is not None:
            assert before.stage != "ended"
            numbers = zip(_numbers(before), _numbers(found), strict=True)
            assert all(earlier <= later for earlier, later in numbers)
            assert before.sample == found.sample[: len(before.sample)]
        self.fan_outs[found.identity] = found

    def _commit(self, *events: str) -> None:
        self.database.put(changes(self.account), events)

    def _refused(self) -> int:
        return self.refused_earlier + self.kernel.refused.packets

    def _new_account(self) -> SandboxAccount:
        return SandboxAccount(
            "sb",
            begun_ns=START_NS,
            preferred=frozenset({"169.254.169.254"}),
            is_finding=lambda _, packets, __: packets >= FINDING,
        )


def _numbers(found: FanOut) -> tuple[int, ...]:
    return found.flows, found.destinations, found.ports, found.packets


TestReported = Reported.TestCase
TestReported.settings = settings(stateful_step_count=40, report_multiple_bugs=False)
