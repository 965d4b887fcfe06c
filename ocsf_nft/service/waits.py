"""Waits of a sandbox's task, which a stop ends."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable


async def until_stop(stop: asyncio.Event, work: Awaitable[object]) -> bool:
    """Wait for ``work``, or until ``stop`` is set; return True if ``work`` has ended.

    Otherwise ``work`` is cancelled. Raises the errors of ``work``.
    """
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return working.done()
    finally:
        for each in (working, stopping):
            each.cancel()
        await asyncio.wait({working, stopping})


async def wait_for(event: asyncio.Event, seconds: float) -> None:
    """Wait until ``event`` is set, but not longer than ``seconds``."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
