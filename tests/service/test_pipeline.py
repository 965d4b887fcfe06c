from __future__ import annotations

import asyncio
import time
import weakref
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, cast

import pytest
from structlog.testing import capture_logs

from ocsf_nft.log_prefixes import Configured, Prefixes
from ocsf_nft.ocsf.context import Context, Host, Proxy
from ocsf_nft.process import Container
from ocsf_nft.record import Batch, Gap, Record
from ocsf_nft.service import pipeline as module
from ocsf_nft.service.accounts import Accounts
from ocsf_nft.service.event_rendering import Reporter
from ocsf_nft.service.pipeline import Pipeline
from tests.conformance.corpus import TCP, V4, record
from tests.service.keeping import MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ocsf_nft.service.account_loop import AccountLoop


@pytest.fixture
def endless_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a stopped pipeline read until its source is quiet, on the slowest machine too."""
    monkeypatch.setattr(module, "_DRAIN_SECONDS", 600.0)


class Untouched:
    """Account that must not be used."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was called for")


@dataclass
class Fixed:
    """Source with one batch."""

    batch: Batch
    quiet_seconds: float = 0.2

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def batches(self) -> AsyncIterator[Batch]:
        yield self.batch


@dataclass
class Given:
    """Live source with some batches of ten records that then waits."""

    batches_left: int
    made: int = 0
    quiet_seconds: float = 0.2

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    gaps: tuple[Gap, ...] = ()

    async def batches(self) -> AsyncIterator[Batch]:
        for gap in self.gaps:
            yield Batch(gaps=(gap,))
        while self.batches_left:
            self.batches_left -= 1
            records = tuple(_record(self.made + number) for number in range(10))
            self.made += 10
            yield Batch(records=records)
        await asyncio.Event().wait()


class ReferableBatch(Batch):
    """Batch that can have a weak reference, unlike a dataclass with slots."""


@dataclass
class Endless(Given):
    """Source that never ends, and that counts the batches still in memory."""

    given: list[weakref.ref[Batch]] = field(default_factory=list)
    most_held: int = 0

    async def batches(self) -> AsyncIterator[Batch]:
        while True:
            batch = ReferableBatch(records=(_record(self.made),))
            self.made += 1
            self.given.append(weakref.ref(batch))
            yield batch
            del batch
            self.most_held = max(self.most_held, sum(ref() is not None for ref in self.given))
            await asyncio.sleep(0.001)


def _record(number: int) -> Record:
    made = record(**V4, **TCP)
    return replace(made, origin=replace(made.origin, identity=f"test:{number}"))


@pytest.mark.usefixtures("endless_drain")
async def test_waiting_records_are_delivered_after_the_stop() -> None:
    sink, source, stop = MemoryStore(), Given(50), asyncio.Event()
    stop.set()
    pipeline = Pipeline(Reporter(sink.commit, Host(hostname="test")), Accounts())
    await pipeline.pump(source, stop)
    assert len(sink.of_class(4001)) == source.made == 500
    assert not sink.of_class(6002)


async def test_gap_of_a_source_is_counted_in_the_accounts_of_its_sandboxes() -> None:
    gap = Gap(transport="nflog", reason="the buffer was full", dropped=3, since_ns=1, until_ns=2)
    sink = MemoryStore()
    requested: list[str] = []

    class Account(Untouched):
        def __init__(self, name: str) -> None:
            self.sandbox = name

        def request_reading(self) -> None:
            requested.append(self.sandbox)

    accounts = Accounts()
    for name in ("ours", "other"):
        accounts.set(name, cast("AccountLoop", Account(name)))
    pipeline = Pipeline(Reporter(sink.commit, Host(hostname="test")), accounts)
    source = Fixed(Batch(gaps=(gap, gap)))
    await pipeline.pump(source, asyncio.Event(), frozenset({"ours", "unwatched", None}))
    assert sink.dropped == [("ours", ("nflog", 1, 3))] * 2
    assert set(requested) == {"ours"}
    assert len(sink.of_class(6002)) == 2


