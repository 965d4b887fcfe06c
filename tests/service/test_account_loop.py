from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.attribution.fallback_chain import FallbackChain
from ocsf_nft.errors import DeliveryError, FenceError
from ocsf_nft.process import Process
from ocsf_nft.record import Batch
from ocsf_nft.service import account_loop
from ocsf_nft.service.reading_schedule import ReadingSchedule
from ocsf_nft.state.change import Account, DroppedRecords
from ocsf_nft.state.state_db import FILE
from tests.conformance.attributed import done_by
from tests.conformance.corpus import as_allowed
from tests.flows.kernel_model import keys
from tests.flows.reading import NOW, SECOND, key, reading, record, tcp
from tests.service import keeping
from tests.service.keeping import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ocsf_nft.attribution.socket_lookups import AttachedNamespace
    from ocsf_nft.flow import Key, Reading
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Record


@dataclass
class Given:
    """Counters with given values; each reading is half a second later than the one before."""

    counts: dict[Key, int] = field(default_factory=dict)
    at_ns: int = NOW
    error: FenceError | None = None
    closed: bool = False
    closing_threads: set[threading.Thread] = field(default_factory=set)

    def open(self) -> None:
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed = True
        self.closing_threads.add(threading.current_thread())

    def read(self, _settled: frozenset[str] = frozenset()) -> Reading:
        if self.error is not None:
            raise self.error
        self.at_ns += SECOND // 2
        return replace(reading(self.counts, self.at_ns), began_ns=self.at_ns - 1)


def batch(*records: Record) -> Batch:
    return Batch(records=records, since_ns=NOW)


async def test_record_is_reported_at_once_and_its_flow_completely(tmp_path: Path) -> None:
    counters, sink = Given(), MemoryStore()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        await account.take(batch(record(tcp())))
        assert [event["count"] for event in sink.of_class(4001)] == [1]
        counters.counts = {key(tcp()): 9}
        (balance,) = await account.close()
    assert sum(event["count"] for event in sink.of_class(4001)) == balance.refused == 9
    assert (balance.pending, balance.counter_mismatch) == (0, 0)


async def test_record_is_reported_although_its_source_is_cancelled(tmp_path: Path) -> None:
    """The sandbox's source ends, and the service goes on with the others."""
    counters, sink = Given({key(tcp()): 1}), MemoryStore(seconds=0.05)
    async with keeping.running_account(counters, tmp_path, sink) as account:
        sink.tried.clear()
        taking = asyncio.create_task(account.take(batch(record(tcp()))))
        while not sink.tried:  # noqa: ASYNC110 - its events are being stored
            await asyncio.sleep(0)
        taking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await taking
        (balance,) = await account.close()
    assert [event["count"] for event in sink.of_class(4001)] == [1]
    assert (balance.reported, balance.pending, balance.counter_mismatch) == (1, 0, 0)


async def test_packet_whose_event_was_not_stored_is_reported_after_a_restart(
    tmp_path: Path,
) -> None:
    counters, sink, failing = Given(), MemoryStore(), MemoryStore(fails=True)
    with pytest.raises(DeliveryError, match="the disk is full"):
        async with keeping.running_account(counters, tmp_path, failing) as account:
            await account.take(batch(record(tcp())))
    assert failing.tried
    counters.counts = {key(tcp()): 1}
    for _ in range(2):
        async with keeping.running_account(counters, tmp_path, sink) as account:
            (balance,) = await account.close()
    assert [event["count"] for event in sink.of_class(4001)] == [1]
    assert (balance.reported, balance.counter_mismatch) == (1, 0)


async def test_stored_account_does_not_stay_in_memory_twice(tmp_path: Path) -> None:
    """It is megabytes for each sandbox."""
    counters = Given({key(tcp()): 1})
    for _ in range(2):
        async with keeping.running_account(counters, tmp_path, MemoryStore()) as account:
            assert account._stored.account == Account()
            (balance,) = await account.close()
    assert balance.reported == 1


async def test_reading_waits_until_few_others_are_in_memory(tmp_path: Path) -> None:
    counters, slots = Given({key(tcp()): 1}), asyncio.Semaphore(1)
    async with keeping.running_account(counters, tmp_path, MemoryStore(), slots=slots) as account:
        for read in (account.refresh(), account.close()):
            account.schedule._read_at = 0.0  # the last reading is old
            before_ns = counters.at_ns
            async with slots:  # another account's reading
                reading_now = asyncio.ensure_future(read)
                await asyncio.sleep(0.1)
                assert counters.at_ns == before_ns
            await reading_now
            assert counters.at_ns > before_ns


