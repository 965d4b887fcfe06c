"""Helpers that read from a live source in bounded time."""

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
_TIMEOUT_SECONDS = 5.0


async def until(
    batches: AsyncIterator[Batch], enough: Callable[[Batch], bool], *, seconds: float = 120.0
) -> Batch:
    """Return everything read, as one batch, once ``enough`` is true; raises TimeoutError."""
    so_far = Batch()
    async with asyncio.timeout(seconds):
        while not enough(so_far):
            so_far = joined(so_far, await anext(batches))
    return so_far


async def until_quiet(batches: AsyncIterator[Batch], *, seconds: float = 0.3) -> Batch:
    """Return everything read until only cursors arrive for ``seconds``; ends the iteration."""
    so_far = Batch()
    while True:
        try:
            async with asyncio.timeout(seconds):
                while True:
                    batch = await anext(batches)
                    so_far = joined(so_far, batch)
                    if batch.records or batch.gaps or batch.rejected:
                        break
        except TimeoutError:
            return so_far


async def assert_nothing_left_open(source: Source) -> None:
    """Assert that a cancelled reader leaves no descriptor and no thread open."""

    def open_resources() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208 - shorter

    async def read() -> None:
        async with source:
            async for _ in source.batches():
                pass

    before = open_resources()
    task = asyncio.ensure_future(read())
    await asyncio.sleep(0.05)
    assert open_resources() > before
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert open_resources() == before


def joined(one: Batch, other: Batch) -> Batch:
    return Batch(
        records=one.records + other.records,
        gaps=one.gaps + other.gaps,
        rejected=one.rejected + other.rejected,
        cursor=other.cursor or one.cursor,
    )


def dropped(batch: Batch) -> int:
    return sum(gap.dropped or 0 for gap in batch.gaps)


async def until_found(source: Nflog, is_match: Callable[[Record], bool]) -> list[Record]:
    """Return the records up to a matching one, or up to the timeout of 5 s.

    Records that arrive in the same batch as the matching one are included.
    """
    found: list[Record] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            async for batch in source.batches():
                assert not batch.rejected
                found += batch.records
                if any(map(is_match, batch.records)):
                    break
    return found


async def rest(source: Nflog) -> list[Record]:
    """Return the records until none arrives for 0.15 s."""
    batch = await until_quiet(source.batches(), seconds=_QUIET_SECONDS)
    assert not batch.rejected
    return list(batch.records)


async def refused_at(source: Nflog, rule: str, protocol: int) -> bool:
    """Return whether the rule refuses a packet of the protocol within 5 s."""
    found = await until_found(
        source, lambda record: (record.rule, record.protocol) == (rule, protocol)
    )
    return any((record.rule, record.protocol) == (rule, protocol) for record in found)
