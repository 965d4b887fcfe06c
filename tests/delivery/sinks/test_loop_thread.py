"""Event loop of a client library in a separate thread."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ocsf_nft.delivery.sinks import loop_thread
from ocsf_nft.delivery.sinks.loop_thread import LoopThread

if TYPE_CHECKING:
    import pytest


async def test_loop_thread_cancels_all_tasks_when_it_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_thread, "_CANCEL_SECONDS", 60.0)
    ended: list[Any] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)  # so that stop() must wait
            ended.append(asyncio.current_task())
            raise

    async def start_task() -> asyncio.Task[None]:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        return task

    thread = LoopThread("library")
    thread.start()
    task = await thread.run(start_task())
    async with asyncio.timeout(60):
        await thread.stop()
    assert ended == [task]


async def test_loop_thread_logs_no_error_of_a_callback(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        asyncio.get_running_loop().call_soon(int, "not a number")
        await asyncio.sleep(0)

    thread = LoopThread("library")
    thread.start()
    await thread.run(fail())
    await thread.stop()
    assert caplog.records == []
