from __future__ import annotations

import asyncio
import contextlib
import errno
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from ocsf_nft.delivery import forwarder as module
from ocsf_nft.delivery.archive import retry
from ocsf_nft.delivery.forwarder import Forwarder
from ocsf_nft.delivery.pace import Pace
from ocsf_nft.delivery.patience import Patience
from ocsf_nft.delivery.shelf import FILE
from ocsf_nft.delivery.store import Store
from ocsf_nft.errors import ClosedError, DeliveryError
from tests.delivery.receiver import Receiver, event, events, uids

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from ocsf_nft.delivery.message import Message
    from ocsf_nft.delivery.shelf import Dead
    from ocsf_nft.delivery.sinks.base import Outcome


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store(tmp_path / FILE) as store:
        await store.register(["a", "b"])
        yield store


def made(store: Store, sink: Receiver, *, name: str = "a", **pace: Any) -> Forwarder:
    quick = {"events": 10, "retry_seconds": 0.01} | pace
    return Forwarder(name, sink, store, pace=Pace(**quick), patiently=Patience(asyncio.Event()))


@contextlib.asynccontextmanager
async def running(*forwarders: Forwarder) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.run()) for each in forwarders]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_is_put_is_delivered_in_order_and_in_batches(store: Store) -> None:
    sink = Receiver()
    async with running(made(store, sink)):
        await store.put(events(range(25)))
        await sink.has(25)
        await store.put(events(range(25, 27)))
        await sink.has(27)
    assert sink.got == uids(range(27))
    assert [len(batch) for batch in sink.batches] == [10, 10, 5, 2]
    assert sink.opened == sink.closed == 1


async def test_forwarder_leaves_no_task_behind_when_it_has_waited(store: Store) -> None:
    sink = Receiver()
    async with running(made(store, sink)):
        for number in range(20):
            await store.put([event(number)])
            await sink.has(number + 1)
        assert len(asyncio.all_tasks()) < 10


async def test_forwarder_sends_dead_letters_of_an_earlier_run_again(
    store: Store, tmp_path: Path
) -> None:
    earlier = made(store, Receiver(bad={"uid-1"}))
    async with running(earlier):
        await store.put(events([1]))
        await asyncio.wait_for(earlier.drain(), 10)
    again(tmp_path)
    sink = Receiver()
    async with running(made(store, sink)):
        await sink.has(1)


