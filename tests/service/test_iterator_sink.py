from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from ocsf_nft.delivery.envelope import Message
from ocsf_nft.service.iterator_sink import IteratorSink


def batch(*numbers: int) -> list[Message]:
    return [Message(str(number), orjson.dumps({"number": number})) for number in numbers]


async def take(sink: IteratorSink, number: int) -> list[Any]:
    taken: list[Any] = []
    async for event in sink.events():
        taken.append(event["number"])
        if len(taken) == number:
            break
    return taken


async def test_batch_is_delivered_when_the_next_event_is_requested() -> None:
    sink = IteratorSink()
    delivering = asyncio.create_task(sink.deliver(batch(1, 2)))
    events = sink.events()
    assert [(await anext(events))["number"] for _ in range(2)] == [1, 2]
    await asyncio.sleep(0)
    assert not delivering.done()
    asking = asyncio.ensure_future(anext(events))
    await asyncio.wait_for(delivering, 60)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def test_second_iteration_repeats_the_last_event_and_yields_the_rest() -> None:
    sink = IteratorSink()
    delivering = asyncio.create_task(sink.deliver(batch(1, 2, 3)))
    assert await take(sink, 2) == [1, 2]
    second_iteration = asyncio.create_task(take(sink, 9))
    await asyncio.wait_for(delivering, 60)
    sink.end()
    assert await asyncio.wait_for(second_iteration, 60) == [2, 3]


async def test_cancelled_batch_is_delivered_again_and_taken_once() -> None:
    sink = IteratorSink()
    cut = asyncio.create_task(sink.deliver(batch(1, 2)))
    await asyncio.sleep(0)
    cut.cancel()
    await asyncio.gather(cut, return_exceptions=True)
    again = asyncio.create_task(sink.deliver(batch(1, 2)))
    taking = asyncio.create_task(take(sink, 9))
    await asyncio.wait_for(again, 60)
    sink.end()
    assert await asyncio.wait_for(taking, 60) == [1, 2]


async def test_another_forwarder_can_use_the_same_sink() -> None:
    sink = IteratorSink()
    async with sink:
        pass
    async with sink:
        delivering = asyncio.create_task(sink.deliver(batch(1)))
        taking = asyncio.create_task(take(sink, 9))
        await asyncio.wait_for(delivering, 60)
    sink.end()
    assert await asyncio.wait_for(taking, 60) == [1]
    with pytest.raises(StopAsyncIteration):
        await anext(sink.events())


async def test_event_of_the_next_batch_is_not_dropped_if_a_batch_is_cancelled() -> None:
    sink = IteratorSink()
    cut = asyncio.create_task(sink.deliver(batch(1, 2)))
    events = sink.events()
    assert (await anext(events))["number"] == 1
    cut.cancel()
    await asyncio.gather(cut, return_exceptions=True)
    delivering = asyncio.create_task(sink.deliver(batch(3, 4)))
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        assert [(await anext(events))["number"] for _ in range(2)] == [3, 4]
        sink.end()
        assert [event async for event in events] == []
        await delivering
