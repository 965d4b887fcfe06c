"""Shield for work that must be completed although its task is cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


async def run_shielded(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end, even if this task is cancelled meanwhile; return the work's result.

    If this task was cancelled, raise CancelledError when the work has ended. A thread that does the
    work can't be cancelled: it may be installing a fence that a stopping service must remove
    afterwards. Events that it has stored must be delivered as well.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        task.result()  # an error of the work comes before the cancellation
        raise
