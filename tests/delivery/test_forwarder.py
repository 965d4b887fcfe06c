from __future__ import annotations

import asyncio
import errno
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.delivery import forwarder as module
from ocsf_nft.delivery.forwarder import Forwarder
from ocsf_nft.delivery.sinks.base import BatchResult, BatchSettings, Message
from ocsf_nft.errors import ClosedError, DeliveryError
from ocsf_nft.state.retry_until_writable import StorageRetrier
from ocsf_nft.state.state_db import FILE
from tests.delivery.forwarding import make_forwarder, running
from tests.delivery.receiver import Receiver, event, events, uids
from tests.delivery.stores import Store

if TYPE_CHECKING:
    from pathlib import Path


async def test_forwarder_leaves_no_task_behind_when_it_has_waited(store: Store) -> None:
    sink = Receiver()
    async with running(make_forwarder(store, sink)):
        for number in range(20):
            await store.put([event(number)])
            await sink.has(number + 1)
        assert len(asyncio.all_tasks()) < 10


async def test_forwarder_reports_a_sink_that_refuses_an_event_as_up(store: Store) -> None:
    sink = Receiver(down=True, poisonous={"uid-1"})
    forwarder = make_forwarder(store, sink)
    async with running(forwarder):
        await store.put(events([1]))
        async with asyncio.timeout(60):
            while forwarder.progress.fault is None:  # noqa: ASYNC110 - no event announces it
                await asyncio.sleep(0.001)
        sink.down = False
        await asyncio.wait_for(forwarder.drain(), 60)
        assert forwarder.progress.fault is None


async def test_sink_that_is_down_at_first_gets_all_events_in_order_later(
    store: Store,
) -> None:
    sink = Receiver(down=True)
    forwarder = make_forwarder(store, sink)
    async with running(forwarder):
        await store.put(events(range(15)))
        async with asyncio.timeout(60):
            while forwarder.progress.failures < 2:  # noqa: ASYNC110 - no event announces it
                await asyncio.sleep(0.001)
        assert forwarder.progress.fault == "it is down"
        sink.down = False
        await forwarder.drain()
    assert sink.got == uids(range(15))
    progress = forwarder.progress
    assert (progress.fault, progress.delivered) == (None, 15)


async def test_sink_that_fails_is_closed_and_opened_again(store: Store) -> None:
    sink = Receiver()
    async with running(make_forwarder(store, sink)):
        await store.put(events([1]))
        await sink.has(1)
        sink.down = True
        await store.put(events([2]))
        await sink.tried(2)
        sink.down = False
        await sink.has(2)
    assert sink.got == uids([1, 2])
    assert sink.opened == sink.closed == 2


async def test_stuck_sink_does_not_delay_another(store: Store) -> None:
    stuck, healthy = Receiver(stuck=True), Receiver()
    async with running(make_forwarder(store, stuck), make_forwarder(store, healthy, name="b")):
        for number in range(50):
            await store.put([event(number)])
        await healthy.has(50)
    assert stuck.got == []
    assert healthy.got == uids(range(50))


async def test_delivery_that_times_out_is_retried(store: Store) -> None:
    sink = Receiver(stuck=True)
    forwarder = make_forwarder(store, sink, timeout_seconds=0.02)
    async with running(forwarder):
        await store.put(events(range(3)))
        await sink.tried(2)
        assert "did not accept a batch in 0.02 s" in str(forwarder.progress.fault)
        sink.stuck = False
        await sink.has(3)
    assert sink.got == uids(range(3))


async def test_only_messages_that_were_not_accepted_are_sent_again(store: Store) -> None:
    sink = Receiver(most=4)
    async with running(make_forwarder(store, sink)):
        await store.put(events(range(10)))
        await sink.has(10)
    assert sink.got == uids(range(10))
    assert [len(batch) for batch in sink.batches] == [10, 6, 2]


async def test_forwarder_continues_from_the_checkpoint(store: Store) -> None:
    await store.put(events(range(5)))
    first, second = Receiver(), Receiver()
    forwarder = make_forwarder(store, first)
    async with running(forwarder):
        await forwarder.drain()
    await store.put(events(range(5, 7)))
    async with running(make_forwarder(store, second)):
        await second.has(2)
    assert second.got == uids([5, 6])


