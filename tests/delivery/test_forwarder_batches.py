"""Sizes of the batches that a forwarder delivers, and their waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ocsf_nft.delivery import forwarder as forwarder_module
from tests.delivery.forwarding import make_forwarder, running
from tests.delivery.receiver import Receiver, event, events, uids

if TYPE_CHECKING:
    import pytest

    from ocsf_nft.delivery.sinks.base import BatchResult
    from tests.delivery.stores import Store


async def test_stored_events_are_delivered_in_order_and_in_batches(store: Store) -> None:
    sink = Receiver()
    async with running(make_forwarder(store, sink)):
        await store.put(events(range(25)))
        await sink.has(25)
        await store.put(events(range(25, 27)))
        await sink.has(27)
    assert sink.got == uids(range(27))
    assert [len(batch) for batch in sink.batches] == [10, 10, 5, 2]
    assert sink.opened == sink.closed == 1


async def test_batch_size_is_limited_in_bytes(store: Store) -> None:
    sink = Receiver()
    await store.put([event(number, 1000) for number in range(6)])
    async with running(make_forwarder(store, sink, bytes=2500)):
        await sink.has(6)
    assert [len(batch) for batch in sink.batches] == [2, 2, 2]


async def test_batch_waits_until_it_is_full_or_its_time_is_over(store: Store) -> None:
    sink = Receiver()
    async with running(make_forwarder(store, sink, seconds=3600.0)):
        for number in range(10):
            await store.put([event(number)])
        await sink.has(10)
    assert sink.batches == [uids(range(10))]
    waiting = Receiver()
    async with running(make_forwarder(store, waiting, name="b", seconds=0.01, events=100)):
        await waiting.has(10)


async def test_events_that_come_just_after_a_batch_are_one_batch(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarder_module, "_PAUSE_SECONDS", 3600.0)
    sink = Receiver()
    forwarder = make_forwarder(store, sink)
    async with running(forwarder):
        await store.put([event(0)])
        await sink.has(1)  # the first one does not wait
        for number in range(1, 11):
            await store.put([event(number)])
            await asyncio.sleep(0)
        await sink.has(11)
        await store.put([event(11)])
        await asyncio.wait_for(forwarder.drain(), 60)
    assert sink.batches == [uids([0]), uids(range(1, 11)), uids([11])]


async def test_batch_that_waits_to_be_full_is_sent_when_the_run_ends(store: Store) -> None:
    sink = Receiver()
    forwarder = make_forwarder(store, sink, seconds=3600.0)
    async with running(forwarder):
        await store.put(events(range(3)))
        await asyncio.sleep(0.01)
        assert sink.got == []
        await asyncio.wait_for(forwarder.drain(), 60)
        assert sink.got == uids(range(3))


async def test_batch_that_times_out_is_sent_in_smaller_ones(
    store: Store,
) -> None:
    class Slow(Receiver):
        async def deliver(self, messages: Any) -> BatchResult:
            if len(messages) > 3:
                await asyncio.Event().wait()
            return await super().deliver(messages)

    sink = Slow()
    forwarder = make_forwarder(store, sink, timeout_seconds=0.05)
    async with running(forwarder):
        await store.put(events(range(10)))
        await sink.has(10)
        await forwarder.drain()
    assert sink.got == uids(range(10))
    assert forwarder.progress.dead == 0


async def test_sink_that_repeats_batches_gets_no_smaller_ones(store: Store) -> None:
    sink = Receiver(stuck=True, repeats_batches=True)
    async with running(make_forwarder(store, sink, timeout_seconds=0.02)):
        await store.put(events(range(10)))
        await sink.tried(4)
    assert {len(batch) for batch in sink.batches} == {10}
