"""Housekeeping of a run: removal of old events, and reports of dropped ones."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from ocsf_nft.delivery import sink_db
from ocsf_nft.service import housekeeping
from ocsf_nft.service.event_rendering import Reporter
from ocsf_nft.service.outlet import Outlet
from ocsf_nft.state.archive import Archive
from ocsf_nft.state.change import Change
from ocsf_nft.state.retention import FullError
from ocsf_nft.state.state_db import FILE
from tests.delivery.receiver import Receiver, event
from tests.service.delivering import Delivering
from tests.service.keeping import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.service.delivery_process import DeliveryProcess
    from ocsf_nft.service.health import Fault


def _process(delivery: Delivering) -> DeliveryProcess:
    """Return the delivery in place of a process that has it."""
    return cast("DeliveryProcess", delivery)


def _no_faults() -> tuple[Fault, ...]:
    return ()


async def test_full_store_is_swept_while_no_event_can_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "_SECONDS", 0.05)
    now_ns = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: now_ns)
    stop = asyncio.Event()
    down = Outlet(name="down", sink=Receiver(down=True))
    limits = {"max_bytes": 1 << 20, "max_seconds": 60}
    async with Delivering([down], tmp_path, stop, **limits) as delivery:
        store = delivery.store
        delivery.is_abandoned = True  # the end waits for no sink
        number = 0
        with contextlib.suppress(FullError):
            while True:
                store.database.make_room()
                store.database.commit([Change(events=[event(number, 500 if number else 0)])])
                number += 1
                now_ns += 10**6
        reporter = Reporter(store.commit, host=None)
        housekeeping_task = asyncio.create_task(
            housekeeping.run_housekeeping(store, _process(delivery), reporter, _no_faults)
        )
        now_ns += (
            60 * 10**9 - number * 10**6 + 10**6
        )  # one event is too old; its removal makes no room
        await _until(lambda: delivery.retrier.fault is not None)
        now_ns += 60 * 10**9
        await _until(lambda: reporter.events == 1)
        with Archive(store.database.path) as archive:
            left = archive.read(0)
        assert [row.number for row in left] == [number + 1], "the event that reports the others"
        async with asyncio.timeout(60):
            while await store.dropped_events():  # noqa: ASYNC110 - no other task waits
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
    async with Delivering([], tmp_path) as delivery:
        store = delivery.store
        monkeypatch.setattr(asyncio, "sleep", sleep)
        housekeeping_task = asyncio.create_task(
            housekeeping.run_housekeeping(
                store, _process(delivery), Reporter(store.commit, host=None), _no_faults
            )
        )
        async with asyncio.timeout(60):
            await many.wait()
        monkeypatch.undo()
        housekeeping_task.cancel()
    assert set(pauses) - {0} == {10.0}


@pytest.mark.parametrize("file", [Path(FILE), sink_db.path_of(Path(FILE))], ids=str)
async def test_damaged_file_is_reported_once_as_dropped_events(tmp_path: Path, file: Path) -> None:
    file = tmp_path / file
    file.write_bytes(b"no database" * 1000)
    sink = MemoryStore()
    reporter = Reporter(sink.commit, host=None)
    async with Delivering([], tmp_path) as delivery:
        housekeeping_task = asyncio.create_task(
            housekeeping.run_housekeeping(delivery.store, _process(delivery), reporter, _no_faults)
        )
        await _until(lambda: bool(sink.events))
        await housekeeping.report_dropped_events(
            delivery.store, _process(delivery), reporter, 1_000_000
        )
        housekeeping_task.cancel()
    (event_of_drop,) = sink.events
    assert f"{file} was damaged" in event_of_drop["status_detail"]
    assert "a new file was created" in event_of_drop["status_detail"]
    assert event_of_drop.get("count") is None


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110 - no other task waits
            await asyncio.sleep(0.01)
