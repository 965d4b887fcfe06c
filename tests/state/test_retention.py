"""Limits for the size and age of stored events, and the order of removal."""

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

from ocsf_nft.delivery.sink_db import RefusedEvent
from ocsf_nft.state.archive import Archive
from ocsf_nft.state.change import Change
from ocsf_nft.state.dropped_events import DroppedEvents
from ocsf_nft.state.retention import FullError
from ocsf_nft.state.state_db import FILE, StateDatabase
from tests.delivery.receiver import event, events, uids
from tests.delivery.stores import Store, fill, stored_uids

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from ocsf_nft.errors import DeliveryError


async def put_until(store: Store, error: type[DeliveryError], sentence: str, size: int) -> int:
    """Store event after event until that fails; return the number of stored events."""
    first = store.end
    try:
        for number in range(first, first + 10_000):
            await store.put([event(number, size)])
    except error as raised:
        if re.search(sentence, str(raised)):
            return store.end - first
        raise
    pytest.fail("it never failed")


async def test_events_that_every_sink_has_are_removed_for_new_ones(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE, max_bytes=1 << 20) as store:
        await store.register(["a", "b"])
        for number in range(0, 6000, 10):
            await store.put([event(each, 500) for each in range(number, number + 10)])
            await store.acknowledge("a", store.end)
            await store.acknowledge("b", store.end)
            assert store.state.database.retention.used_bytes <= (1 << 20) + (1 << 16)
        left = await stored_uids(store)
        assert store.state.database.retention.stored_events == len(left)
        assert left[-1] == "uid-5999"
        assert 0 < len(left) < 3000
        assert await store.dropped_after_sweep() == ()