async def test_records_not_delivered_in_time_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_DRAIN_SECONDS", 0.1)
    monkeypatch.setattr(module, "_COUNT_SECONDS", 600.0)
    sink, source, stop = MemoryStore(seconds=0.03), Given(50), asyncio.Event()
    stop.set()
    pipeline = Pipeline(Reporter(sink.commit, Host(hostname="test")), Accounts())
    await pipeline.pump(source, stop)
    delivered = len(sink.of_class(4001))
    (gap_event,) = sink.of_class(6002)
    assert 0 < delivered < 500
    assert delivered + gap_event["count"] == source.made == 500
    assert gap_event["status_detail"] == f"stopped before {gap_event['count']} were delivered"
    assert pipeline.counts.dropped == gap_event["count"]


async def test_counted_records_do_not_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DRAIN_SECONDS", 0.0)
    monkeypatch.setattr(module, "_COUNT_SECONDS", 100.0)
    monkeypatch.setattr(module, "_COUNT_QUIET_SECONDS", 60.0)  # the source is never quiet
    source, stop = Endless(0), asyncio.Event()
    # Its records are the clock: a machine that is held up does not end the count.
    clock = SimpleNamespace(monotonic=lambda: float(source.made), time_ns=time.time_ns)
    monkeypatch.setattr(module, "time", clock)
    stop.set()
    sink = MemoryStore()
    await Pipeline(Reporter(sink.commit, Host(hostname="test")), Accounts()).pump(source, stop)
    (gap_event,) = sink.of_class(6002)
    assert gap_event["status_detail"].startswith("stopped before at least ")
    assert "count" not in gap_event
    assert source.made > 100
    assert source.most_held <= 2


async def test_pipeline_that_waits_for_records_holds_none() -> None:
    """After a burst, the next record may come in days."""
    is_waiting, held = asyncio.Event(), list[weakref.ref[Batch]]()

    class Last(Given):
        async def batches(self) -> AsyncIterator[Batch]:
            batch = ReferableBatch(records=(_record(0),))
            held.append(weakref.ref(batch))
            yield batch
            del batch
            is_waiting.set()
            await asyncio.Event().wait()

    sink = MemoryStore()
    pipeline = Pipeline(Reporter(sink.commit, Host(hostname="test")), Accounts())
    pumping = asyncio.create_task(pipeline.pump(Last(0), asyncio.Event()))
    await is_waiting.wait()
    assert len(sink.of_class(4001)) == 1
    assert held[0]() is None
    pumping.cancel()
    await asyncio.wait({pumping})


@pytest.mark.usefixtures("endless_drain")
async def test_record_of_an_unknown_sandbox_is_counted_as_forged() -> None:
    sink, source, stop = MemoryStore(), Given(1), asyncio.Event()
    stop.set()
    pipeline = Pipeline(Reporter(sink.commit, Host(hostname="test")), Accounts())
    await pipeline.pump(source, stop, frozenset({"another"}))
    assert not sink.events
    assert pipeline.counts.rejected == {"forged": 10}


FOREIGN = [
    ("[UFW BLOCK] ", "UFW BLOCK", None, "Blocked"),
    ("Shorewall:net-fw:DROP:", "Shorewall:net-fw:DROP", None, "Dropped"),
    ("[UFW ALLOW] ", "UFW ALLOW", None, "Allowed"),
    ("MYFW: ", "MYFW:", "fenced", "Dropped"),
    ("openshell:bypass:fenced:", "bypass", "fenced", "Blocked"),
]


