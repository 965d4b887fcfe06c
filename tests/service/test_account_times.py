"""Times of an account's readings."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.record import Batch
from ocsf_nft.service import account_loop, gap_reports, reading_schedule
from ocsf_nft.service.reading_schedule import IDLE_SECONDS
from tests.conformance.corpus import as_allowed
from tests.flows.reading import NOW, SECOND, key, reading, record, tcp
from tests.service import keeping
from tests.service.keeping import MemoryStore
from tests.service.test_account_loop import Given

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ocsf_nft.attempt import Attempt, FanOut, IncidentEnd
    from ocsf_nft.flow import Reading


@dataclass
class Counters:
    """Counters of one flow; a reading takes some seconds of the clock of the test."""

    packets: int = 1
    at_ns: int = NOW
    readings: int = 0
    took: float = 0.0
    now: float = 1000.0
    closed: int = 0

    def open(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1

    def read(self, _settled: frozenset[str]) -> Reading:
        self.readings += 1
        self.now += self.took
        return reading({key(tcp()): self.packets}, self.at_ns)

    def monotonic(self) -> float:
        return self.now

    def monotonic_ns(self) -> int:
        return round(self.now * SECOND)

    def time_ns(self) -> int:
        return self.at_ns


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Counters:
    """Return counters whose clock the account uses."""
    made = Counters()
    for module in (account_loop, gap_reports, reading_schedule):
        monkeypatch.setattr(module, "time", made)
    return made


async def test_slow_counters_are_read_less_often(tmp_path: Path, counters: Counters) -> None:
    async with keeping.running_account(counters, tmp_path, MemoryStore()) as account:
        for took, pause in ((0.01, 0.5), (0.05, 0.5), (0.06, 0.6), (0.2, 2.0), (0.3, 2.0), (2, 20)):
            counters.took = took
            await account._observe()
            assert round(account.schedule.early_seconds, 6) == pause


async def test_counters_of_an_idle_sandbox_are_read_less_and_less_often(
    tmp_path: Path, counters: Counters
) -> None:
    async with keeping.running_account(counters, tmp_path, MemoryStore()) as account:
        await account._read_and_report()
        assert account.schedule.wait_seconds == 1, "the flow is not over"
        counters.now += 61
        pauses = []
        for _ in range(9):
            await account._read_and_report()
            pauses.append(account.schedule.wait_seconds)
        assert pauses == [2, 4, 8, 16, 30, 30, 30, 30, 30]
        assert counters.closed == 8
        assert account.schedule.late_seconds == 0
        counters.now += 37
        assert account.schedule.late_seconds == 7
        await account.take(Batch(records=(record(tcp(81)),)))
        await asyncio.wait_for(account._wait(), 5)


async def test_delayed_reading_is_reported_and_a_planned_pause_is_not(
    tmp_path: Path, counters: Counters
) -> None:
    sink = MemoryStore()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        for is_active, late, reported in ((False, 4.9, 0), (False, 5.0, 1), (True, 5.0, 2)):
            for _ in range(7):  # from the shortest pause to the longest
                account.schedule.plan(is_active=is_active)
            pause = account.schedule.wait_seconds
            assert pause == (1 if is_active else IDLE_SECONDS)
            counters.now += pause + late
            counters.at_ns += round((pause + late) * SECOND)
            counters.packets += 1
            await account._observe()
            assert len(sink.of_class(6002)) == reported


async def test_records_of_the_other_mode_cause_at_most_two_readings_a_second(
    tmp_path: Path, counters: Counters
) -> None:
    async with keeping.running_account(counters, tmp_path, MemoryStore()) as account:
        await account.take(Batch(records=(as_allowed(record(tcp())),)))
        for number, (later, readings) in enumerate(((0.499, 0), (0.001, 1), (0.499, 0))):
            before = counters.readings
            counters.now += later
            await account.take(Batch(records=(as_allowed(record(tcp(), number)),)))
            assert counters.readings - before == readings


async def test_position_stays_if_a_batch_has_none(tmp_path: Path) -> None:
    async with keeping.running_account(Counters(), tmp_path, MemoryStore()) as account:
        one = Batch(records=(record(tcp()),), cursor="7")
        await account.take(one)
        await account.take(replace(one, cursor=None))
        assert account.position == "7"
    async with keeping.running_account(Counters(), tmp_path, MemoryStore()) as account:
        assert account.position == "7"


async def test_other_tasks_run_while_packets_of_removed_counters_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters, sink, turns = Given(), MemoryStore(), 0
    seen: list[int] = []
    flows = [key(tcp(port)) for port in range(1, 1001)]

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with keeping.running_account(counters, tmp_path, sink) as account:
        counters.counts = dict.fromkeys(flows, 1)
        await account._observe()
        await account._report_due()
        counters.counts = dict.fromkeys(flows, 3)
        await account._observe()
        due_of_ended = account._account.due_of_ended

        def noted(now_ns: int) -> Iterator[Attempt | FanOut | IncidentEnd]:
            for each in due_of_ended(now_ns):
                seen.append(turns)
                yield each

        monkeypatch.setattr(account._account, "due_of_ended", noted)
        monkeypatch.setattr(counters, "read", lambda _: reading({}, counters.at_ns, epoch="boot:2"))
        other = asyncio.create_task(take_turns())
        await account._observe()
        other.cancel()
    assert len(seen) > 1000
    assert len(set(seen)) > 3
    assert sum(event["count"] for event in sink.of_class(4001)) == 3000


async def test_cancelled_close_reports_what_it_has_begun_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release has a time limit, and may be repeated after it."""
    counters, sink = Given(), MemoryStore()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        counters.counts = {key(tcp(port)): 3 for port in range(1, 601)}
        rendering, lines = asyncio.Event(), account._reporter.lines

        async def slow_lines(found: Sequence[Attempt | FanOut | IncidentEnd]) -> list[bytes]:
            rendering.set()
            await asyncio.sleep(0.05)
            return await lines(found)

        monkeypatch.setattr(account._reporter, "lines", slow_lines)
        closing = asyncio.create_task(account.close())
        await rendering.wait()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        (balance,) = await account.close()
    assert (balance.reported, balance.pending, balance.counter_mismatch) == (1800, 0, 0)
    assert sum(event["count"] for event in sink.of_class(4001)) == 1800
