"""Reading from a live source in bounded time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ocsf_nft.record import Batch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


async def until(
    batches: AsyncIterator[Batch], enough: Callable[[Batch], bool], *, seconds: float = 20.0
) -> Batch:
    """All that came, in one batch, once that is enough; raises TimeoutError."""
    so_far = Batch()
    async with asyncio.timeout(seconds):
        while not enough(so_far):
            so_far = joined(so_far, await anext(batches))
    return so_far


async def until_quiet(batches: AsyncIterator[Batch], *, seconds: float = 0.3) -> Batch:
    """All that comes until nothing but positions comes for so long; ends the iteration."""
    so_far = Batch()
    while True:
        try:
            async with asyncio.timeout(seconds):
                while True:
                    batch = await anext(batches)
                    so_far = joined(so_far, batch)
                    if batch.records or batch.gaps or batch.rejects:
                        break
        except TimeoutError:
            return so_far


def joined(one: Batch, other: Batch) -> Batch:
    return Batch(
        records=one.records + other.records,
        gaps=one.gaps + other.gaps,
        rejects=one.rejects + other.rejects,
        cursor=other.cursor or one.cursor,
    )


def lost(batch: Batch) -> int:
    return sum(gap.lost or 0 for gap in batch.gaps)