async def test_account_that_cannot_be_opened_closes_its_counters(tmp_path: Path) -> None:
    counters = Given(error=FenceError("no counters"))
    with pytest.raises(FenceError):
        async with keeping.running_account(counters, tmp_path, MemoryStore()):
            pass
    async with asyncio.timeout(60):
        while not counters.closed:  # noqa: ASYNC110 - a thread closes them
            await asyncio.sleep(0.001)


async def test_counters_are_closed_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel delays it until a transaction of nftables in the sandbox has ended."""
    counters = Given()
    async with keeping.running_account(counters, tmp_path, MemoryStore()) as account:
        monkeypatch.setattr(ReadingSchedule, "is_idle", True)
        await account._report_and_plan()
        assert len(counters.closing_threads) == 1
    assert threading.current_thread() not in counters.closing_threads


@pytest.mark.parametrize("is_there", [False, True])
async def test_lost_account_is_reported_as_dropped_records(tmp_path: Path, is_there: bool) -> None:
    counters = Given({key(tcp()): 1})
    async with keeping.running_account(counters, tmp_path, MemoryStore()) as account:
        await account.close()
    (tmp_path / FILE).unlink()
    if is_there:
        (tmp_path / FILE).write_bytes(b"no database" * 1000)
    sink = MemoryStore()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        await account.close()
    (gap,) = sink.of_class(6002)
    assert f"{tmp_path / FILE} is not the database" in gap["status_detail"]
    assert sum(event["count"] for event in sink.of_class(4001)) == 1
    sink = MemoryStore()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        await account.close()
    assert sink.events == []


async def test_pause_is_reported_with_its_refused_packets(tmp_path: Path) -> None:
    counters, sink = Given({key(tcp()): 1}), MemoryStore()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        await account.close()
    assert not sink.of_class(6002)
    counters.at_ns += 60 * SECOND
    counters.counts = {key(tcp()): 8}
    async with keeping.running_account(counters, tmp_path, sink) as account:
        (pause,) = sink.of_class(6002)
        assert pause["count"] == 7
        await account.close()
    assert sum(event["count"] for event in sink.of_class(4001)) == 8


async def test_pause_is_reported_although_the_counter_was_reset(tmp_path: Path) -> None:
    counters, sink = Given({key(tcp()): 9}), MemoryStore()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        await account.close()
    counters.at_ns += 60 * SECOND
    counters.counts = {key(tcp()): 2}
    async with keeping.running_account(counters, tmp_path, sink):
        (pause,) = sink.of_class(6002)
        assert pause["count"] == 0


async def test_records_are_reported_while_the_counters_can_not_be_read(tmp_path: Path) -> None:
    counters, sink = Given(), MemoryStore()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        counters.error = FenceError("no table")
        await account._observe()
        await account._observe()
        assert len(sink.of_class(6002)) == 1
        await account.take(batch(record(tcp())))
        assert len(sink.of_class(4001)) == 1
        counters.error = None
        await account._observe()
        counters.error = FenceError("no table")
        await account._observe()
        assert len(sink.of_class(6002)) == 2
        assert account._store.database.dropped_records("sb") == (DroppedRecords("counters", 2, 0),)


async def test_record_whose_packet_another_counter_has_at_the_end_is_reported_once(
    tmp_path: Path,
) -> None:
    counters, sink = Given(), MemoryStore()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        await account.take(batch(record(tcp())))
        counters.counts = {keys(record(tcp()))[-1]: 1}
        (balance,) = await account.close()
    assert [event["count"] for event in sink.of_class(4001)] == [1]
    assert (balance.reported, balance.pending, balance.counter_mismatch) == (1, 0, 0)


async def test_records_wait_while_a_long_reading_is_processed(
    tmp_path: Path,
) -> None:
    counters, sink = Given(), MemoryStore()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        counters.counts = {key(tcp(port)): 1 for port in range(1, 8001)}
        reading_on = asyncio.ensure_future(account._observe())
        number = 0
        while not reading_on.done():
            number += 1
            await account.take(batch(record(tcp(uid=number), number)))
        await reading_on
        await account.close()
    assert sum(event["count"] for event in sink.of_class(4001)) >= 8000


async def test_started_report_is_completed_after_a_cancellation(tmp_path: Path) -> None:
    """Stored events must be delivered, even if the task is cancelled."""
    counters, sink = Given(), MemoryStore()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        counters.counts = {key(tcp(port)): 1 for port in range(1, 600)}
        storing = asyncio.ensure_future(account.run())
        await sink.wait_for_class(4001)
        storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
        await account.close()
    assert sum(event["count"] for event in sink.of_class(4001)) == 599


async def test_metadata_service_is_reported_separately_during_a_flood(
    tmp_path: Path,
) -> None:
    metadata = "169.254.169.254"
    counters, sink = Given(), MemoryStore()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        counters.counts = {key(tcp(port)): 1 for port in range(1, 1501)}
        counters.counts |= {key(tcp(port, metadata)): 1 for port in range(2000, 2010)}
        await account.close()
    addresses = [event.get("dst_endpoint", {}).get("ip") for event in sink.of_class(4001)]
    assert addresses.count(metadata) == 10


async def test_record_just_after_a_reading_describes_its_packets(
    tmp_path: Path,
) -> None:
    counters, sink = Given(), MemoryStore()

    async def record_after_reading() -> None:
        await asyncio.sleep(0.03)
        await account.take(batch(record(tcp(), at_ns=NOW + SECOND)))

    async with keeping.running_account(counters, tmp_path, sink) as account:
        counters.counts = {key(tcp()): 1}
        await asyncio.gather(account._read_and_report(), record_after_reading())
        await account.close()
    (event,) = sink.of_class(4001)
    assert event["metadata"]["log_format"] != "nf_tables"


def _findings(sink: MemoryStore) -> list[tuple[str, str, int]]:
    """Return the events of findings: stage (New, Active, Inactive), finding and packets."""
    return [
        (
            event["status_detail"].split(":")[0].split()[0],
            event["finding_info"]["uid"],
            event["count"],
        )
        for event in sink.of_class(2004)
    ]


async def test_open_finding_of_a_killed_run_continues_and_ends_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tcp(80, "169.254.169.254")  # a finding from its first packet on
    counters, sink = Given({key(metadata): 2}), MemoryStore()
    async with keeping.opened_store(tmp_path) as store, contextlib.AsyncExitStack() as killed:
        running = functools.partial(keeping.running_account, counters, tmp_path, sink, store=store)
        account = await killed.enter_async_context(running())
        await account._report_due()
        ((created, finding, packets),) = _findings(sink)
        assert (created, packets) == ("New", 2)
        # The next run restores the account that this one has not closed.
        counters.counts = {key(metadata): 5}
        again = await killed.enter_async_context(running())
        await again._report_due()
        later_ns = time.monotonic_ns() + 11 * SECOND
        monkeypatch.setattr(time, "monotonic_ns", lambda: later_ns)
        await again._read_and_report()
        assert set(_findings(sink)) == {
            ("New", finding, 2),
            ("Active", finding, 5),
            ("Inactive", finding, 5),
        }
        number = len(sink.events)
        await again.close()
        assert len(sink.events) == number
    async with keeping.running_account(counters, tmp_path, sink) as last:
        await last.close()
    assert [uid for uid, _, _ in _findings(sink)].count("Inactive") == 1


async def test_open_fan_out_of_a_killed_run_is_ended(tmp_path: Path) -> None:
    counters, sink = Given({key(tcp(port)): 1 for port in range(1, 41)}), MemoryStore()
    async with keeping.opened_store(tmp_path) as store, contextlib.AsyncExitStack() as killed:
        running = functools.partial(keeping.running_account, counters, tmp_path, sink, store=store)
        account = await killed.enter_async_context(running())
        await account._report_due()
        ((begun, fan_out, _),) = _findings(sink)
        async with running() as again:
            await again.close()
        assert begun == "New"
        assert _findings(sink)[-1] == ("Inactive", fan_out, 40)
        assert [stage for stage, _, _ in _findings(sink)].count("Inactive") == 1


async def test_findings_end_when_a_run_stops(tmp_path: Path) -> None:
    counters, sink = Given(), MemoryStore()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        counters.counts = {key(tcp(port)): 20 for port in range(1, 601)}
        await account.close()
    findings = _findings(sink)
    begun = [finding for stage, finding, _ in findings if stage == "New"]
    assert len(begun) == len(set(begun)) > 500
    assert sorted(begun) == sorted(finding for stage, finding, _ in findings if stage == "Inactive")


@dataclass
class Changing(Given):
    """Counters of an enforcing fence; those of a permissive one may appear beside them."""

    permissive_counts: dict[Key, int] | None = None
    readings: int = 0

    def read(self, _settled: frozenset[str] = frozenset()) -> Reading:
        self.readings += 1
        enforcing = super().read()
        if self.permissive_counts is None:
            return enforcing
        permissive = reading(self.permissive_counts, self.at_ns, epoch="boot:9")
        return replace(
            enforcing,
            epochs={**enforcing.epochs, "egress:permissive": "boot:9"},
            rules={**enforcing.rules, "egress:permissive": permissive.rules["egress"]},
        )


async def test_first_record_after_a_change_of_mode_is_reported_at_once(tmp_path: Path) -> None:
    counters, sink = Changing(), MemoryStore()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        counters.permissive_counts = {key(tcp()): 1}
        await account.take(batch(as_allowed(record(tcp(), at_ns=NOW + SECOND))))
        (event,) = sink.of_class(4001)
        assert (event["disposition"], event["metadata"]["log_source"]) == ("Logged", "nflog")
        balances = await account.close()
    assert [(each.mode, each.reported, each.counter_mismatch) for each in balances] == [
        ("enforcing", 0, 0),
        ("permissive", 1, 0),
    ]
    # A change by the operator is no gap.
    assert not sink.of_class(6002)


async def test_forged_records_of_the_other_mode_cause_one_reading_and_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account_loop, "_CHECK_NS", 60 * SECOND)
    counters, sink = Changing(), MemoryStore()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        before = counters.readings
        for number in range(100):
            await account.take(batch(as_allowed(record(tcp(), number))))
        assert counters.readings - before == 1
        assert not sink.of_class(4001)


async def test_pause_of_a_permissive_fence_mentions_no_refusal(tmp_path: Path) -> None:
    counters, sink = Changing(permissive_counts={key(tcp()): 1}), MemoryStore()
    async with keeping.running_account(counters, tmp_path, sink) as account:
        await account.close()
    counters.at_ns += 60 * SECOND
    counters.permissive_counts = {key(tcp()): 8}
    async with keeping.running_account(counters, tmp_path, sink):
        (pause,) = sink.of_class(6002)
    assert pause["count"] == 7
    assert "7 packets were allowed (the fence is permissive)" in pause["message"]
    assert "blocked" not in pause["message"]


def _by(pid: int) -> Attribution:
    return done_by(Process(pid=pid, path=f"/run/{pid}"))


class Waiting(FallbackChain):
    """Fallback chain that finds a process only after ``found`` is set."""

    def __init__(self, wait_seconds: float) -> None:
        super().__init__(wait_seconds=wait_seconds)
        self.asked, self.found = asyncio.Event(), asyncio.Event()

    async def attributions(
        self, attached: AttachedNamespace | None, records: Sequence[Record], since_ns: int
    ) -> list[Attribution]:
        assert (attached, since_ns) == (None, NOW)
        self.asked.set()
        await self.found.wait()
        return [_by(1) for _ in records]


@pytest.mark.parametrize("ports", [[80], [80, 81]])
async def test_packet_whose_record_waits_for_its_process_is_reported_with_its_record(
    tmp_path: Path, ports: list[int]
) -> None:
    """The record of the last packet waits for the batch before."""
    counters, sink, fallback_chain = Given(), MemoryStore(), Waiting(wait_seconds=60)
    async with keeping.running_account(counters, tmp_path, sink, fallback_chain) as account:
        logged = [record(tcp(port), port, counters.at_ns + 1) for port in ports]
        taking = asyncio.create_task(account.take(batch(logged[0])))
        await fallback_chain.asked.wait()
        counters.counts = {key(tcp(port)): 1 for port in ports}
        await account._read_and_report()
        assert not sink.events
        account._grace_seconds = 60.0  # the next record comes in time on the slowest machine too
        fallback_chain.found.set()
        await taking
        await account._report_due()
        for each in logged[1:]:
            await account.take(batch(each))
        await account._report_due()
    events = sink.of_class(4001)
    assert [event["dst_endpoint"]["port"] for event in events] == ports
    assert {event["actor"]["process"]["pid"] for event in events} == {1}  # of the records


async def test_packet_without_a_record_is_reported_while_another_record_waits(
    tmp_path: Path,
) -> None:
    counters, sink, fallback_chain = Given(), MemoryStore(), Waiting(wait_seconds=0.01)
    async with keeping.running_account(counters, tmp_path, sink, fallback_chain) as account:
        taking = asyncio.create_task(account.take(batch(record(tcp()))))
        await fallback_chain.asked.wait()
        counters.counts = {key(tcp(81)): 1}
        await account._read_and_report()
        assert not sink.events
        # More packets of the flow, which its sender times, do not extend its wait.
        for packets in range(2, 5):
            await asyncio.sleep(account_loop._GRACE_SECONDS)
            counters.counts = {key(tcp(81)): packets}
            await account._observe()
            await account._report_due()
        events = sink.of_class(4001)
        assert {event["dst_endpoint"]["port"] for event in events} == {81}
        fallback_chain.found.set()
        await taking


class Seeing(FallbackChain):
    """Fallback chain that sees another process in each window."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[int] = []
        self.alone: list[Record] = []

    async def attributions(
        self, attached: AttachedNamespace | None, records: Sequence[Record], since_ns: int
    ) -> list[Attribution]:
        assert (attached, since_ns) == (None, NOW)
        return [_by(1) for _ in records]

    def mark_reported(
        self, attached: AttachedNamespace | None, record: Record, process: Process | None
    ) -> None:
        assert (attached, process and process.pid) == (None, 1)
        self.alone.append(record)

    def since_last(
        self, attached: AttachedNamespace | None, record: Record, packets: int, began_ns: int
    ) -> Attribution | None:
        assert attached is None
        assert began_ns == record.received_ns - 1  # when the reading of the counters began
        self.windows.append(packets)
        return _by(1 + len(self.windows)) if record.destination_port != 81 else None