async def test_interrupted_batch_is_sent_again_with_the_same_events(
    store: Store,
) -> None:
    """A sink that identifies a batch by its events gets the same batch again."""
    # This makes a number without an event: a repeated event may use up one.
    await store.put(events([0]))
    await store.put(events([0, 1, 2]))
    interrupted, complete = (
        Receiver(stuck=True, repeats_batches=True),
        Receiver(repeats_batches=True),
    )
    async with running(make_forwarder(store, interrupted)):
        await interrupted.tried(1)
    await store.put(events(range(3, 6)))
    async with running(make_forwarder(store, complete)):
        await complete.has(6)
    assert interrupted.batches == [uids(range(3))]
    assert complete.batches == [uids(range(3)), uids(range(3, 6))]


async def test_sink_gets_the_handshake_first_each_time_it_is_opened(store: Store) -> None:
    lines: list[bytes] = []

    class Recording(Receiver):
        async def deliver(self, messages: Any) -> Any:
            outcome = await super().deliver(messages)
            lines.extend(message.line for message in messages)
            return outcome

    sink = Recording()
    forwarder = make_forwarder(store, sink)
    forwarder.set_handshake(b"hello")
    async with running(forwarder):
        await sink.tried(1)  # though there is no event
        await store.put(events([1]))
        await forwarder.drain()
        sink.down = True
        await store.put(events([2]))
        await sink.tried(3)
        sink.down = False
        await asyncio.wait_for(forwarder.drain(), 60)
    assert lines == [b"hello", event(1), b"hello", event(2)]
    assert forwarder.progress.delivered == 2


async def test_sink_gets_selected_events_in_its_own_form(store: Store) -> None:
    lines: list[bytes] = []

    class Recording(Receiver):
        async def deliver(self, messages: Any) -> Any:
            lines.extend(message.line for message in messages)
            return await super().deliver(messages)

    def convert(line: bytes) -> bytes | None:
        return None if b"uid-1" in line else line.upper()

    sink = Recording()
    forwarder = Forwarder(
        "a",
        sink,
        store.stream,
        store.sinks,
        convert=convert,
        batch_settings=BatchSettings(),
        retrier=StorageRetrier(asyncio.Event()),
    )
    async with running(forwarder):
        await store.put(events(range(3)))
        await forwarder.drain()
        await store.put(events([1, 10]))
        await forwarder.drain()
    assert lines == [event(0).upper(), event(2).upper()]
    assert store.sinks.checkpoint("a") == (store.end, None)


async def test_sink_that_is_closed_for_good_ends_its_forwarder(store: Store) -> None:
    class Closed(Receiver):
        async def deliver(self, _: Any) -> Any:
            raise ClosedError("the reader has closed the pipe")

    await store.put(events(range(3)))
    with pytest.raises(ClosedError, match="the reader has closed the pipe"):
        await make_forwarder(store, Closed()).run()
    assert store.sinks.checkpoint("a") == (0, None)


async def test_unexpected_error_of_a_sink_is_retried(store: Store) -> None:
    class Defective(Receiver):
        async def deliver(self, messages: Any) -> Any:
            if len(self.batches) < 2:
                self.batches.append([])
                raise KeyError("not there")
            return await super().deliver(messages)

    sink = Defective()
    async with running(make_forwarder(store, sink)):
        await store.put(events(range(3)))
        await sink.has(3)
    assert sink.got == uids(range(3))


async def test_forwarder_waits_as_long_as_the_receiver_requests(store: Store) -> None:
    tried: list[float] = []

    class Busy(Receiver):
        async def deliver(self, messages: Any) -> BatchResult:
            tried.append(time.monotonic())
            if len(tried) == 1:
                raise DeliveryError("too many requests", after_seconds=0.4)
            return await super().deliver(messages)

    sink = Busy()
    await store.put(events(range(3)))
    async with running(make_forwarder(store, sink)):
        await sink.has(3)
    assert tried[1] - tried[0] >= 0.4


async def test_forwarder_of_a_sink_that_is_down_stops_at_once_on_request(store: Store) -> None:
    sink = Receiver(down=True)
    forwarder = make_forwarder(store, sink, retry_seconds=3600.0)
    running_ = asyncio.create_task(forwarder.run())
    await store.put(events(range(3)))
    while not forwarder.progress.failures:  # noqa: ASYNC110 - no event announces it
        await asyncio.sleep(0.001)
    forwarder.request_stop()
    await asyncio.wait_for(running_, 60)
    assert store.sinks.checkpoint("a") == (0, None)


