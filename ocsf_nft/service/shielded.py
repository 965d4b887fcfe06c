"""Shield for work that must be completed although its task is cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


async def run_shielded(work: Coroutine[Any, Any, T]) -> T:
    """Wait until ``work`` has ended, also if this task is cancelled meanwhile; return its result.

    If this task was cancelled, raise CancelledError when the work has ended. The work's thread
    can't be cancelled. It may be installing a fence that a stopping service is about to remove.
    Events that it has stored must be delivered as well.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        task.result()  # an error of the work comes before the cancellation
        raise