async def test_store_is_full_until_every_sink_has_its_events(
    tmp_path: Path,
) -> None:
    async with Store(tmp_path / FILE, max_bytes=1 << 20) as store:
        await store.register(["a", "b"])
        number = await put_until(store, FullError, "sinks have not received yet", 5000)
        assert number > 150
        assert len(await stored_uids(store)) == number
        await store.acknowledge("a", store.end)
        with pytest.raises(FullError):
            await store.put([event(number)])
        await store.acknowledge("b", number // 2)
        await store.put([event(number)])
        assert (await stored_uids(store))[-1] == f"uid-{number}"
        assert (await stored_uids(store, number // 2))[0] == f"uid-{number // 2}"


async def test_store_with_drops_removes_the_oldest_and_counts_it_for_each_sink(
    tmp_path: Path,
) -> None:
    async with Store(tmp_path / FILE, max_bytes=1 << 20, drops=True) as store:
        await store.register(["a", "b"])
        for number in range(800):
            await store.put([event(number, 5000)])
        left = await stored_uids(store)
        assert left == uids(range(800 - len(left), 800))
        assert 100 < len(left) < 250, "and only as many as needed are removed"
        dropped = await store.dropped_after_sweep()
        assert dict(dropped) == {"a": 800 - len(left), "b": 800 - len(left)}
    async with Store(tmp_path / FILE) as store:
        assert await store.dropped_after_sweep() == dropped, "until it is reported"
        await store.state.commit(Change(reported=dropped))
        assert await store.dropped_after_sweep() == ()


async def test_dead_letters_use_only_a_part_of_the_disk(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE, max_bytes=8 << 20) as store:
        await store.register(["a"])
        for number in range(600):
            line = event(number, 5000)
            await store.put([line])
            await store.acknowledge("a", store.end, [RefusedEvent(f"uid-{number}", line, "no")])
        assert await store.dropped_after_sweep()
        stored = store.sinks.count_dead_letters("a")
        assert 100 < stored < 250
        assert await store.dropped_after_sweep() == (DroppedEvents("a", 600 - stored),)
        store.sinks.confirm_reported([DroppedEvents("a", 600 - stored)])
        assert await store.dropped_after_sweep() == ()


async def test_old_events_are_removed_and_counted_if_a_sink_needed_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store(tmp_path / FILE, max_seconds=60) as store:
        await store.register(["a", "b"])
        await store.put(events(range(3)))
        await store.acknowledge("a", 3, [RefusedEvent("uid-0", event(0), "no")])
        await store.acknowledge("b", 1)
        assert await store.dropped_after_sweep() == ()
        later_ns = time.monotonic_ns() + 61 * 10**9
        monkeypatch.setattr(time, "monotonic_ns", lambda: later_ns)
        await store.put([event(3)])
        dropped = await store.dropped_after_sweep()
        assert dropped == (DroppedEvents("b", 2), DroppedEvents("a", 1)), "b's events, a's letter"
        assert store.sinks.count_dead_letters("a") == 0
        assert await stored_uids(store) == ["uid-3"]


async def test_clock_jump_makes_no_event_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store(tmp_path / FILE, max_seconds=60) as store:
        await store.put(events(range(3)))
        century_ns = 100 * 366 * 86_400 * 10**9
        for jump in (century_ns, -century_ns):
            now_ns = time.time_ns() + jump
            monkeypatch.setattr(time, "time_ns", lambda now_ns=now_ns: now_ns)
            assert await store.dropped_after_sweep() == ()
            await store.put(events(range(3, 5)))
        assert await stored_uids(store) == uids(range(5))


async def test_small_disk_makes_room_from_events_that_every_sink_has(disk: Path) -> None:
    async with Store(disk / FILE) as store:
        await store.register(["a"])
        for number in range(0, 6000, 20):
            await store.put([event(each, 5000) for each in range(number, number + 20)])
            await store.acknowledge("a", store.end)
        assert (await stored_uids(store))[-1] == "uid-5999"
        assert await store.dropped_after_sweep() == ()


async def test_small_disk_removes_no_event_that_a_sink_needs(disk: Path) -> None:
    async with Store(disk / FILE) as store:
        await store.register(["a"])
        number = await put_until(store, FullError, "the disk is nearly full", 20_000)
        assert await stored_uids(store) == uids(range(number))
        await store.acknowledge("a", number)
        await store.put([event(number, 20_000)])
        assert await store.dropped_after_sweep() == ()


async def test_small_disk_with_drops_removes_the_oldest_and_counts_it(disk: Path) -> None:
    async with Store(disk / FILE, drops=True) as store:
        await store.register(["a"])
        for number in range(3000):
            await store.put([event(number, 20_000)])
        left = await stored_uids(store)
        assert left == uids(range(3000 - len(left), 3000))
        assert await store.dropped_after_sweep() == (DroppedEvents("a", 3000 - len(left)),)


def events_of_real_size(numbers: Iterable[int]) -> list[bytes]:
    """Return events as large as real ones; their uids are in random order in SQLite's index."""
    return [
        orjson.dumps({"metadata": {"uid": sha256(b"%d" % number).hexdigest()}, "pad": "x" * 1000})
        for number in numbers
    ]


async def _fill_store(store: Store, most: int) -> None:
    for number in range(0, most, 500):
        await store.put(events_of_real_size(range(number, number + 500)))


@pytest.mark.parametrize("drops", [False, True])
async def test_disk_filled_by_others_removes_nothing_if_that_does_not_help(
    large_disk: Path, drops: bool
) -> None:
    async with Store(large_disk / FILE, drops=drops) as store:
        await store.register(["a", "b"])
        await store.put(events(range(20)))
        await store.acknowledge("a", 20, [RefusedEvent("uid-0", event(0), "no")])
        fill(large_disk, left=10 << 20)
        with pytest.raises(FullError, match="the disk is nearly full"):
            await store.put(events(range(20, 30)))
        assert await stored_uids(store) == uids(range(20))
        assert store.sinks.count_dead_letters("a") == 1
        assert await store.dropped_after_sweep() == ()


async def test_large_store_makes_room_on_a_nearly_full_disk(large_disk: Path) -> None:
    """SQLite's log of a transaction needs room on that disk too."""
    async with Store(large_disk / FILE) as store:
        await store.register(["a"])
        await _fill_store(store, 80_000)
        await store.acknowledge("a", store.end)
    fill(large_disk, left=6 << 20)
    async with Store(large_disk / FILE) as store:
        for number in range(80_000, 83_000, 20):
            await store.put(events_of_real_size(range(number, number + 20)))
            await store.acknowledge("a", store.end)
        assert await store.dropped_after_sweep() == ()


async def test_old_events_are_removed_on_a_nearly_full_disk(
    large_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store(large_disk / FILE, max_seconds=60) as store:
        await store.register(["a"])
        await _fill_store(store, 80_000)
    fill(large_disk, left=6 << 20)
    async with Store(large_disk / FILE, max_seconds=60) as store:
        later_ns = time.monotonic_ns() + 61 * 10**9
        monkeypatch.setattr(time, "monotonic_ns", lambda: later_ns)
        assert await store.dropped_after_sweep() == (DroppedEvents("a", 80_000),)
        assert await stored_uids(store) == []


def opened(
    path: Path, max_bytes: int = 1 << 30, *, acknowledged: int = 0, drops: bool = False
) -> StateDatabase:
    """Return the database of a service with a sink that has acknowledged some events."""
    database = StateDatabase(path, max_bytes=max_bytes, max_seconds=60, drops=drops)
    database.open()
    database.retention.acknowledged = {"a": acknowledged}
    return database


def put(database: StateDatabase, lines: Sequence[bytes]) -> None:
    while database.retention.make_room():
        pass
    database.commit([Change(events=lines)])


def numbers(database: StateDatabase) -> list[int]:
    with Archive(database.path) as archive:
        return [stored.number for stored in archive.read(0)]


def test_store_is_full_at_its_limit_and_not_a_byte_before(tmp_path: Path) -> None:
    with closing(opened(tmp_path / FILE)) as database:
        put(database, [event(1)])
        used = database.retention.used_bytes
    with closing(opened(tmp_path / FILE, used)) as database, pytest.raises(FullError):
        put(database, [event(2)])
    with closing(opened(tmp_path / FILE, used + 1)) as database:
        put(database, [event(2)])
        assert numbers(database) == [1, 2]


def test_room_in_a_small_store_is_made_of_as_few_events_as_needed(tmp_path: Path) -> None:
    with closing(opened(tmp_path / FILE)) as database:
        for number in range(10):
            put(database, [event(number, 20_000)])
        used = database.retention.used_bytes
    with closing(opened(tmp_path / FILE, used, acknowledged=9)) as database:
        assert database.retention.stored_events == 10
        put(database, [event(10)])
        assert numbers(database) == [*range(2, 12)]


def test_retention_reserves_32_mib_or_a_quarter_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(opened(tmp_path / FILE)) as database:
        for total, reserve in ((1 << 40, 32 << 20), (128 << 20, 32 << 20), (100 << 10, 25 << 10)):
            set_free_bytes(monkeypatch, reserve, total)
            database.retention.make_room()
            set_free_bytes(monkeypatch, reserve - 1, total)
            with pytest.raises(FullError, match="the disk is nearly full"):
                database.retention.make_room()


def test_retention_drops_events_only_if_that_restores_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing, left in ((1, [1]), (0, [])):
        path = tmp_path / str(missing) / FILE
        with closing(opened(path, drops=True)) as database:
            put(database, [event(1)])
            set_free_bytes(monkeypatch, (32 << 20) - database.retention.used_bytes - missing)
            with pytest.raises(FullError):
                put(database, [event(2)])
            assert numbers(database) == left
        monkeypatch.undo()


def set_free_bytes(monkeypatch: pytest.MonkeyPatch, free: int, total: int = 1 << 40) -> None:
    disk = SimpleNamespace(f_bavail=free, f_frsize=1, f_blocks=total)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
