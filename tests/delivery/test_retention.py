"""How much a store keeps and for how long, and what goes first."""

from __future__ import annotations

import os
import re
import time
from contextlib import closing
from hashlib import sha256
from types import SimpleNamespace
from typing import TYPE_CHECKING

import orjson
import pytest

from ocsf_nft.delivery.event_db import FILE, EventDatabase, RefusedEvent
from ocsf_nft.delivery.retention import DroppedEvents, FullError
from ocsf_nft.delivery.store import Store
from tests.delivery.receiver import event, events, uids
from tests.delivery.stores import fill, held

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ocsf_nft.errors import DeliveryError


async def swept(store: Store) -> tuple[DroppedEvents, ...]:
    await store.sweep()
    return await store.dropped_events()


async def put_until(store: Store, error: type[DeliveryError], sentence: str, size: int) -> int:
    """Put event after event until that fails; how many were put."""
    first = store.end
    try:
        for number in range(first, first + 10_000):
            await store.put([event(number, size)])
    except error as raised:
        if re.search(sentence, str(raised)):
            return store.end - first
        raise
    pytest.fail("it never failed")


async def test_room_is_made_of_what_every_sink_has(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE, max_bytes=1 << 20) as store:
        await store.register(["a", "b"])
        for number in range(0, 6000, 10):
            await store.put([event(each, 500) for each in range(number, number + 10)])
            await store.acknowledge("a", store.end)
            await store.acknowledge("b", store.end)
            assert store.used_bytes <= (1 << 20) + (1 << 16)
        left = await held(store)
        assert left[-1] == "uid-5999"
        assert 0 < len(left) < 3000
        assert await swept(store) == ()


