"""From a source's batches to a sink's lines, counting what goes through."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf import notices
from ocsf_nft.ocsf.context import Context, Host
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.record import Batch, Gap, Reject

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ocsf_nft.delivery.sinks.base import Sink
    from ocsf_nft.ocsf.events import Event
    from ocsf_nft.sources.base import Source

_log = structlog.get_logger()

#: Records mapped before other tasks get a turn: about 2 ms of work.
_SLICE: Final = 64
#: A source is drained when it gave nothing for so long, and given up when it never ends.
_QUIET_SECONDS: Final = 0.2
_DRAIN_SECONDS: Final = 5.0
_COUNT_SECONDS: Final = 4.0


@dataclass(slots=True)
class Counts:
    """What went through. ``lost`` are the records whose number a gap told; ``gaps`` all gaps."""

    records: int = 0
    events: int = 0
    gaps: int = 0
    lost: int = 0
    rejects: dict[str, int] = field(default_factory=dict)


class Pipeline:
    """Maps what sources read and hands it to one sink, in order for each source.

    ``host`` is the machine that the records are of; None when that is not known, as for a log of
    another machine.
    """

    def __init__(self, sink: Sink, host: Host | None) -> None:
        self.host = host
        self.counts = Counts()
        self._gaps_by_reason: dict[str, int] = {}
        self._sink = sink
        self._mappers: dict[str | None, Mapper] = {}
        self._unknown = Mapper(Context(host=host))

    def know(self, sandbox: str, context: Context) -> None:
        """Map the records of a sandbox with what is known about it from now on."""
        self._mappers[sandbox] = Mapper(context)

    async def emit(self, event: Event) -> None:
        """Deliver an event about ourselves; raises DeliveryError."""
        await self._sink.deliver([event.to_json()])
        self.counts.events += 1

    async def pump(
        self, source: Source, stop: asyncio.Event, sandboxes: frozenset[str] | None = None
    ) -> None:
        """Deliver what a source reads until it ends.

        ``sandboxes`` are those whose records it can have: who may load rules there may name any
        sandbox in a log prefix, and a record of another one is a forgery. None allows all.

        When ``stop`` is set, what is waiting by then is still delivered; what can't be within some
        seconds is counted, and told as lost. Raises SourceError or DeliveryError.
        """
        batches = source.batches()
        stopping = asyncio.create_task(stop.wait())
        reading: asyncio.Task[Batch | None] | None = None
        deadline = None
        try:
            while True:
                reading = reading or asyncio.create_task(_next(batches))
                if deadline is None:
                    await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
                    if stop.is_set():
                        deadline = time.monotonic() + _DRAIN_SECONDS
                if not reading.done():
                    await asyncio.wait({reading}, timeout=_QUIET_SECONDS)
                    if not reading.done():
                        return
                batch, reading = reading.result(), None
                if batch is None:
                    return
                await self._deliver(_genuine(batch, sandboxes))
                if deadline is not None and time.monotonic() > deadline:
                    await self._give_up(batches)
                    return
        finally:
            stopping.cancel()
            if reading is not None:
                reading.cancel()
                await asyncio.wait({reading})

    async def _give_up(self, batches: AsyncIterator[Batch]) -> None:
        """Count what there is no time to deliver, and tell it as lost."""
        since_ns = time.time_ns()
        end = time.monotonic() + _COUNT_SECONDS
        # Only what is told is kept: there may be more records than memory for them.
        number, transport = 0, None
        gaps: list[Gap] = []
        is_all = False
        while not is_all and time.monotonic() < end:
            try:
                async with asyncio.timeout(_QUIET_SECONDS):
                    batch = await anext(batches, None)
            except TimeoutError:
                batch = None
            is_all = batch is None
            if batch is not None:
                number += len(batch.records)
                gaps += batch.gaps
                transport = batch.records[0].origin.transport if batch.records else transport
        if transport is not None:
            gaps.append(
                Gap(
                    transport=transport,
                    reason=f"stopped before {'' if is_all else 'at least '}{number} were delivered",
                    lost=number if is_all else None,
                    since_ns=since_ns,
                    until_ns=time.time_ns(),
                )
            )
        await self._deliver(Batch(gaps=tuple(gaps)))

    async def _deliver(self, batch: Batch) -> None:
        lines: list[bytes] = []
        for number, record in enumerate(batch.records, 1):
            mapper = self._mappers.get(record.sandbox, self._unknown)
            lines.append(
                mapper.network_activity(Attempt.of(record), processed_ns=time.time_ns()).to_json()
            )
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        for gap in batch.gaps:
            event = notices.gap(Context(host=self.host), gap, processed_ns=time.time_ns())
            lines.append(event.to_json())
            self._count_gap(gap)
        for reject in batch.rejects:
            self._count_reject(reject)
        await self._sink.deliver(lines)
        self.counts.records += len(batch.records)
        self.counts.events += len(lines)

    # Who writes forgeries, or makes records be lost, must not be able to flood our own log, nor to
    # hold us up where nobody reads it: so both are logged at the first, second, fourth, eighth …

    def _count_gap(self, gap: Gap) -> None:
        self.counts.gaps += 1
        self.counts.lost += gap.lost or 0
        number = self._gaps_by_reason.get(gap.reason, 0) + 1
        self._gaps_by_reason[gap.reason] = number
        if _is_power_of_two(number):
            _log.warning(
                "records lost", source=gap.transport, lost=gap.lost, number=number,
                reason=gap.reason,
            )  # fmt: skip

    def _count_reject(self, reject: Reject) -> None:
        number = self.counts.rejects.get(reject.kind, 0) + 1
        self.counts.rejects[reject.kind] = number
        if _is_power_of_two(number):
            _log.warning(
                "line rejected", kind=reject.kind, number=number, reason=reject.reason,
                line=reject.line[:200],
            )  # fmt: skip


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _genuine(batch: Batch, sandboxes: frozenset[str] | None) -> Batch:
    if sandboxes is None or all(record.sandbox in sandboxes for record in batch.records):
        return batch
    forged = tuple(
        Reject(
            kind="forged",
            reason="it names a sandbox that is not there where it was logged",
            line=record.origin.raw,
        )
        for record in batch.records
        if record.sandbox not in sandboxes
    )
    return replace(
        batch,
        records=tuple(record for record in batch.records if record.sandbox in sandboxes),
        rejects=batch.rejects + forged,
    )


async def _next(batches: AsyncIterator[Batch]) -> Batch | None:
    return await anext(batches, None)
