"""Protection of work that must be completed even if its task is cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


async def run_shielded(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end, even if the calling task is cancelled once.

    Without a cancellation, return the result of the work. After a cancellation, wait for the end of
    the work. Then raise the error of the work, or else CancelledError. After a second cancellation,
    raise CancelledError at once; the work continues. Use this function if the work waits for a
    thread, because a thread can't be cancelled.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        task.result()  # an error of the work comes before the cancellation
        raise