async def test_foreign_record_is_reported_by_its_prefix_without_an_account() -> None:
    sink, stop = MemoryStore(), asyncio.Event()
    reporter = Reporter(sink.commit, Host(hostname="test"))
    proxy = Proxy(address=ip_address("10.0.0.1"), port=3128)
    reporter.set_context("fenced", Context(proxies=(proxy,), container=Container(name="fenced")))
    table = Prefixes([Configured(begins="MYFW", verdict="drop", sandbox="fenced")])
    accounts = Accounts()
    accounts.set("fenced", cast("AccountLoop", Untouched()))
    pipeline = Pipeline(reporter, accounts, table)
    records = tuple(record(prefix, **V4, **TCP, out_interface="eth0") for prefix, *_ in FOREIGN)
    await pipeline.pump(Fixed(Batch(records=records)), stop, frozenset({"fenced", None}))
    assert not pipeline.counts.rejected
    assert [
        (
            event["firewall_rule"]["name"],
            event["src_endpoint"].get("name"),
            event["disposition"],
            # The context of the fenced sandbox of that name does not apply to other firewalls'
            # records.
            "proxy_endpoint" in event or "container" in event["src_endpoint"],
        )
        for event in sink.of_class(4001)
    ] == [(rule, sandbox, disposition, False) for _, rule, sandbox, disposition in FOREIGN]


async def test_unrequested_foreign_records_are_forged() -> None:
    sink, stop = MemoryStore(), asyncio.Event()
    pipeline = Pipeline(Reporter(sink.commit, Host(hostname="test")), Accounts())
    records = tuple(record(prefix, **V4, **TCP) for prefix, *_ in FOREIGN)
    await pipeline.pump(Fixed(Batch(records=records)), stop, frozenset({"fenced"}))
    assert not sink.events
    assert pipeline.counts.rejected == {"forged": len(FOREIGN)}


async def test_own_prefix_of_an_unknown_sandbox_is_forged_among_foreign_records() -> None:
    sink, stop = MemoryStore(), asyncio.Event()
    pipeline = Pipeline(Reporter(sink.commit, Host(hostname="test")), Accounts())
    records = (record(**V4, **TCP), record("[UFW BLOCK] ", **V4, **TCP))
    await pipeline.pump(Fixed(Batch(records=records)), stop, frozenset({None}))
    assert [event["firewall_rule"]["name"] for event in sink.events] == ["UFW BLOCK"]
    assert pipeline.counts.rejected == {"forged": 1}


@pytest.mark.usefixtures("endless_drain")
async def test_gaps_are_all_events_but_few_are_logged() -> None:
    full = Gap(transport="nflog", reason="its buffer was full", dropped=3, since_ns=1, until_ns=2)
    other = replace(full, reason="another", dropped=None)
    sink, source, stop = MemoryStore(), Given(0, gaps=(full,) * 100 + (other,)), asyncio.Event()
    stop.set()
    pipeline = Pipeline(Reporter(sink.commit, Host(hostname="test")), Accounts())
    with capture_logs() as logged:
        await pipeline.pump(source, stop)
    assert len(sink.of_class(6002)) == pipeline.counts.gaps == 101
    assert pipeline.counts.dropped == 300
    numbers = [(line["reason"], line["number"]) for line in logged]
    assert numbers == [(full.reason, 2**power) for power in range(7)] + [(other.reason, 1)]


@pytest.mark.usefixtures("endless_drain")
async def test_event_from_another_machines_log_has_no_device() -> None:
    gap = Gap(transport="replay", reason="cut", dropped=1, since_ns=1, until_ns=2)
    for host, has_device in ((None, False), (Host(hostname="test"), True)):
        sink, source, stop = MemoryStore(), Given(1, gaps=(gap,)), asyncio.Event()
        stop.set()
        await Pipeline(Reporter(sink.commit, host), Accounts()).pump(source, stop)
        assert len(sink.events) == 11
        assert all(("device" in event) is has_device for event in sink.events)


async def test_position_of_the_hosts_log_is_stored_with_its_records_and_without() -> None:
    sink = MemoryStore()
    pipeline = Pipeline(Reporter(sink.commit, Host(hostname="test")), Accounts())
    foreign = record("[UFW BLOCK] ", **V4, **TCP)
    for batch, position, events in (
        (Batch(records=(foreign,), cursor="one"), "one", 1),
        (Batch(cursor="two"), "two", 1),
        (Batch(records=(foreign,), cursor="three"), "three", 2),
    ):
        await pipeline.pump(Fixed(batch), asyncio.Event(), frozenset({None}), name="kmsg")
        assert sink.positions == {"kmsg": position}
        assert len(sink.events) == events
