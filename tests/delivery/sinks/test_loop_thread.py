"""The event loop of a client library, in a thread of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ocsf_nft.delivery.sinks import loop_thread
from ocsf_nft.delivery.sinks.loop_thread import Aside

if TYPE_CHECKING:
    import pytest


async def test_aside_cancels_each_task_that_is_left_when_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_thread, "_NOTICE_SECONDS", 60.0)
    ended: list[Any] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)  # to be waited for
            ended.append(asyncio.current_task())
            raise

    async def leave() -> asyncio.Task[None]:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        return task

    thread = Aside("library")
    thread.begin()
    task = await thread.do(leave())
    async with asyncio.timeout(10):
        await thread.end()
    assert ended == [task]


async def test_aside_logs_no_error_of_a_callback(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        asyncio.get_running_loop().call_soon(int, "not a number")
        await asyncio.sleep(0)

    thread = Aside("library")
    thread.begin()
    await thread.do(fail())
    await thread.end()
    assert caplog.records == []