async def test_forwarder_counts_dead_letters_again_and_checks_them_once_a_second(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Receiver(bad={"uid-0"})
    forwarder = made(store, sink)
    dead, checked = store.dead, 0

    async def counted(sink: str, *, events: int) -> list[Dead]:
        nonlocal checked
        checked += 1
        return await dead(sink, events=events)

    monkeypatch.setattr(store, "dead", counted)
    begun = time.monotonic()
    async with running(forwarder):
        for number in range(20):
            await store.put([event(number)])
            await sink.tried(number + 1)
        await asyncio.wait_for(_has_dead(forwarder, 1), 10)
        assert checked <= 1 + (time.monotonic() - begun)
        with closing(sqlite3.connect(tmp_path / FILE)) as other, other:
            other.execute("DELETE FROM dead")
        await asyncio.wait_for(_has_dead(forwarder, 0), 10)


async def test_forwarder_reports_a_sink_that_refuses_an_event_as_up(store: Store) -> None:
    sink = Receiver(down=True, unsaid={"uid-1"})
    forwarder = made(store, sink)
    async with running(forwarder):
        await store.put(events([1]))
        async with asyncio.timeout(10):
            while forwarder.progress.fault is None:  # noqa: ASYNC110 - nobody else waits for it
                await asyncio.sleep(0.001)
        sink.down = False
        await asyncio.wait_for(forwarder.drain(), 10)
        assert forwarder.progress.fault is None


async def test_a_batch_is_bounded_by_its_bytes(store: Store) -> None:
    sink = Receiver()
    await store.put([event(number, 1000) for number in range(6)])
    async with running(made(store, sink, bytes=2500)):
        await sink.has(6)
    assert [len(batch) for batch in sink.batches] == [2, 2, 2]


async def test_a_batch_waits_to_become_larger_and_no_longer_than_that(store: Store) -> None:
    sink = Receiver()
    async with running(made(store, sink, seconds=3600.0)):
        for number in range(10):
            await store.put([event(number)])
        await sink.has(10)
    assert sink.batches == [uids(range(10))]
    patient = Receiver()
    async with running(made(store, patient, name="b", seconds=0.01, events=100)):
        await patient.has(10)


async def test_what_waits_for_a_fuller_batch_is_hurried_when_the_run_ends(store: Store) -> None:
    sink = Receiver()
    forwarder = made(store, sink, seconds=3600.0)
    async with running(forwarder):
        await store.put(events(range(3)))
        await asyncio.sleep(0.01)
        assert sink.got == []
        await asyncio.wait_for(forwarder.drain(), 10)
        assert sink.got == uids(range(3))


async def test_a_sink_that_is_down_at_first_gets_all_in_order_when_it_is_back(
    store: Store,
) -> None:
    sink = Receiver(down=True)
    forwarder = made(store, sink)
    async with running(forwarder):
        await store.put(events(range(15)))
        await asyncio.sleep(0.05)
        assert forwarder.progress.fault == "it is down"
        assert forwarder.progress.failures > 1
        sink.down = False
        await forwarder.drain()
    assert sink.got == uids(range(15))
    progress = forwarder.progress
    assert (progress.fault, progress.delivered) == (None, 15)


async def test_a_sink_that_fails_is_left_and_entered_anew(store: Store) -> None:
    sink = Receiver()
    async with running(made(store, sink)):
        await store.put(events([1]))
        await sink.has(1)
        sink.down = True
        await store.put(events([2]))
        await sink.tried(2)
        sink.down = False
        await sink.has(2)
    assert sink.got == uids([1, 2])
    assert sink.opened == sink.closed == 2


async def test_one_sink_that_is_stuck_holds_up_no_other(store: Store) -> None:
    stuck, well = Receiver(stuck=True), Receiver()
    async with running(made(store, stuck), made(store, well, name="b")):
        for number in range(50):
            await store.put([event(number)])
        await well.has(50)
    assert stuck.got == []
    assert well.got == uids(range(50))


async def test_a_delivery_that_takes_too_long_is_cut_and_tried_again(store: Store) -> None:
    sink = Receiver(stuck=True)
    forwarder = made(store, sink, timeout_seconds=0.02)
    async with running(forwarder):
        await store.put(events(range(3)))
        await sink.tried(2)
        assert "did not take a batch within 0.02 s" in str(forwarder.progress.fault)
        sink.stuck = False
        await sink.has(3)
    assert sink.got == uids(range(3))


async def test_a_batch_that_is_too_much_for_the_time_there_is_is_sent_in_smaller_ones(
    store: Store,
) -> None:
    class Slow(Receiver):
        async def deliver(self, messages: Any) -> Outcome:
            if len(messages) > 3:
                await asyncio.Event().wait()
            return await super().deliver(messages)

    sink = Slow()
    forwarder = made(store, sink, timeout_seconds=0.05)
    async with running(forwarder):
        await store.put(events(range(10)))
        await sink.has(10)
        await forwarder.drain()
    assert sink.got == uids(range(10))
    assert forwarder.progress.dead == 0


async def test_a_sink_that_knows_its_batches_gets_no_smaller_ones(store: Store) -> None:
    sink = Receiver(stuck=True, repeats_batches=True)
    async with running(made(store, sink, timeout_seconds=0.02)):
        await store.put(events(range(10)))
        await sink.tried(4)
    assert {len(batch) for batch in sink.batches} == {10}


async def test_what_is_refused_is_a_dead_letter_and_the_rest_goes_on(store: Store) -> None:
    sink = Receiver(bad={"uid-3"})
    forwarder = made(store, sink)
    async with running(forwarder):
        await store.put(events(range(8)))
        await sink.has(7)
        await forwarder.drain()
        assert (forwarder.progress.refused, forwarder.progress.dead) == (1, 1)
        assert forwarder.progress.delivered == 7
    assert await store.dead_number("a") == 1
    assert await store.checkpoint("a") == (8, None)


async def test_what_is_wrong_with_a_batch_is_found_by_halving_it(store: Store) -> None:
    sink = Receiver(unsaid={"uid-3", "uid-8"})
    forwarder = made(store, sink)
    async with running(forwarder):
        await store.put(events(range(10)))
        await forwarder.drain()
    assert sink.got == uids(number for number in range(10) if number not in {3, 8})
    assert await store.dead_number("a") == 2
    assert max(map(sink.batches.count, sink.batches)) == 1


async def test_what_was_refused_by_name_is_not_sent_again_with_what_is_refused_as_a_whole(
    store: Store,
) -> None:
    sink = Receiver(bad={"uid-1"}, unsaid={"uid-8"}, most=4)
    sink.unsaid_from = 2
    forwarder = made(store, sink)
    async with running(forwarder):
        await store.put(events(range(10)))
        await forwarder.drain()
    assert sink.got == uids(number for number in range(10) if number not in {1, 8})
    assert forwarder.progress.dead == 2
    assert sum("uid-1" in batch for batch in sink.batches) == 1


async def test_what_was_not_taken_now_is_sent_again_and_nothing_else(store: Store) -> None:
    sink = Receiver(most=4)
    async with running(made(store, sink)):
        await store.put(events(range(10)))
        await sink.has(10)
    assert sink.got == uids(range(10))
    assert [len(batch) for batch in sink.batches] == [10, 6, 2]


async def test_a_dead_letter_is_sent_again_when_somebody_wants_it(
    store: Store, tmp_path: Path
) -> None:
    sink = Receiver(bad={"uid-1"})
    # One that waits for fuller batches does not wait with a dead letter.
    forwarder = made(store, sink, seconds=3600.0, events=1)
    async with running(forwarder):
        await store.put(events([1]))
        await asyncio.wait_for(_has_dead(forwarder, 1), 10)
        again(tmp_path)
        await sink.tried(2)
        await asyncio.wait_for(_none_again(store), 10)
        sink.bad = set()
        again(tmp_path)
        await sink.has(1)
        await asyncio.wait_for(_has_dead(forwarder, 0), 10)
    assert await store.dead_number("a") == 0


async def _none_again(store: Store) -> None:
    while await store.dead("a", events=1):  # noqa: ASYNC110 - the same
        await asyncio.sleep(0.001)


async def _has_dead(forwarder: Forwarder, number: int) -> None:
    while forwarder.progress.dead != number:  # noqa: ASYNC110 - nobody else waits for it
        await asyncio.sleep(0.001)


def again(folder: Path) -> None:
    with closing(sqlite3.connect(folder / FILE)) as other, other:
        other.execute("UPDATE dead SET is_again = 1")


async def test_a_checkpoint_is_gone_on_from(store: Store) -> None:
    await store.put(events(range(5)))
    first, second = Receiver(), Receiver()
    forwarder = made(store, first)
    async with running(forwarder):
        await forwarder.drain()
    await store.put(events(range(5, 7)))
    async with running(made(store, second)):
        await second.has(2)
    assert second.got == uids([5, 6])


async def test_a_batch_that_was_being_sent_is_sent_again_with_the_same_events(
    store: Store,
) -> None:
    """For a sink that knows a batch by its events: it is the same one then."""
    # A number that is none of any event's: one that was put again may leave such.
    await store.put(events([0]))
    await store.put(events([0, 1, 2]))
    cut, whole = Receiver(stuck=True, repeats_batches=True), Receiver(repeats_batches=True)
    async with running(made(store, cut)):
        await cut.tried(1)
    await store.put(events(range(3, 6)))
    async with running(made(store, whole)):
        await whole.has(6)
    assert cut.batches == [uids(range(3))]
    assert whole.batches == [uids(range(3)), uids(range(3, 6))]


async def test_a_sink_that_is_greeted_gets_that_first_each_time_it_is_opened(store: Store) -> None:
    lines: list[bytes] = []

    class Keeping(Receiver):
        async def deliver(self, messages: Any) -> Any:
            outcome = await super().deliver(messages)
            lines.extend(message.line for message in messages)
            return outcome

    sink = Keeping()
    forwarder = made(store, sink)
    forwarder.greet(b"hello")
    async with running(forwarder):
        await sink.tried(1)  # though there is no event
        await store.put(events([1]))
        await forwarder.drain()
        sink.down = True
        await store.put(events([2]))
        await sink.tried(3)
        sink.down = False
        await asyncio.wait_for(forwarder.drain(), 10)
    assert lines == [b"hello", event(1), b"hello", event(2)]
    assert forwarder.progress.delivered == 2


async def test_a_sink_gets_what_it_wants_as_it_wants_it(store: Store) -> None:
    lines: list[bytes] = []

    class Keeping(Receiver):
        async def deliver(self, messages: Any) -> Any:
            lines.extend(message.line for message in messages)
            return await super().deliver(messages)

    def told(line: bytes) -> bytes | None:
        return None if b"uid-1" in line else line.upper()

    sink = Keeping()
    forwarder = Forwarder(
        "a", sink, store, told=told, pace=Pace(), patiently=Patience(asyncio.Event())
    )
    async with running(forwarder):
        await store.put(events(range(3)))
        await forwarder.drain()
        await store.put(events([1, 10]))
        await forwarder.drain()
    assert lines == [event(0).upper(), event(2).upper()]
    assert await store.checkpoint("a") == (store.end, None)


async def test_a_sink_that_is_gone_for_good_ends_its_forwarder(store: Store) -> None:
    class Gone(Receiver):
        async def deliver(self, _: Any) -> Any:
            raise ClosedError("the reader is gone")

    await store.put(events(range(3)))
    with pytest.raises(ClosedError, match="the reader is gone"):
        await made(store, Gone()).run()
    assert await store.checkpoint("a") == (0, None)


async def test_a_mistake_in_a_sink_is_told_and_tried_again(store: Store) -> None:
    class Mistaken(Receiver):
        async def deliver(self, messages: Any) -> Any:
            if len(self.batches) < 2:
                self.batches.append([])
                raise KeyError("not there")
            return await super().deliver(messages)

    sink = Mistaken()
    async with running(made(store, sink)):
        await store.put(events(range(3)))
        await sink.has(3)
    assert sink.got == uids(range(3))


async def test_who_asks_to_be_left_alone_is_left_alone(store: Store) -> None:
    tried: list[float] = []

    class Busy(Receiver):
        async def deliver(self, messages: Any) -> Outcome:
            tried.append(time.monotonic())
            if len(tried) == 1:
                raise DeliveryError("too many requests", after_seconds=0.4)
            return await super().deliver(messages)

    sink = Busy()
    await store.put(events(range(3)))
    async with running(made(store, sink)):
        await sink.has(3)
    assert tried[1] - tried[0] >= 0.4


async def test_a_sink_that_is_down_is_left_at_once_when_it_is_told_to(store: Store) -> None:
    sink = Receiver(down=True)
    forwarder = made(store, sink, retry_seconds=3600.0)
    running_ = asyncio.create_task(forwarder.run())
    await store.put(events(range(3)))
    while not forwarder.progress.failures:  # noqa: ASYNC110 - nobody else waits
        await asyncio.sleep(0.001)
    forwarder.leave()
    await asyncio.wait_for(running_, 10)
    assert await store.checkpoint("a") == (0, None)


async def test_a_mistake_in_closing_a_sink_ends_nothing_else(store: Store) -> None:
    class Mistaken(Receiver):
        async def close(self) -> None:
            await super().close()
            raise KeyError("no such thing")

    sink = Mistaken()
    async with running(made(store, sink)):
        await store.put(events([1]))
        await sink.has(1)
        sink.down = True
        await store.put(events([2]))
        await sink.tried(2)
        sink.down = False
        await sink.has(2)
    assert sink.got == uids([1, 2])
    assert sink.opened == sink.closed == 2


async def test_a_batch_whose_events_were_removed_is_passed_by_and_nothing_else(
    store: Store, tmp_path: Path
) -> None:
    await store.put(events(range(3)))
    cut, whole = Receiver(stuck=True, repeats_batches=True), Receiver(repeats_batches=True)
    async with running(made(store, cut)):
        await cut.tried(1)
    with closing(sqlite3.connect(tmp_path / FILE)) as other, other:
        other.execute("DELETE FROM event")
    await store.put(events(range(3, 6)))
    async with running(made(store, whole)):
        await whole.has(3)
    assert whole.got == uids(range(3, 6))


async def test_forwarder_does_not_wait_for_events_that_were_all_removed(
    store: Store, tmp_path: Path
) -> None:
    await store.put(events(range(3)))
    with closing(sqlite3.connect(tmp_path / FILE)) as other, other:
        other.execute("DELETE FROM event")
    forwarder = made(store, Receiver())
    async with running(forwarder):
        await asyncio.wait_for(forwarder.drain(), 10)
        assert forwarder.waiting == 0


async def test_events_that_were_removed_before_their_time_are_passed_by(tmp_path: Path) -> None:
    sink = Receiver()
    async with Store(tmp_path / "small", most_bytes=1 << 20, drops=True) as store:
        await store.register(["a"])
        for number in range(600):
            await store.put([event(number, 5000)])
        forwarder = made(store, sink)
        async with running(forwarder):
            await forwarder.drain()
    assert sink.got == uids(range(600 - len(sink.got), 600))


async def test_messages_are_told_by_their_uid(store: Store) -> None:
    found: list[Message] = []

    class Keeping(Receiver):
        async def deliver(self, messages: Any) -> Any:
            found.extend(messages)
            return await super().deliver(messages)

    await store.put(events([7]))
    sink = Keeping()
    async with running(made(store, sink)):
        await sink.has(1)
    assert [(each.uid, each.line) for each in found] == [("uid-7", event(7))]
    assert found[0].event()["metadata"]["uid"] == "uid-7"


async def test_what_can_not_be_told_is_a_dead_letter_until_it_can(store: Store) -> None:
    """Such as an event that a later version of the program has kept."""
    known = {"uid-0", "uid-2"}
    lines: list[bytes] = []

    class Kept(Receiver):
        async def deliver(self, messages: Sequence[Message]) -> Outcome:
            lines.extend(message.line for message in messages)
            return await super().deliver(messages)

    def told(line: bytes) -> bytes:
        if orjson.loads(line)["metadata"]["uid"] not in known:
            raise KeyError("class_uid 9999")
        return line.replace(b"uid", b"UID")

    sink = Kept()
    pace, patience = Pace(retry_seconds=0.01), Patience(asyncio.Event())
    forwarder = Forwarder("a", sink, store, told=told, pace=pace, patiently=patience)
    await store.register(["a"])
    async with running(forwarder):
        await store.put(events(range(3)))
        await sink.has(2)
        assert sink.got == ["uid-0", "uid-2"]
        await forwarder.drain()
        assert (forwarder.progress.delivered, forwarder.progress.dead) == (2, 1)
        known.add("uid-1")
        retry(store.path, "a", None)
        await asyncio.wait_for(_has_dead(forwarder, 0), 10)
    assert lines == [line.replace(b"uid", b"UID") for line in (event(0), event(2), event(1))]
    assert await store.dead_number("a") == 0


async def test_forwarder_takes_an_error_of_the_system_for_a_sink_that_is_down(store: Store) -> None:
    class Full(Receiver):
        async def open(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    forwarder = made(store, Full())
    with pytest.raises(DeliveryError, match=r"^a: No space left on device$"):
        await forwarder._once([])
    forwarder = made(store, Full())
    async with running(forwarder):
        await store.put(events(range(1)))
        async with asyncio.timeout(20):
            while forwarder.progress.fault is None:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.005)
    assert forwarder.progress.fault == "a: No space left on device"


async def test_forwarder_gives_other_tasks_a_turn_while_it_converts_a_batch(store: Store) -> None:
    slices = 10
    converted = [0]

    def told(line: bytes) -> bytes:
        converted[-1] += 1
        return line

    async def take_turns() -> None:
        while True:
            converted.append(0)
            await asyncio.sleep(0)

    await store.put(events(range(slices * module._SLICE)))
    forwarder = Forwarder(
        "a", Receiver(), store, told=told, pace=Pace(), patiently=Patience(asyncio.Event())
    )
    other = asyncio.create_task(take_turns())
    async with running(forwarder):
        await forwarder.drain()
    other.cancel()
    assert sum(converted) == slices * module._SLICE
    assert max(converted) <= module._SLICE
    assert sum(map(bool, converted)) <= slices + 2  # a turn costs time


async def test_forwarder_has_no_events_to_wait_for_behind_the_end_of_its_store(
    store: Store,
) -> None:
    forwarder = made(store, Receiver())
    forwarder.done = 5
    assert forwarder.waiting == 0