async def test_attempt_names_the_processes_of_its_window_and_the_finding_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tcp(80, "169.254.169.254")  # a finding from its first packet on
    counters, sink, fallback_chain = Given(), MemoryStore(), Seeing()
    async with keeping.running_account(counters, tmp_path, sink, fallback_chain) as account:
        await account.take(batch(record(metadata)))
        begin_ns = time.monotonic_ns()
        for packets in (10, 20):
            later_ns = begin_ns + packets * SECOND // 2
            monkeypatch.setattr(time, "monotonic_ns", functools.partial(int, later_ns))
            counters.counts = {key(metadata): packets}
            await account._observe()
            await account._report_due(closing=packets == 20)
    events = sink.of_class(4001)
    assert [event["actor"]["process"]["pid"] for event in events] == [1, 2, 3]
    assert (len(fallback_chain.alone), fallback_chain.windows) == (1, [9, 10])
    created, *later = sink.of_class(2004)
    assert created["actor"]["process"]["pid"] == 1
    assert [event["activity_name"] for event in later] == ["Update", "Update", "Update"]
    for event, number in zip(later, (2, 3, 3), strict=True):
        assert "process" not in event["actor"]
        assert f" from {number} processes of uid 1000 in sandbox sb to " in event["message"]
        (how,) = event["enrichments"]
        assert [each["pid"] for each in how["data"]["processes"]] == list(range(1, number + 1))


