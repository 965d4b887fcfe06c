"""Iteration over the events of a service, and what is repeated after a restart."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from ocsf_nft.delivery import sink_db
from ocsf_nft.service.delivery_process import DeliveryProcess
from ocsf_nft.service.iteration import Iteration
from ocsf_nft.state.change import Change
from ocsf_nft.state.retry_until_writable import StorageRetrier
from ocsf_nft.state.state_db import FILE
from ocsf_nft.state.state_store import StateStore
from tests.delivery.receiver import event, events, uids

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest


@contextlib.asynccontextmanager
async def iterating(
    folder: Path,
) -> AsyncIterator[tuple[StateStore, DeliveryProcess, Iteration]]:
    path = folder / FILE
    async with StateStore(path, StorageRetrier(asyncio.Event()), max_bytes=1 << 16) as store:
        iteration = Iteration(store, store.database.begin_iteration())
        async with DeliveryProcess(
            (),
            store,
            sinks=sink_db.path_of(path),
            max_bytes=1 << 20,
            max_seconds=60,
            iteration=iteration,
        ) as delivery:
            yield store, delivery, iteration


async def test_event_is_taken_when_the_next_one_is_requested(tmp_path: Path) -> None:
    async with iterating(tmp_path) as (store, delivery, iteration):
        await store.commit(Change(events=events(range(5))))
        found = iteration.events()
        taken = [(await anext(found))["metadata"]["uid"] for _ in range(3)]
        assert taken == uids(range(3))
        assert [each.waiting for each in delivery.sinks] == [3]
        delivery.is_abandoned = True
    async with iterating(tmp_path) as (_, delivery, iteration):
        found = iteration.events()
        again = [(await anext(found))["metadata"]["uid"] for _ in range(3)]
        assert again == uids(range(2, 5))
        last = asyncio.ensure_future(anext(found, None))
    # The end has waited for it.
    assert await last is None
    assert [(each.done, each.waiting, each.delivered) for each in delivery.sinks] == [(5, 0, 3)]


async def test_iteration_waits_for_events_and_ends_with_the_delivery(tmp_path: Path) -> None:
    async with iterating(tmp_path) as (store, delivery, iteration):

        async def iterate() -> list[str]:
            return [each["metadata"]["uid"] async for each in iteration.events()]

        found = asyncio.create_task(iterate())
        for number in range(250):
            await store.commit(Change(events=events(range(number, number + 1))))
        assert delivery.fault is None
    assert await found == uids(range(250))


async def test_first_iteration_begins_with_new_events(tmp_path: Path) -> None:
    async with StateStore(tmp_path / FILE, StorageRetrier(asyncio.Event())) as store:
        await store.commit(Change(events=events(range(3))))
    async with iterating(tmp_path) as (store, delivery, iteration):
        await store.commit(Change(events=events(range(3, 4))))
        delivery.is_abandoned = True
        assert (await anext(iteration.events()))["metadata"]["uid"] == "uid-3"


async def test_event_that_no_program_has_taken_is_not_removed_for_a_new_one(tmp_path: Path) -> None:
    async with iterating(tmp_path) as (store, delivery, iteration):
        await store.commit(Change(events=[event(each, 1000) for each in range(60)]))
        blocked = asyncio.create_task(store.commit(Change(events=[event(60, 1000)])))
        while store.retry.fault is None:  # noqa: ASYNC110 - no event announces it
            await asyncio.sleep(0.001)
        found = iteration.events()
        taken = [(await anext(found))["metadata"]["uid"] for _ in range(61)]
        await blocked
        assert taken == uids(range(61))
        delivery.is_abandoned = True


async def test_removed_events_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with iterating(tmp_path) as (store, delivery, iteration):
        await store.commit(Change(events=events(range(3))))
        monkeypatch.setattr(store.database.retention, "_max_ms", -1)
        store.database.retention.acknowledged = {}
        await store.sweep()
        found = asyncio.ensure_future(anext(iteration.events()))
        await asyncio.sleep(0)
        await store.commit(Change(events=events(range(3, 4))))
        assert (await found)["metadata"]["uid"] == "uid-3"
        delivery.is_abandoned = True
