"""What a run looks after besides: the store, and what of it can't be kept."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft.ocsf import operational_events
from ocsf_nft.service.shielded import run_shielded

if TYPE_CHECKING:
    from ocsf_nft.service.event_rendering import Reporter
    from ocsf_nft.service.sink_delivery import SinkDelivery

_log = structlog.get_logger()

_SECONDS: Final = 10.0


async def run_housekeeping(delivery: SinkDelivery, reporter: Reporter) -> None:
    """Remove what is too old again and again, and tell of what sinks will never have.

    Each by itself: in a store that is full, there is room to tell once something was removed.
    """
    async with asyncio.TaskGroup() as group:
        group.create_task(_sweep(delivery))
        group.create_task(_report(delivery, reporter))


async def _sweep(delivery: SinkDelivery) -> None:
    while True:
        await delivery.sweep()
        await asyncio.sleep(_SECONDS)


async def _report(delivery: SinkDelivery, reporter: Reporter) -> None:
    since_ns = time.time_ns()
    while True:
        since_ns = await run_shielded(report_dropped_events(delivery, reporter, since_ns))
        await asyncio.sleep(_SECONDS)


async def report_dropped_events(delivery: SinkDelivery, reporter: Reporter, since_ns: int) -> int:
    """Tell of what has come since then; when that was told (ns since the epoch, UTC)."""
    dropped = await delivery.dropped_events()
    losses: list[tuple[str, int | None]] = [
        (f"the store could not keep them until sink {sink} had them", number)
        for sink, number in dropped
    ]
    if fault := delivery.store.fault():
        losses.append((fault, None))
    until_ns = time.time_ns()
    for reason, number in losses:
        # The event first: standard error may be a pipe that nobody reads.
        event = operational_events.events_lost(
            reporter.context(), reason=reason, number=number, since_ns=since_ns, until_ns=until_ns
        )
        await reporter.emit(event)
        _log.error("events lost", reason=reason, number=number)
    if dropped:
        await delivery.confirm_reported(dropped)
    return until_ns
