"""Pipeline from the sources of log records to the accounts, which count each sandbox's packets."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft.attempt import Attempt
from ocsf_nft.log_prefixes import Prefixes
from ocsf_nft.ocsf import operational_events
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.finding_parts import COLLECTION
from ocsf_nft.ocsf.redacted import redacted_record, redacted_reject
from ocsf_nft.record import Batch, Gap, Reject
from ocsf_nft.service.accounts import Accounts
from ocsf_nft.service.event_rendering import Reporter
from ocsf_nft.sources.replay import Replay
from ocsf_nft.state.change import Change, DroppedRecords, Position

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from ocsf_nft.service.outlet import Outlet
    from ocsf_nft.sources.base import Source

_log = structlog.get_logger()

#: Draining a source stops after this time if the source never ends.
_DRAIN_SECONDS: Final = 5.0
#: After ``_DRAIN_SECONDS``, the remaining records are only counted, for at most this long.
_COUNT_SECONDS: Final = 4.0
_COUNT_QUIET_SECONDS: Final = 0.2


@dataclass(slots=True)
class Counts:
    """Totals of one run of the service, such as processed log records and emitted events."""

    records: int = 0
    events: int = 0
    #: How often a source could not read all log records.
    gaps: int = 0
    #: Number of log records that were missed; an unknown number counts as 0.
    dropped: int = 0
    #: Number of rejected lines of each kind, such as ``malformed``.
    rejected: dict[str, int] = field(default_factory=dict)
    #: Sandboxes whose fence is not active at the end of the run, because restoring is paused after
    #: too many restores in a short time.
    given_up: list[str] = field(default_factory=list)


class Pipeline:
    """Pipeline that hands log records, in order, to their sandboxes' packet counters (accounts).

    A record without an account becomes one event. ``prefixes`` decodes the log prefixes of other
    firewalls; None means the built-in table.
    """

    def __init__(
        self,
        reporter: Reporter,
        accounts: Accounts,
        prefixes: Prefixes | None = None,
        counts: Counts | None = None,
    ) -> None:
        self.counts = Counts() if counts is None else counts
        self._gaps_by_reason = Counter[str]()
        self._reporter = reporter
        self._accounts = accounts
        self._prefixes = Prefixes() if prefixes is None else prefixes

    async def pump(
        self,
        source: Source,
        stop: asyncio.Event,
        sandboxes: AbstractSet[str | None] | None = None,
        name: str = "",  # key of the stored read position
    ) -> None:
        """Hand each log record to its sandbox's packet counter, until the source ends.

        If ``sandboxes`` is given, records of all other sandboxes are rejected. This set may change
        meanwhile. A None in it allows records of other firewalls. Records that arrived before
        ``stop`` was set are still handed on. Raises SourceError, DeliveryError.
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
                # After the first wait, a loop that was blocked has seen a record that is there.
                for _ in range(2):
                    if not reading.done():
                        await asyncio.wait({reading}, timeout=source.quiet_seconds / 2)
                if not reading.done():
                    return
                batch, reading = reading.result(), None
                if batch is None:
                    return
                await self._deliver(_without_forged(batch, sandboxes), sandboxes or (), name)
                del batch  # the next one may come in days
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
        """Count the unprocessed log records at a stop, and report them as dropped."""
        since_ns = time.time_ns()
        end = time.monotonic() + _COUNT_SECONDS
        # Only the numbers and gaps stay in memory: there may be more records than memory for them.
        number, transport = 0, None
        gaps: list[Gap] = []
        is_all = False
        while not is_all and time.monotonic() < end:
            try:
                async with asyncio.timeout(_COUNT_QUIET_SECONDS):
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
                    dropped=number if is_all else None,
                    since_ns=since_ns,
                    until_ns=time.time_ns(),
                )
            )
        await self._deliver(Batch(gaps=tuple(gaps)), sandboxes)

    async def _deliver(
        self, batch: Batch, sandboxes: Iterable[str | None] = (), source: str = ""
    ) -> None:
        # Gaps first: if the service were killed after the position is stored, they would never be
        # reported.
        for gap in batch.gaps:
            event = operational_events.records_dropped(
                self._reporter.context(), gap, processed_ns=time.time_ns()
            )
            dropped = DroppedRecords(gap.transport, 1, gap.dropped or 0)
            accounts = [
                account
                for each in tuple(sandboxes)
                if (account := await self._accounts.find(each)) is not None
            ]
            found = [(each.sandbox, dropped) for each in accounts]
            lines = [event.to_json()]
            if accounts:
                # Several sandboxes share the log of the host.
                sandbox = accounts[0].sandbox if len(accounts) == 1 else None
                findings = self._reporter.findings
                lines = findings.lines(event, COLLECTION, sandbox, severity=Severity.HIGH)
            await self._reporter.commit(Change(events=lines, dropped=found))
            for account in accounts:
                account.request_reading()
            self._count_gap(gap)
        for sandbox, records in groupby(batch.records, key=attrgetter("sandbox")):
            # The account of a sandbox that has ended has counted the packet by the fence's counter.
            if not sandboxes or sandbox is None or await self._accounts.find(sandbox) is not None:
                await self._take(sandbox, replace(batch, records=tuple(records)), source)
        if batch.cursor is not None and not batch.records:
            for each in tuple(sandboxes):
                await self._take(each, batch, source)
        self.counts.records += len(batch.records)
        for reject in batch.rejected:
            self._count_reject(reject)

    async def _take(self, sandbox: str | None, batch: Batch, source: str) -> None:
        # The sandbox in another firewall's record is set after this selection: any process may
        # write such a prefix, so it must not select an account.
        account = await self._accounts.find(sandbox)
        if account is not None:
            await account.take(batch)
        else:
            records = map(self._prefixes.named, map(redacted_record, batch.records))
            found = map(Attempt.of, records)
            lines = await self._reporter.lines(found)
            has_position = source and batch.cursor is not None
            position = Position(None, source, batch.cursor or "") if has_position else None
            if lines or position:
                await self._reporter.commit(Change(events=lines, position=position))

    # A process that forges records, or causes drops, must not flood the service's own log, nor
    # block the service if nothing reads that log. So both are logged at the first, second, fourth,
    # eighth … time.

    def _count_gap(self, gap: Gap) -> None:
        self.counts.gaps += 1
        self.counts.dropped += gap.dropped or 0
        self._gaps_by_reason[gap.reason] += 1
        number = self._gaps_by_reason[gap.reason]
        if _is_power_of_two(number):
            _log.warning(
                "records dropped", source=gap.transport, dropped=gap.dropped, number=number,
                reason=gap.reason,
            )  # fmt: skip

    def _count_reject(self, reject: Reject) -> None:
        number = self.counts.rejected.get(reject.kind, 0) + 1
        self.counts.rejected[reject.kind] = number
        if _is_power_of_two(number):
            reject = redacted_reject(reject)
            _log.warning(
                "line rejected", kind=reject.kind, number=number, reason=reject.reason,
                line=reject.line[:200],
            )  # fmt: skip


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _without_forged(batch: Batch, sandboxes: AbstractSet[str | None] | None) -> Batch:
    if sandboxes is None or all(record.sandbox in sandboxes for record in batch.records):
        return batch
    # Any process that may load nftables rules in the source's namespace can write any name into a
    # log prefix.
    forged = tuple(
        Reject(
            kind="forged",
            reason="it names a sandbox that does not log there",
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


async def replay(paths: Sequence[Path], outlet: Outlet, stop: asyncio.Event) -> Counts:
    """Read packet log records from files, and deliver their events directly to a sink.

    Setting ``stop`` ends the reading early. Raises an OcsfNftError if a file can't be read, or if
    the sink does not accept an event.
    """
    async with outlet.sink, Replay(paths) as source:
        # The machine that wrote the files is unknown, so the events have no ``device``.
        reporter = Reporter(outlet.deliver, host=None)
        pipeline = Pipeline(reporter, Accounts())
        await pipeline.pump(source, stop)
        pipeline.counts.events = reporter.events
        return pipeline.counts


async def _next(batches: AsyncIterator[Batch]) -> Batch | None:
    return await anext(batches, None)
