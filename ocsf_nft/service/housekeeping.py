"""Periodic work of a service: removes old events, and reports events that were dropped."""

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
    """Remove old events from the store every 10 s, and report events that the store dropped.

    A full store drops events that a sink has not acknowledged. This function runs until it is
    cancelled.
    """
    # Separate tasks: a report is an event too, and a full store accepts it only after a removal.
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
    """Emit an event for each sink whose stored events were dropped before the sink got them.

    Also emit an event if a damaged event database was renamed. The emitted events state the period
    from ``since_ns`` to the returned time (ns since the epoch).
    """
    dropped = await delivery.dropped_events()
    losses: list[tuple[str, int | None]] = [
        (f"the store had to remove them before sink {sink} acknowledged them", number)
        for sink, number in dropped
    ]
    if fault := delivery.store.fault():
        losses.append((fault, None))
    until_ns = time.time_ns()
    for reason, number in losses:
        # The event comes first: standard error may be a pipe without a reader.
        event = operational_events.events_dropped(
            reporter.context(), reason=reason, number=number, since_ns=since_ns, until_ns=until_ns
        )
        await reporter.emit(event)
        _log.error("events dropped", reason=reason, number=number)
    if dropped:
        await delivery.confirm_reported(dropped)
    return until_ns
