"""What a run looks after besides: the store, and what of it can't be kept."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft.ocsf import operational_events
from ocsf_nft.service.shielded import to_its_end

if TYPE_CHECKING:
    from ocsf_nft.service.event_rendering import Reporter
    from ocsf_nft.service.sink_delivery import Outlets

_log = structlog.get_logger()

_SECONDS: Final = 10.0


async def upkeep(kept: Outlets, reporter: Reporter) -> None:
    """Remove what is too old again and again, and tell of what sinks will never have.

    Each by itself: in a store that is full, there is room to tell once something was removed.
    """
    async with asyncio.TaskGroup() as group:
        group.create_task(_sweep(kept))
        group.create_task(_tell(kept, reporter))


async def _sweep(kept: Outlets) -> None:
    while True:
        await kept.sweep()
        await asyncio.sleep(_SECONDS)


async def _tell(kept: Outlets, reporter: Reporter) -> None:
    since_ns = time.time_ns()
    while True:
        since_ns = await to_its_end(tell_of_losses(kept, reporter, since_ns))
        await asyncio.sleep(_SECONDS)


async def tell_of_losses(kept: Outlets, reporter: Reporter, since_ns: int) -> int:
    """Tell of what has come since then; when that was told (ns since the epoch, UTC)."""
    forgotten = await kept.forgotten()
    lost: list[tuple[str, int | None]] = [
        (f"the store could not keep them until sink {sink} had them", number)
        for sink, number in forgotten
    ]
    if fault := kept.store.fault():
        lost.append((fault, None))
    until_ns = time.time_ns()
    for reason, number in lost:
        # The event first: standard error may be a pipe that nobody reads.
        event = operational_events.events_lost(
            reporter.context(), reason=reason, number=number, since_ns=since_ns, until_ns=until_ns
        )
        await reporter.emit(event)
        _log.error("events lost", reason=reason, number=number)
    if forgotten:
        await kept.told(forgotten)
    return until_ns