async def test_a_store_that_a_sink_still_needs_is_full_until_the_sink_has_it(
    tmp_path: Path,
) -> None:
    async with Store(tmp_path / FILE, max_bytes=1 << 20) as store:
        await store.register(["a", "b"])
        number = await put_until(store, FullError, "sinks have not received yet", 5000)
        assert number > 150
        assert len(await held(store)) == number
        await store.acknowledge("a", store.end)
        with pytest.raises(FullError):
            await store.put([event(number)])
        await store.acknowledge("b", number // 2)
        await store.put([event(number)])
        assert (await held(store))[-1] == f"uid-{number}"
        assert (await held(store, number // 2))[0] == f"uid-{number // 2}"


async def test_with_drops_the_oldest_goes_and_is_told_for_each_sink(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE, max_bytes=1 << 20, drops=True) as store:
        await store.register(["a", "b"])
        for number in range(800):
            await store.put([event(number, 5000)])
        left = await held(store)
        assert left == uids(range(800 - len(left), 800))
        assert 100 < len(left) < 250, "and no more of it than makes room"
        forgotten = await swept(store)
        assert dict(forgotten) == {"a": 800 - len(left), "b": 800 - len(left)}
    async with Store(tmp_path / FILE) as store:
        assert await swept(store) == forgotten, "until it is told"
        await store.confirm_reported(forgotten)
        assert await swept(store) == ()


async def test_dead_letters_go_before_what_a_sink_still_needs(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE, max_bytes=1 << 20, drops=True) as store:
        await store.register(["a", "b"])
        for number in range(50):
            line = event(number, 5000)
            await store.put([line])
            await store.acknowledge("a", store.end, [RefusedEvent(f"uid-{number}", line, "no")])
        while await store.count_dead_letters("a"):
            number += 1
            await store.put([event(number, 5000)])
            await store.acknowledge("a", store.end)
        assert await held(store) == uids(range(number + 1))
        assert await swept(store) == (DroppedEvents("a", 50),)


async def test_a_sink_that_refuses_everything_does_not_fill_the_store(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE, max_bytes=1 << 20) as store:
        await store.register(["a"])
        for number in range(600):
            line = event(number, 5000)
            await store.put([line])
            await store.acknowledge("a", store.end, [RefusedEvent(f"uid-{number}", line, "no")])
        kept = await store.count_dead_letters("a")
        assert 0 < kept < 600
        assert await swept(store) == (DroppedEvents("a", 600 - kept),)


async def test_what_is_too_old_goes_and_is_told_where_a_sink_needed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store(tmp_path / FILE, max_seconds=60) as store:
        await store.register(["a", "b"])
        await store.put(events(range(3)))
        await store.acknowledge("a", 3, [RefusedEvent("uid-0", event(0), "no")])
        await store.acknowledge("b", 1)
        assert await swept(store) == ()
        later_ns = time.monotonic_ns() + 61 * 10**9
        monkeypatch.setattr(time, "monotonic_ns", lambda: later_ns)
        await store.put([event(3)])
        assert await swept(store) == (DroppedEvents("a", 1), DroppedEvents("b", 2))
        assert await store.count_dead_letters("a") == 0
        assert await held(store) == ["uid-3"]


async def test_a_clock_that_jumps_makes_nothing_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store(tmp_path / FILE, max_seconds=60) as store:
        await store.put(events(range(3)))
        century_ns = 100 * 366 * 86_400 * 10**9
        for jump in (century_ns, -century_ns):
            now_ns = time.time_ns() + jump
            monkeypatch.setattr(time, "time_ns", lambda now_ns=now_ns: now_ns)
            assert await swept(store) == ()
            await store.put(events(range(3, 5)))
        assert await held(store) == uids(range(5))


async def test_on_a_small_disk_room_is_made_of_what_every_sink_has(disk: Path) -> None:
    async with Store(disk / FILE) as store:
        await store.register(["a"])
        for number in range(0, 6000, 20):
            await store.put([event(each, 5000) for each in range(number, number + 20)])
            await store.acknowledge("a", store.end)
        assert (await held(store))[-1] == "uid-5999"
        assert await swept(store) == ()


async def test_on_a_small_disk_nothing_is_removed_that_a_sink_needs(disk: Path) -> None:
    async with Store(disk / FILE) as store:
        await store.register(["a"])
        number = await put_until(store, FullError, "the disk is nearly full", 20_000)
        assert await held(store) == uids(range(number))
        await store.acknowledge("a", number)
        await store.put([event(number, 20_000)])
        assert await swept(store) == ()


async def test_on_a_small_disk_with_drops_the_oldest_goes_and_is_told(disk: Path) -> None:
    async with Store(disk / FILE, drops=True) as store:
        await store.register(["a"])
        for number in range(3000):
            await store.put([event(number, 20_000)])
        left = await held(store)
        assert left == uids(range(3000 - len(left), 3000))
        assert await swept(store) == (DroppedEvents("a", 3000 - len(left)),)


def real(numbers: Iterable[int]) -> list[bytes]:
    """As large as ours, and their uids are in no order: SQLite keeps them all over its index."""
    return [
        orjson.dumps({"metadata": {"uid": sha256(b"%d" % number).hexdigest()}, "pad": "x" * 1000})
        for number in numbers
    ]


async def _stored(store: Store, most: int) -> None:
    for number in range(0, most, 500):
        await store.put(real(range(number, number + 500)))


@pytest.mark.parametrize("drops", [False, True])
async def test_on_a_disk_that_others_fill_nothing_is_given_up_to_no_avail(
    large_disk: Path, drops: bool
) -> None:
    async with Store(large_disk / FILE, drops=drops) as store:
        await store.register(["a", "b"])
        await store.put(events(range(20)))
        await store.acknowledge("a", 20, [RefusedEvent("uid-0", event(0), "no")])
        fill(large_disk, left=10 << 20)
        with pytest.raises(FullError, match="the disk is nearly full"):
            await store.put(events(range(20, 30)))
        assert await held(store) == uids(range(20))
        assert await store.count_dead_letters("a") == 1
        assert await swept(store) == ()


async def test_a_large_store_makes_room_on_a_disk_that_is_nearly_full(large_disk: Path) -> None:
    """What SQLite keeps of a change on the disk besides must be had there."""
    async with Store(large_disk / FILE) as store:
        await store.register(["a"])
        await _stored(store, 80_000)
        await store.acknowledge("a", store.end)
    fill(large_disk, left=6 << 20)
    async with Store(large_disk / FILE) as store:
        for number in range(80_000, 83_000, 20):
            await store.put(real(range(number, number + 20)))
            await store.acknowledge("a", store.end)
        assert await swept(store) == ()


async def test_what_is_too_old_goes_on_a_disk_that_is_nearly_full(
    large_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store(large_disk / FILE, max_seconds=60) as store:
        await store.register(["a"])
        await _stored(store, 80_000)
    fill(large_disk, left=6 << 20)
    async with Store(large_disk / FILE, max_seconds=60) as store:
        later_ns = time.monotonic_ns() + 61 * 10**9
        monkeypatch.setattr(time, "monotonic_ns", lambda: later_ns)
        assert await swept(store) == (DroppedEvents("a", 80_000),)
        assert await held(store) == []


def opened(path: Path, max_bytes: int = 1 << 30, *, drops: bool = False) -> EventDatabase:
    database = EventDatabase(path, max_bytes=max_bytes, max_seconds=60, drops=drops)
    database.open()
    return database


def numbers(database: EventDatabase) -> list[int]:
    return [stored.number for stored in database.read(0, 1 << 20, 1 << 20, 1 << 40)]


def test_store_is_full_at_its_limit_and_not_a_byte_before(tmp_path: Path) -> None:
    with closing(opened(tmp_path / FILE)) as database:
        database.register(frozenset("a"))
        database.put([event(1)], [])
        used = database.used_bytes
    with closing(opened(tmp_path / FILE, used)) as database, pytest.raises(FullError):
        database.put([event(2)], [])
    with closing(opened(tmp_path / FILE, used + 1)) as database:
        database.put([event(2)], [])
        assert numbers(database) == [1, 2]


def test_room_in_a_small_store_is_made_of_as_few_events_as_needed(tmp_path: Path) -> None:
    with closing(opened(tmp_path / FILE)) as database:
        database.register(frozenset("a"))
        for number in range(10):
            database.put([event(number, 20_000)], [])
        database.acknowledge("a", 9, [])
        used = database.used_bytes
    with closing(opened(tmp_path / FILE, used)) as database:
        database.put([event(10)], [])
        assert numbers(database) == [*range(2, 12)]


def test_retention_reserves_32_mib_or_a_quarter_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(opened(tmp_path / FILE)) as database:
        for total, reserve in ((1 << 40, 32 << 20), (128 << 20, 32 << 20), (100 << 10, 25 << 10)):
            set_free_bytes(monkeypatch, reserve, total)
            database.put([], [])
            set_free_bytes(monkeypatch, reserve - 1, total)
            with pytest.raises(FullError, match="the disk is nearly full"):
                database.put([], [])


def test_retention_drops_events_only_if_that_restores_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing, left in ((1, [1]), (0, [])):
        path = tmp_path / str(missing) / FILE
        with closing(opened(path, drops=True)) as database:
            database.register(frozenset("a"))
            database.put([event(1)], [])
            set_free_bytes(monkeypatch, (32 << 20) - database.used_bytes - missing)
            with pytest.raises(FullError):
                database.put([event(2)], [])
            assert numbers(database) == left
        monkeypatch.undo()


def set_free_bytes(monkeypatch: pytest.MonkeyPatch, free: int, total: int = 1 << 40) -> None:
    disk = SimpleNamespace(f_bavail=free, f_frsize=1, f_blocks=total)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
