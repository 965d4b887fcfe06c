"""Completion of work that must not stop halfway."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


async def run_shielded(work: Coroutine[Any, Any, T]) -> T:
    """Wait until work has ended, also if this task is cancelled meanwhile.

    Then raise the cancellation.

    The work's thread can't be cancelled. It may be installing a fence that a stopping service is
    about to remove. Events that it has stored must be delivered as well.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        task.result()  # an error of the work comes before the cancellation
        raise
