"""Events that a sink refuses, and their retries."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import orjson

from ocsf_nft.delivery.forwarder import Forwarder
from ocsf_nft.delivery.sink_db import path_of, retry_dead_letters
from ocsf_nft.delivery.sinks.base import BatchResult, BatchSettings, Message
from ocsf_nft.state.retry_until_writable import StorageRetrier
from ocsf_nft.state.state_db import FILE
from tests.delivery.forwarding import make_forwarder, running
from tests.delivery.receiver import Receiver, event, events, uids

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest

    from ocsf_nft.delivery.sink_db import DeadLetter
    from tests.delivery.stores import Store


async def test_forwarder_sends_dead_letters_of_an_earlier_run_again(
    store: Store, tmp_path: Path
) -> None:
    earlier = make_forwarder(store, Receiver(bad={"uid-1"}))
    async with running(earlier):
        await store.put(events([1]))
        await asyncio.wait_for(earlier.drain(), 60)
    request_retry(tmp_path)
    sink = Receiver()
    async with running(make_forwarder(store, sink)):
        await sink.has(1)


async def test_forwarder_counts_dead_letters_again_and_checks_them_once_a_second(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Receiver(bad={"uid-0"})
    forwarder = make_forwarder(store, sink)
    dead, checked = store.sinks.dead_letters_to_retry, 0

    def counting(sink: str, events: int) -> list[DeadLetter]:
        nonlocal checked
        checked += 1
        return dead(sink, events)

    monkeypatch.setattr(store.sinks, "dead_letters_to_retry", counting)
    begun = time.monotonic()
    async with running(forwarder):
        for number in range(20):
            await store.put([event(number)])
            await sink.tried(number + 1)
        await asyncio.wait_for(_has_dead(forwarder, 1), 60)
        assert checked <= 1 + (time.monotonic() - begun)
        with closing(sqlite3.connect(path_of(tmp_path / FILE))) as other, other:
            other.execute("DELETE FROM dead")
        await asyncio.wait_for(_has_dead(forwarder, 0), 60)


async def test_refused_event_becomes_a_dead_letter_and_the_others_are_delivered(
    store: Store,
) -> None:
    sink = Receiver(bad={"uid-3"})
    forwarder = make_forwarder(store, sink)
    async with running(forwarder):
        await store.put(events(range(8)))
        await sink.has(7)
        await forwarder.drain()
        assert (forwarder.progress.refused, forwarder.progress.dead) == (1, 1)
        assert forwarder.progress.delivered == 7
    assert store.sinks.count_dead_letters("a") == 1
    assert store.sinks.checkpoint("a") == (8, None)


async def test_refused_batch_is_halved_until_the_events_at_fault_are_alone(store: Store) -> None:
    sink = Receiver(poisonous={"uid-3", "uid-8"})
    forwarder = make_forwarder(store, sink)
    async with running(forwarder):
        await store.put(events(range(10)))
        await forwarder.drain()
    assert sink.got == uids(number for number in range(10) if number not in {3, 8})
    assert store.sinks.count_dead_letters("a") == 2
    assert max(map(sink.batches.count, sink.batches)) == 1


async def test_individually_refused_event_is_not_sent_again_with_a_refused_batch(
    store: Store,
) -> None:
    sink = Receiver(bad={"uid-1"}, poisonous={"uid-8"}, most=4)
    sink.poisonous_from = 2
    forwarder = make_forwarder(store, sink)
    async with running(forwarder):
        await store.put(events(range(10)))
        await forwarder.drain()
    assert sink.got == uids(number for number in range(10) if number not in {1, 8})
    assert forwarder.progress.dead == 2
    assert sum("uid-1" in batch for batch in sink.batches) == 1


async def test_dead_letter_is_sent_again_when_a_retry_is_requested(
    store: Store, tmp_path: Path
) -> None:
    sink = Receiver(bad={"uid-1"})
    # A forwarder that waits for fuller batches does not delay a dead letter.
    forwarder = make_forwarder(store, sink, seconds=3600.0, events=1)
    async with running(forwarder):
        await store.put(events([1]))
        await asyncio.wait_for(_has_dead(forwarder, 1), 60)
        request_retry(tmp_path)
        await sink.tried(2)
        await asyncio.wait_for(_no_retry_requested(store), 60)
        sink.bad = set()
        request_retry(tmp_path)
        await sink.has(1)
        await asyncio.wait_for(_has_dead(forwarder, 0), 60)
    assert store.sinks.count_dead_letters("a") == 0


async def _no_retry_requested(store: Store) -> None:
    while store.sinks.dead_letters_to_retry("a", 1):  # noqa: ASYNC110 - no event announces it
        await asyncio.sleep(0.001)


async def _has_dead(forwarder: Forwarder, number: int) -> None:
    while forwarder.progress.dead != number:  # noqa: ASYNC110 - no event announces it
        await asyncio.sleep(0.001)


def request_retry(folder: Path) -> None:
    with closing(sqlite3.connect(path_of(folder / FILE))) as other, other:
        other.execute("UPDATE dead SET is_again = 1")


async def test_event_that_cannot_be_converted_is_a_dead_letter_until_it_can(store: Store) -> None:
    """An example is an event that a later version of the program has stored."""
    known = {"uid-0", "uid-2"}
    lines: list[bytes] = []

    class Recording(Receiver):
        async def deliver(self, messages: Sequence[Message]) -> BatchResult:
            lines.extend(message.line for message in messages)
            return await super().deliver(messages)

    def convert(line: bytes) -> bytes:
        if orjson.loads(line)["metadata"]["uid"] not in known:
            raise KeyError("class_uid 9999")
        return line.replace(b"uid", b"UID")

    sink = Recording()
    batch_settings, retrier = BatchSettings(retry_seconds=0.01), StorageRetrier(asyncio.Event())
    forwarder = Forwarder(
        "a",
        sink,
        store.stream,
        store.sinks,
        convert=convert,
        batch_settings=batch_settings,
        retrier=retrier,
    )
    await store.register(["a"])
    async with running(forwarder):
        await store.put(events(range(3)))
        await sink.has(2)
        assert sink.got == ["uid-0", "uid-2"]
        await forwarder.drain()
        assert (forwarder.progress.delivered, forwarder.progress.dead) == (2, 1)
        known.add("uid-1")
        retry_dead_letters(store.path, "a", None)
        await asyncio.wait_for(_has_dead(forwarder, 0), 60)
    assert lines == [line.replace(b"uid", b"UID") for line in (event(0), event(2), event(1))]
    assert store.sinks.count_dead_letters("a") == 0
