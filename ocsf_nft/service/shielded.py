"""Protection of work that must be completed even if its task is cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Executor

T = TypeVar("T")


async def run_shielded(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``work``; one cancellation of the calling task does not stop ``work``.

    After a cancellation, wait for the end of ``work``. Then raise the error of ``work``, or
    CancelledError if ``work`` has no error. A second cancellation is raised at once, while
    ``work`` continues.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task])  # asyncio.shield would log an error after a cancellation
    except asyncio.CancelledError:
        # The work may wait for a thread, which can't be cancelled.
        await asyncio.wait([task])
        task.result()  # an error of the work comes before the cancellation
        raise
    return task.result()


async def run_in_pool(pool: Executor | None, job: Callable[[], T]) -> T:
    """Run ``job`` in a thread of ``pool`` (None for asyncio's own), see :func:`run_shielded`."""

    async def run() -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, job)

    return await run_shielded(run())
