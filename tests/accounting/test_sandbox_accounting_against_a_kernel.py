"""Whatever the kernel refuses is told once: a ledger driven against a model of the kernel."""

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

from ocsf_nft.accounting import scan_detection, state_db
from ocsf_nft.accounting.priority import Priority
from ocsf_nft.accounting.sandbox_accounting import SandboxAccount
from ocsf_nft.attempt import Attempt, IncidentEnd
from tests.accounting.kernel_model import RULE, START_NS, Kernel, Packet, stamped
from tests.accounting.reading import changes

#: Packets that make a streak a finding here.
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
        # Few flows make a fan-out: there are not many.
        self.few = mock.patch.object(scan_detection, "FLOWS", 3)
        self.few.start()
        self.kernel = Kernel()
        self.database = state_db.StateDatabase(Path(self.folder.name) / state_db.FILE).open()
        self.account = self._new_account()
        self.read_ns = START_NS
        self.told = 0
        self.refused_earlier = 0
        self.identities: set[str] = set()
        self.ends: dict[tuple[object, ...], int] = defaultdict(int)
        self.left_out: set[Key] = set()
        self.sent: set[tuple[object, ...]] = set()
        #: What is open, as it was last told, by identity; and what was.
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

    @rule(traffic=TRAFFIC, is_told_twice=st.booleans(), data=st.data())
    def read(
        self, traffic: list[tuple[Packet, bool]], is_told_twice: bool, data: st.DataObject
    ) -> None:
        # No element is left out by two readings in a row.
        there = [key for key in self.kernel.there() if key not in self.left_out]
        left_out = set(data.draw(st.lists(st.sampled_from(there), max_size=2))) if there else set()
        queue = list(traffic)

        def between() -> None:
            if queue:
                packet, is_logged = queue.pop()
                self._send(packet, is_logged=is_logged)

        reading = self.kernel.read(between, left_out, is_told_twice=is_told_twice)
        self.left_out = left_out
        self._observe(reading)

    @rule()
    def aggregate_overflow(self) -> None:
        for _ in self.account.aggregate_overflow(self.kernel.now_ns):
            pass

    @rule()
    def tell(self) -> None:
        self._tell(list(self.account.due(self.kernel.now_ns)))

    @rule(milliseconds=SHORT_MS)
    def wait(self, milliseconds: int) -> None:
        self.kernel.now_ms += milliseconds
        self._drop_late_records()

    @rule()
    def wait_until_all_is_forgotten(self) -> None:
        self.kernel.now_ms += 660_000
        self._drop_late_records()

    @rule()
    def wait_until_some_are_forgotten_and_read(self) -> None:
        """As a job that comes every ten minutes: an element goes, and is made anew at once."""
        self.kernel.log.clear()
        self.kernel.now_ms += 599_000
        self._observe(self.kernel.read())
        self.left_out = set()
        self._tell(list(self.account.due(self.kernel.now_ns)))
        self.kernel.now_ms += 1_001

    @rule()
    def restart(self) -> None:
        # The kernel keeps no records for whoever is gone.
        self.kernel.log.clear()
        self.database.close()
        self.database.open()
        self.account = self._new_account()
        self.database.load(self.account)

    @rule(number=st.integers(1, 4))
    def be_killed_while_telling(self, number: int) -> None:
        self._tell(list(islice(self.account.due(self.kernel.now_ns), number)))
        self.restart()

    @rule(is_killed=st.booleans())
    def replace_the_counters_of_what_goes_on(self, is_killed: bool) -> None:
        is_all_read = not self.kernel.log and not self.account.rules[RULE]._unread
        if not is_all_read or self.told != self._refused():
            self._settle()
        self.kernel.begin_anew()
        self.refused_earlier = self.told
        self._observe(self.kernel.read())
        if is_killed:
            self.restart()

    @rule()
    def replace_the_counters(self) -> None:
        # What is refused between the last reading and the end of the counters nobody can know,
        # nor of which counters a record is that comes meanwhile.
        self._settle()
        self.kernel.begin_anew()
        self.refused_earlier = self.told
        self._observe(self.kernel.read())

    @rule()
    def close(self) -> None:
        self._settle()
        self._deliver_nothing_more()
        assert self.told == self._refused()
        (balance,) = self.account.balances()
        assert balance.refused == self.kernel.refused.packets
        assert balance.in_flight == 0
        assert balance.imbalance == 0

    @invariant()
    def never_more_is_told_than_was_refused(self) -> None:
        assert self.told <= self._refused()

    def _deliver_nothing_more(self) -> None:
        assert list(self.account.due(self.kernel.now_ns, closing=True)) == []
        assert self.open == {}
        assert {each.stage for each in self.fan_outs.values()} <= {"ended"}
        with sqlite3.connect(self.database.path) as connection:
            assert connection.execute("SELECT count(*) FROM opened").fetchone() == (0,)
        connection.close()

    def _settle(self) -> None:
        """All records come in, then two readings, as when a run ends."""
        while self.kernel.log:
            self._deliver(self.kernel.log.popleft())
        for _ in range(2):
            self._observe(self.kernel.read())
        self.left_out = set()
        self._tell(list(self.account.due(self.kernel.now_ns, closing=True)))

    def _send(self, packet: Packet, *, is_logged: bool) -> None:
        self.kernel.refuse(packet, is_logged=is_logged)
        self.sent.add((packet.uid, packet.protocol, packet.destination, packet.port))

    def _deliver(self, record: Record) -> None:
        attempt = self.account.record(record, self.kernel.now_ns)
        self._tell([] if attempt is None else [attempt])

    def _observe(self, reading: Reading) -> None:
        for _ in self.account.observe(reading):
            pass
        self._keep(b"")
        self.read_ns = reading.ended_ns
        self._drop_late_records()

    def _drop_late_records(self) -> None:
        """A record is lost that comes a minute after its packet, or later, and after a reading."""
        late_ns = min(self.kernel.now_ns - 55 * 10**9, self.read_ns)
        while self.kernel.log and self.kernel.log[0].time_ns < late_ns:
            self.kernel.log.popleft()

    def _tell(self, found: list[Attempt | FanOut | IncidentEnd]) -> None:
        for each in found:
            if isinstance(each, Attempt):
                self._check(each)
                self._check_streak(each)
            elif isinstance(each, IncidentEnd):
                assert (each.streak, each.end_ns) == self.open.pop(each.streak.identity)
                self.ended.add(each.streak.identity)
            else:
                self._check_fan_out(each)
        self._keep(b"told")

    def _check(self, attempt: Attempt) -> None:
        record = attempt.record
        assert attempt.packets >= 1
        assert attempt.start_ns <= attempt.end_ns
        assert record.origin.identity not in self.identities
        self.identities.add(record.origin.identity)
        self.told += attempt.packets
        if attempt.aggregation is not None or record.destination is None:
            return
        flow = (record.uid, record.protocol, record.destination, record.destination_port)
        # What has no port in its key may have found no place with it.
        assert flow in self.sent or any(
            flow[:3] == sent[:3] and flow[3] in {None, 0} for sent in self.sent
        )
        if record.origin.transport == "counters":
            assert attempt.start_ns >= self.ends[flow]
            self.ends[flow] = attempt.end_ns

    def _check_streak(self, attempt: Attempt) -> None:
        incident = attempt.streak
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

    def _keep(self, event: bytes) -> None:
        self.database.commit(changes(self.account), [event])

    def _refused(self) -> int:
        return self.refused_earlier + self.kernel.refused.packets

    def _new_account(self) -> SandboxAccount:
        return SandboxAccount(
            "sb",
            begun_ns=START_NS,
            priority=Priority(
                destinations=frozenset({"169.254.169.254"}),
                is_finding=lambda _, packets: packets >= FINDING,
            ),
        )


def _numbers(found: FanOut) -> tuple[int, ...]:
    return found.flows, found.destinations, found.ports, found.packets


TestReported = Reported.TestCase
TestReported.settings = settings(stateful_step_count=40, report_multiple_bugs=False)
