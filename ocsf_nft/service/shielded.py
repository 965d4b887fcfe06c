"""Work that is not to be left half done."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


async def run_shielded(work: Coroutine[Any, Any, T]) -> T:
    """Let work that has begun end, before its task is cancelled.

    Its thread can't be cancelled, and may be putting a fence up that its run, told to stop, is
    about to take away; what it has kept as told is to be told.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        task.result()  # what it failed with is told before the cancellation
        raise
