"""From a source's batches to the accounts of their sandboxes, counting what goes through."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft.attempt import Attempt
from ocsf_nft.log_prefixes import Prefixes
from ocsf_nft.ocsf import operational_events
from ocsf_nft.record import Batch, Gap, Reject

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from ocsf_nft.service.account_loop import AccountLoop
    from ocsf_nft.service.event_rendering import Reporter
    from ocsf_nft.sources.base import Source

_log = structlog.get_logger()

#: A source is drained when it gave nothing for so long (journalctl may need more for one record),
#: and given up when it never ends.
QUIET_SECONDS: Final = 0.2
JOURNAL_QUIET_SECONDS: Final = 0.6
_DRAIN_SECONDS: Final = 5.0
_COUNT_SECONDS: Final = 4.0


@dataclass(slots=True)
class Counts:
    """What went through. ``lost`` are the records whose number a gap told; ``gaps`` all gaps.

    ``given_up`` are the sandboxes whose fence was put back too often, and doesn't stand at the end.
    """

    records: int = 0
    events: int = 0
    gaps: int = 0
    lost: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    given_up: list[str] = field(default_factory=list)


class Pipeline:
    """Hands what sources read to the accounts of their sandboxes, in order for each source.

    Records of a sandbox that has no account (what is replayed), and those of other firewalls, are
    told one by one. ``prefixes`` tells what foreign prefixes mean, by default what is built in.
    """

    def __init__(
        self,
        reporter: Reporter,
        accounts: Mapping[str, AccountLoop],
        prefixes: Prefixes | None = None,
        counts: Counts | None = None,
    ) -> None:
        self.counts = Counts() if counts is None else counts
        self._gaps_by_reason: dict[str, int] = {}
        self._reporter = reporter
        self._accounts = accounts
        self._prefixes = Prefixes() if prefixes is None else prefixes

    async def pump(
        self,
        source: Source,
        stop: asyncio.Event,
        sandboxes: frozenset[str | None] | None = None,
        *,
        quiet_seconds: float = QUIET_SECONDS,
        name: str = "",
    ) -> None:
        """Deliver what a source reads until it ends.

        A source that has a position is read for one sandbox, whose account keeps that, or for the
        records of other firewalls: ``name`` is then what its position is kept under.

        ``sandboxes`` are those whose records it can have: who may load rules there may name any
        sandbox in a log prefix, and a record of another one is a forgery. None among them stands
        for the records of other firewalls; None for them all allows all.

        When ``stop`` is set, what is waiting by then is still delivered, until nothing came for
        ``quiet_seconds``; what can't be within some seconds is counted, and told as lost. Raises
        SourceError or DeliveryError.
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
                    await asyncio.wait({reading}, timeout=quiet_seconds)
                    if not reading.done():
                        return
                batch, reading = reading.result(), None
                if batch is None:
                    return
                await self._deliver(_without_forged(batch, sandboxes), sandboxes or (), name)
                if deadline is not None and time.monotonic() > deadline:
                    await self._give_up(batches, sandboxes or ())
                    return
        finally:
            stopping.cancel()
            if reading is not None:
                reading.cancel()
                await asyncio.wait({reading})

    async def _give_up(
        self, batches: AsyncIterator[Batch], sandboxes: Iterable[str | None]
    ) -> None:
        """Count what there is no time to deliver, and tell it as lost."""
        since_ns = time.time_ns()
        end = time.monotonic() + _COUNT_SECONDS
        # Only what is told is kept: there may be more records than memory for them.
        number, transport = 0, None
        gaps: list[Gap] = []
        is_all = False
        while not is_all and time.monotonic() < end:
            try:
                async with asyncio.timeout(QUIET_SECONDS):
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
        await self._deliver(Batch(gaps=tuple(gaps)), sandboxes)

    async def _deliver(
        self, batch: Batch, sandboxes: Iterable[str | None] = (), source: str = ""
    ) -> None:
        # Gaps first: whoever is killed after the position is kept would never tell of them.
        for gap in batch.gaps:
            event = operational_events.gap(
                self._reporter.context(), gap, processed_ns=time.time_ns()
            )
            await self._reporter.emit(event)
            self._count_gap(gap)
            for name in sandboxes:
                if name is not None and name in self._accounts:
                    await self._accounts[name].count_dropped(gap)
        for sandbox, records in groupby(batch.records, key=attrgetter("sandbox")):
            await self._take(sandbox, replace(batch, records=tuple(records)), source)
        if batch.cursor is not None and not batch.records:
            for sandbox in sandboxes:
                await self._take(sandbox, batch, source)
        self.counts.records += len(batch.records)
        for reject in batch.rejected:
            self._count_reject(reject)

    async def _take(self, sandbox: str | None, batch: Batch, source: str) -> None:
        """Take in records of one sandbox, or of none, with their source's position behind them."""
        # A foreign record's own sandbox, if it tells one, comes after the way to the accounts: a
        # prefix that anybody may write is not to lead there.
        account = None if sandbox is None else self._accounts.get(sandbox)
        if account is not None:
            await account.take(batch)
        else:
            found = map(Attempt.of, map(self._prefixes.named, batch.records))
            lines = await self._reporter.lines(found)
            await self._reporter.deliver(lines, source=source, position=batch.cursor or "")

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


def _without_forged(batch: Batch, sandboxes: frozenset[str | None] | None) -> Batch:
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
        rejected=batch.rejected + forged,
    )


async def _next(batches: AsyncIterator[Batch]) -> Batch | None:
    return await anext(batches, None)