async def test_unexpected_error_in_closing_a_sink_ends_nothing_else(store: Store) -> None:
    class Defective(Receiver):
        async def close(self) -> None:
            await super().close()
            raise KeyError("no such thing")

    sink = Defective()
    async with running(make_forwarder(store, sink)):
        await store.put(events([1]))
        await sink.has(1)
        sink.down = True
        await store.put(events([2]))
        await sink.tried(2)
        sink.down = False
        await sink.has(2)
    assert sink.got == uids([1, 2])
    assert sink.opened == sink.closed == 2


async def test_batch_whose_events_were_removed_is_skipped_and_nothing_else(
    store: Store, tmp_path: Path
) -> None:
    await store.put(events(range(3)))
    interrupted, complete = (
        Receiver(stuck=True, repeats_batches=True),
        Receiver(repeats_batches=True),
    )
    async with running(make_forwarder(store, interrupted)):
        await interrupted.tried(1)
    with closing(sqlite3.connect(tmp_path / FILE)) as other, other:
        other.execute("DELETE FROM event")
    await store.put(events(range(3, 6)))
    async with running(make_forwarder(store, complete)):
        await complete.has(3)
    assert complete.got == uids(range(3, 6))


async def test_forwarder_does_not_wait_for_events_that_were_all_removed(
    store: Store, tmp_path: Path
) -> None:
    await store.put(events(range(3)))
    with closing(sqlite3.connect(tmp_path / FILE)) as other, other:
        other.execute("DELETE FROM event")
    forwarder = make_forwarder(store, Receiver())
    async with running(forwarder):
        await asyncio.wait_for(forwarder.drain(), 60)
        assert forwarder.pending == 0


async def test_events_that_retention_has_dropped_are_skipped(tmp_path: Path) -> None:
    sink = Receiver()
    async with Store(tmp_path / "small" / FILE, max_bytes=1 << 20, drops=True) as store:
        await store.register(["a"])
        for number in range(600):
            await store.put([event(number, 5000)])
        forwarder = make_forwarder(store, sink)
        async with running(forwarder):
            await forwarder.drain()
    assert sink.got == uids(range(600 - len(sink.got), 600))


async def test_message_has_the_uid_of_its_event(store: Store) -> None:
    found: list[Message] = []

    class Recording(Receiver):
        async def deliver(self, messages: Any) -> Any:
            found.extend(messages)
            return await super().deliver(messages)

    await store.put(events([7]))
    sink = Recording()
    async with running(make_forwarder(store, sink)):
        await sink.has(1)
    assert [(each.uid, each.line) for each in found] == [("uid-7", event(7))]
    assert found[0].event()["metadata"]["uid"] == "uid-7"


async def test_forwarder_reports_a_sink_with_an_oserror_as_down(store: Store) -> None:
    class Full(Receiver):
        async def open(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    forwarder = make_forwarder(store, Full())
    with pytest.raises(DeliveryError, match=r"^a: No space left on device$"):
        await forwarder._deliver_once([])
    forwarder = make_forwarder(store, Full())
    async with running(forwarder):
        await store.put(events(range(1)))
        async with asyncio.timeout(60):
            while forwarder.progress.fault is None:  # noqa: ASYNC110 - no event announces it
                await asyncio.sleep(0.005)
    assert forwarder.progress.fault == "a: No space left on device"


async def test_forwarder_gives_other_tasks_a_turn_while_it_converts_a_batch(store: Store) -> None:
    slices = 10
    converted = [0]

    def convert(line: bytes) -> bytes:
        converted[-1] += 1
        return line

    async def take_turns() -> None:
        while True:
            converted.append(0)
            await asyncio.sleep(0)

    await store.put(events(range(slices * module._SLICE)))
    forwarder = Forwarder(
        "a",
        Receiver(),
        store.stream,
        store.sinks,
        convert=convert,
        batch_settings=BatchSettings(),
        retrier=StorageRetrier(asyncio.Event()),
    )
    other = asyncio.create_task(take_turns())
    async with running(forwarder):
        await forwarder.drain()
    other.cancel()
    assert sum(converted) == slices * module._SLICE
    assert max(converted) <= module._SLICE
    assert sum(map(bool, converted)) <= slices + 2  # a turn costs time


async def test_forwarder_has_no_pending_events_after_the_end_of_its_store(
    store: Store,
) -> None:
    forwarder = make_forwarder(store, Receiver())
    forwarder.done = 5
    assert forwarder.pending == 0
