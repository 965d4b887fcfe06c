"""Helpers that read from a live source in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.record import Batch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ocsf_nft.record import Record
    from ocsf_nft.sources.base import Source
    from ocsf_nft.sources.nflog import Nflog

_QUIET_SECONDS = 0.15
_TIMEOUT_SECONDS = 60.0
#: Iterations of the event loop in which a source reads what it has already.
_LAST_TURNS = 20


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
    """Return everything read until only cursors arrive for ``seconds``; ends the iteration.

    A busy machine may hold this process up for longer than ``seconds``, so there is a last look
    after that time.
    """
    so_far = Batch()
    quiet_at = time.monotonic() + seconds
    while True:
        reading = asyncio.ensure_future(anext(batches))
        await asyncio.wait({reading}, timeout=max(0.0, quiet_at - time.monotonic()))
        is_last = time.monotonic() >= quiet_at
        for _ in range(_LAST_TURNS):
            if not reading.done():
                await asyncio.sleep(0)
        if not reading.done():
            reading.cancel()
            await asyncio.wait({reading})
            return so_far
        batch = reading.result()
        so_far = joined(so_far, batch)
        if batch.records or batch.gaps or batch.rejected:
            quiet_at = time.monotonic() + seconds
        elif is_last:
            return so_far


async def assert_nothing_left_open(source: Source) -> None:
    """Assert that a cancelled reader leaves no descriptor and no thread open."""

    def open_resources() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208 - shorter

    entered = asyncio.Event()

    async def read() -> None:
        async with source:
            entered.set()
            async for _ in source.batches():
                pass

    await asyncio.to_thread(int)  # the event loop keeps a thread for later calls
    before = open_resources()
    task = asyncio.ensure_future(read())
    async with asyncio.timeout(60):
        await entered.wait()
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
    """Return the records up to a matching one, or up to the timeout of a minute.

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
    """Return whether the rule refuses a packet of the protocol within a minute."""
    found = await until_found(
        source, lambda record: (record.rule, record.protocol) == (rule, protocol)
    )
    return any((record.rule, record.protocol) == (rule, protocol) for record in found)
