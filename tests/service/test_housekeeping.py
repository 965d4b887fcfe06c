"""Housekeeping of a run: removal of old events, and reports of dropped ones."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from ocsf_nft.delivery.event_db import FILE
from ocsf_nft.delivery.retention import FullError
from ocsf_nft.delivery.retry_until_writable import StorageRetrier
from ocsf_nft.delivery.store import Store
from ocsf_nft.service import housekeeping
from ocsf_nft.service.event_rendering import Reporter
from ocsf_nft.service.sink_delivery import Outlet, SinkDelivery
from tests.delivery.receiver import Receiver, event
from tests.service.keeping import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest


async def test_full_store_is_swept_while_no_event_can_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "_SECONDS", 0.05)
    now_ns = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: now_ns)
    store = Store(tmp_path / FILE, max_bytes=1 << 20, max_seconds=60)
    stop = asyncio.Event()
    down = Outlet(name="down", sink=Receiver(down=True))
    retrier = StorageRetrier(stop)
    async with SinkDelivery([down], store, retrier) as delivery:
        delivery.undrained.add("down")
        number = 0
        with contextlib.suppress(FullError):
            while True:
                await store.put([event(number, 500)])
                number += 1
                now_ns += 10**6
        reporter = Reporter(delivery.store_events, host=None)
        housekeeping_task = asyncio.create_task(housekeeping.run_housekeeping(delivery, reporter))
        now_ns += (
            60 * 10**9 - number * 10**6 + 10**6
        )  # one event is too old; its removal makes no room
        await _until(lambda: retrier.fault is not None)
        now_ns += 60 * 10**9
        await _until(lambda: reporter.events == 1)
        left = await store.read(0, events=1 << 20, size=1 << 30)
        assert [row.number for row in left] == [number + 1], "the event that reports the others"
        async with asyncio.timeout(60):
            while await delivery.dropped_events():  # noqa: ASYNC110 - no other task waits
                await asyncio.sleep(0.01)
        housekeeping_task.cancel()
        stop.set()


async def test_housekeeping_sweeps_and_reports_every_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    many = asyncio.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            many.set()
        await asyncio.Event().wait() if many.is_set() else await _sleep(0)

    _sleep = asyncio.sleep
    store = Store(tmp_path / FILE, max_bytes=1 << 20, max_seconds=60)
    async with SinkDelivery([], store, StorageRetrier(asyncio.Event())) as delivery:
        monkeypatch.setattr(asyncio, "sleep", sleep)
        housekeeping_task = asyncio.create_task(
            housekeeping.run_housekeeping(delivery, Reporter(delivery.store_events, host=None))
        )
        async with asyncio.timeout(60):
            await many.wait()
        monkeypatch.undo()
        housekeeping_task.cancel()
    assert set(pauses) == {10.0}


async def test_damaged_store_is_reported_once_as_dropped_events(tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.write_bytes(b"no database" * 1000)
    sink = MemoryStore()
    reporter = Reporter(sink.store, host=None)
    async with SinkDelivery([], Store(file), StorageRetrier(asyncio.Event())) as delivery:
        until_ns = await housekeeping.report_dropped_events(delivery, reporter, 1_000_000)
        assert abs(time.time_ns() - until_ns) < 60 * 10**9
        await housekeeping.report_dropped_events(delivery, reporter, until_ns)
    (event_of_drop,) = sink.events
    assert f"{file} is damaged" in event_of_drop["status_detail"]
    assert "a new file was created" in event_of_drop["status_detail"]
    assert event_of_drop.get("count") is None
    assert (event_of_drop["start_time"], event_of_drop["end_time"]) == (1, until_ns // 1_000_000)


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110 - no other task waits
            await asyncio.sleep(0.01)
