"""Protection of work that must be completed even if its task is cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


async def run_shielded(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end, even if the calling task is cancelled once; return its result.

    If the calling task is cancelled, wait for the end of the work and then raise CancelledError. If
    the work fails, raise its error in place of CancelledError. If the calling task is cancelled a
    second time, raise CancelledError at once. The work then continues without the calling task.

    The wait is necessary if a thread does the work, because a thread can't be cancelled. For
    example, a thread may be installing a fence when the service stops. The service can remove that
    fence only after the thread has ended.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        task.result()  # an error of the work comes before the cancellation
        raise
