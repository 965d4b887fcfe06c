"""The event loop of a client library, in a thread of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ocsf_nft.delivery.sinks import aside
from ocsf_nft.delivery.sinks.aside import Aside

if TYPE_CHECKING:
    import pytest


async def test_aside_cancels_each_task_that_is_left_when_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aside, "_NOTICE_SECONDS", 60.0)
    ended: list[Any] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
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
