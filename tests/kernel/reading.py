"""Reading from a live source in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.record import Batch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ocsf_nft.record import Record
    from ocsf_nft.sources.base import Source
    from ocsf_nft.sources.nflog import Nflog

_QUIET_SECONDS = 0.15
_PATIENCE_SECONDS = 5.0


async def until(
    batches: AsyncIterator[Batch], enough: Callable[[Batch], bool], *, seconds: float = 120.0
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


async def must_leave_nothing_behind(source: Source) -> None:
    """Once its reading is cancelled, as many descriptors and threads are open as before."""

    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208 - shorter

    async def read() -> None:
        async with source:
            async for _ in source.batches():
                pass

    before = held()
    task = asyncio.ensure_future(read())
    await asyncio.sleep(0.05)
    assert held() > before
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert held() == before


def joined(one: Batch, other: Batch) -> Batch:
    return Batch(
        records=one.records + other.records,
        gaps=one.gaps + other.gaps,
        rejects=one.rejects + other.rejects,
        cursor=other.cursor or one.cursor,
    )


def lost(batch: Batch) -> int:
    return sum(gap.lost or 0 for gap in batch.gaps)


async def taken(source: Nflog, wanted: Callable[[Record], bool]) -> list[Record]:
    """What the source gives until a wanted record came, or it did not come in good time.

    All that comes with the wanted one is in it.
    """
    found: list[Record] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_SECONDS):
            async for batch in source.batches():
                assert not batch.rejects
                found += batch.records
                if any(map(wanted, batch.records)):
                    break
    return found


async def rest(source: Nflog) -> list[Record]:
    """What the source gives until nothing came for a while."""
    batch = await until_quiet(source.batches(), seconds=_QUIET_SECONDS)
    assert not batch.rejects
    return list(batch.records)


async def refused_at(source: Nflog, rule: str, protocol: int) -> bool:
    """Whether a packet of the protocol was soon refused by the rule."""
    found = await taken(source, lambda record: (record.rule, record.protocol) == (rule, protocol))
    return any((record.rule, record.protocol) == (rule, protocol) for record in found)
