"""Periodic work of a service.

It removes old events, and the records of sandboxes with deleted namespaces. It reports dropped
events and faults.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft import malloc_trim
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.ocsf import operational_events
from ocsf_nft.service.ended_sandboxes import forget_ended
from ocsf_nft.service.health import FaultEvents
from ocsf_nft.service.shielded import run_shielded
from ocsf_nft.state.change import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.service.delivery_process import DeliveryProcess
    from ocsf_nft.service.event_rendering import Reporter
    from ocsf_nft.service.health import Fault
    from ocsf_nft.state.dropped_events import DroppedEvents
    from ocsf_nft.state.state_store import StateStore

_log = structlog.get_logger()

_SECONDS: Final = 10.0
#: Pause between two checks. A namespace is deleted if two checks in succession do not find it.
_REAP_SECONDS: Final = 600.0
#: Pause between two returns of free memory to the system: a burst of packets has needed more.
_TRIM_SECONDS: Final = 600.0
_NOT_ACKNOWLEDGED: Final = "the store had to remove them before sink {} acknowledged them"
_REFUSED: Final = "sink {} refused them, and they were too old, or used too much of the disk"


async def run_housekeeping(
    store: StateStore,
    delivery: DeliveryProcess,
    reporter: Reporter,
    faults: Callable[[], Sequence[Fault]],
) -> None:
    """Remove old events from the store every 10 s, and report dropped events and faults.

    A full store drops events that a sink has not acknowledged. ``faults`` returns the faults of
    the service. This function runs until it is cancelled.
    """
    # Separate tasks: a report is an event too, and a full store accepts it only after a removal.
    async with asyncio.TaskGroup() as group:
        group.create_task(_sweep(store, delivery))
        group.create_task(_report(store, delivery, reporter))
        group.create_task(_report_faults(reporter, faults))
        group.create_task(_trim_memory())


async def _sweep(store: StateStore, delivery: DeliveryProcess) -> None:
    while True:
        await delivery.synchronize()
        await store.sweep()
        await asyncio.sleep(_SECONDS)


async def _report(store: StateStore, delivery: DeliveryProcess, reporter: Reporter) -> None:
    since_ns = time.time_ns()
    while True:
        since_ns = await run_shielded(report_dropped_events(store, delivery, reporter, since_ns))
        await asyncio.sleep(_SECONDS)


async def _report_faults(reporter: Reporter, faults: Callable[[], Sequence[Fault]]) -> None:
    events = FaultEvents(reporter)
    while True:
        await asyncio.sleep(_SECONDS)
        await run_shielded(events.update(faults(), time.time_ns(), time.monotonic_ns()))
        await run_shielded(reporter.end_quiet_findings())


async def _trim_memory() -> None:
    while True:
        await asyncio.sleep(_TRIM_SECONDS)
        malloc_trim.trim()  # a millisecond for 20 MB


async def report_dropped_events(
    store: StateStore, delivery: DeliveryProcess, reporter: Reporter, since_ns: int
) -> int:
    """Emit an event for each sink that did not get some dropped events.

    These are stored events, and dead letters: events that the sink refused. The emitted events
    state the period from ``since_ns`` to the returned time (ns since the epoch). Also emit an event
    for each damaged database that was replaced.
    """
    until_ns = time.time_ns()
    databases: tuple[StateStore | DeliveryProcess, ...] = (store, delivery)
    for database in databases:
        for report in await database.faults():
            await _emit(reporter, report, None, until_ns, until_ns)
            await database.confirm_fault(report)
    for each in await store.dropped_events():
        reason = _NOT_ACKNOWLEDGED.format(each.sink)
        # In one transaction, so that a killed run has reported it or has not.
        await _emit(reporter, reason, each.events, since_ns, until_ns, reported=(each,))
    dropped = await delivery.dropped_events()
    for sink, number in dropped:
        await _emit(reporter, _REFUSED.format(sink), number, since_ns, until_ns)
    if dropped:
        await delivery.confirm_reported(dropped)
    return until_ns


async def _emit(  # noqa: PLR0913 - the facts of an event
    reporter: Reporter,
    reason: str,
    number: int | None,
    since_ns: int,
    until_ns: int,
    *,
    reported: Sequence[DroppedEvents] = (),
) -> None:
    # The event comes first: standard error may be a pipe without a reader.
    event = operational_events.events_dropped(
        reporter.context(), reason=reason, number=number, since_ns=since_ns, until_ns=until_ns
    )
    await reporter.commit(Change(events=[event.to_json()], reported=reported))
    _log.error("events dropped", reason=reason, number=number)


async def reap(state: StateDirectory, store: StateStore, reporter: Reporter) -> None:
    """Remove the records and packet counts of sandboxes with deleted namespaces.

    A namespace is deleted if it had a name of ``ip netns`` and has it no more. Check every ten
    minutes, until cancelled. A sandbox that a run watches stays. The stored events of all sandboxes
    stay.
    """
    missing: dict[str, InstalledFence] = {}
    while True:
        await asyncio.sleep(_REAP_SECONDS)
        found = await asyncio.to_thread(_without_namespace, state)
        for name, installed in found.items():
            if missing.get(name) == installed:
                await run_shielded(_remove_record(name, installed, state, store, reporter))
        missing = found


def _without_namespace(state: StateDirectory) -> dict[str, InstalledFence]:
    """Return the records of sandboxes that no run watches, with deleted namespaces."""
    found: dict[str, InstalledFence] = {}
    try:
        for name in state.sandboxes():
            installed = _unwatched_record(name, state)
            if installed is not None and installed.namespace.is_deleted():
                found[name] = installed
    except OcsfNftError as error:
        _log.warning("records of fences can't be read", reason=str(error))
    return found


def _unwatched_record(name: str, state: StateDirectory) -> InstalledFence | None:
    try:
        return None if state.is_watched(name) else state.read(name)
    except OcsfNftError:  # `status` and `verify` report it
        return None


async def _remove_record(
    name: str,
    installed: InstalledFence,
    state: StateDirectory,
    store: StateStore,
    reporter: Reporter,
) -> None:
    try:
        with state.run_lock(name):  # no other run can begin to watch it meanwhile
            if not await forget_ended(name, installed, state, store, reporter):
                return
    except (OcsfNftError, OSError) as error:
        _log.warning("the record of a fence can't be removed", sandbox=name, reason=str(error))
    else:
        _log.info("record of a fence removed, its namespace is deleted", sandbox=name)
