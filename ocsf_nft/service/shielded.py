"""Protection of work that must be completed even if its task is cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


async def run_shielded(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end, even if this task is cancelled once; return the work's result.

    If this task was cancelled, raise CancelledError when the work has ended. An error of the work
    is raised in place of CancelledError. A second cancellation is raised at once, and the work
    continues without this task.

    The wait is necessary if a thread does the work, because a thread can't be cancelled. A stopping
    service must remove a fence that the thread installs, and deliver events that the thread stores.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        task.result()  # an error of the work comes before the cancellation
        raise