async def test_aggregated_attempt_has_only_its_user(tmp_path: Path) -> None:
    counters, sink, fallback_chain = Given(), MemoryStore(), Seeing()
    async with keeping.running_account(counters, tmp_path, sink, fallback_chain) as account:
        counters.counts = {key(tcp(port)): 1 for port in range(1, 1501)}
        await account.close()
    aggregation = [event for event in sink.of_class(4001) if "aggregation" in event["unmapped"]]
    assert aggregation
    for event in aggregation:
        assert event["actor"].keys() == {"user"}
        assert event["enrichments"][0]["data"]["method"] == "user"


async def test_sender_of_one_packet_is_not_named_as_sender_of_all(
    tmp_path: Path,
) -> None:
    counters, sink, fallback_chain = Given(), MemoryStore(), Seeing()
    async with keeping.running_account(counters, tmp_path, sink, fallback_chain) as account:
        await account.take(batch(record(tcp(81)), record(tcp(81), 2)))
        counters.counts = {key(tcp(81)): 9}
        await account.close()
    first, window = sink.of_class(4001)
    assert first["actor"]["process"]["pid"] == 1
    assert window["count"] == 8
    assert "process" not in window["actor"]
    (how,) = window["enrichments"]
    assert (how["value"], how["data"]["confidence"]) == ("unknown", "Low")
    assert [each["pid"] for each in how["data"]["processes"]] == [1]


async def test_numbers_while_a_reading_is_processed_are_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = Given({key(tcp()): 1})
    async with keeping.running_account(counters, tmp_path, MemoryStore()) as account:
        await account._observe()
        before = account.balances()
        observe, seen = account._account.observe, []

        def watched(reading: Reading) -> Iterator[None]:
            yield from observe(reading)
            seen.append(account.balances())
            yield

        monkeypatch.setattr(account._account, "observe", watched)
        counters.at_ns += SECOND
        counters.counts = {key(tcp()): 3}
        await account._observe()
        assert seen == [before]
        assert [(each.refused, each.pending) for each in account.balances()] == [(3, 3)]
