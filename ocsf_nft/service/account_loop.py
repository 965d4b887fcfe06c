"""Accounting of one sandbox in a running service: packet counts are read, stored and reported."""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Final, Self, TypeVar, get_args

import structlog

from ocsf_nft.accounting import state_db
from ocsf_nft.accounting.flow_counter import MAX_COUNT
from ocsf_nft.accounting.priority import Priority
from ocsf_nft.accounting.reconciliation import Mode
from ocsf_nft.accounting.sandbox_accounting import SandboxAccount
from ocsf_nft.attribution.fallback_chain import limit_to_one_packet
from ocsf_nft.errors import DeliveryError, OcsfNftError
from ocsf_nft.ocsf import operational_events
from ocsf_nft.ocsf.addresses import METADATA
from ocsf_nft.record import Gap
from ocsf_nft.service.shielded import run_shielded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    from ocsf_nft.accounting.reconciliation import Balance
    from ocsf_nft.attempt import Attempt, FanOut, IncidentEnd
    from ocsf_nft.attribution.fallback_chain import FallbackChain
    from ocsf_nft.delivery.retry_until_writable import StorageRetrier
    from ocsf_nft.fence.counters import Counters
    from ocsf_nft.flow import Reading
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Batch, Record
    from ocsf_nft.service.event_rendering import Reporter

T = TypeVar("T")

_log = structlog.get_logger()

#: Destinations that are reported separately also beyond a user's limits.
_PRIORITY_DESTINATIONS: Final = frozenset(map(str, METADATA))
_READ_SECONDS: Final = 0.5
#: Readings take at most a tenth of the time: with many flows they are less frequent, up to a limit.
_PART: Final = 10
_LONGEST_SECONDS: Final = 2.0
#: Records of packets that a reading has shown may come later, by some tenths of a second through a
#: journal.
_GRACE_SECONDS: Final = 0.1
_JOURNAL_GRACE_SECONDS: Final = 0.6
#: Longest normal time between two readings; a longer one is reported.
_LATE_NS: Final = 5 * 1_000_000_000
#: Shortest time between two readings that unknown records cause. A process that forges log prefixes
#: must not cause more.
_CHECK_NS: Final = 500_000_000
#: Attempts in one transaction and one delivery.
_BATCH: Final = 256


class AccountLoop:
    """Task that counts the refused packets of one sandbox, and reports them as events.

    The counts come from the kernel's log records and the fence's counters. If the service is
    killed, its next start delivers the undelivered events.
    """

    def __init__(  # noqa: PLR0913 - the parts of an account
        self,
        sandbox: str,
        counters: Counters,
        path: Path,
        reporter: Reporter,
        *,
        begun_ns: int,
        retrier: StorageRetrier,
        fallback_chain: FallbackChain,
        source: str = "",
    ) -> None:
        """Create the loop; nothing is opened yet.

        ``path`` is the file of the state database. Packets before ``begun_ns`` (ns since the epoch)
        are not counted. The read position in the log is stored under the key ``source``, such as
        ``journal``. For a log without positions, ``source`` is empty.
        """
        self.sandbox = sandbox
        self._retrier = retrier
        self._fallback_chain = fallback_chain
        self._source = source
        #: Position after all processed records, and the stored one.
        self._position: str | None = None
        self._stored_position: str | None = None
        self._counters = counters
        self._database = state_db.StateDatabase(path)
        self._reporter = reporter
        priority = Priority(destinations=_PRIORITY_DESTINATIONS, is_finding=reporter.is_finding)
        self._account = SandboxAccount(
            sandbox, begun_ns=begun_ns, priority=priority, add_attribution=self._add_attribution
        )
        self._wait_seconds = _READ_SECONDS
        self._grace_seconds = _JOURNAL_GRACE_SECONDS if source == "journal" else _GRACE_SECONDS
        self._fault: str | None = None
        #: Whether stored events are not delivered yet.
        self._has_undelivered = False
        # One thread, because neither the sockets nor the file allow two operations at a time.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="account")
        self._lock = asyncio.Lock()
        #: Number of batches of log records that are being processed, and when the last one ended.
        self._running, self._taken_at = 0, -math.inf
        # One reading after another, so that no counter seems to decrease.
        self._reading = asyncio.Lock()
        self._checked_ns = 0
        self._read_at = time.monotonic()
        self._is_first = True

    async def __aenter__(self) -> Self:
        """Open the state database and the counters.

        Raises an OcsfNftError if the counters can't be read, or the database can't be written.
        """
        try:
            await self._work(self._counters.open)
            await self._work(self._database.open)
            await self._work(lambda: self._database.load(self._account))
            if self._source:
                self._position = await self._work(lambda: self._database.position(self._source))
                self._stored_position = self._position
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the counters' sockets and the state database."""
        self._worker.submit(self._counters.close)
        self._worker.submit(self._database.close)
        self._worker.shutdown(wait=False)

    @property
    def position(self) -> str | None:
        """Return the position after the last processed record in the kernel log.

        Reading resumes there after a restart. Return None if the log has no positions, or was never
        read.
        """
        return self._position

    @property
    def idle_seconds(self) -> float:
        """Return the seconds since the last attempt to read the counters, successful or not."""
        return time.monotonic() - self._read_at

    @property
    def fault(self) -> str | None:
        """Return the reason why the last reading of the counters failed; None if it succeeded."""
        return self._fault

    def balances(self) -> tuple[Balance, ...]:
        """Return each rule's numbers of counted, reported and pending packets at the last read."""
        return self._account.balances()

    async def dropped_records(self) -> tuple[state_db.DroppedRecords, ...]:
        """Return the stored numbers of gaps and of dropped log records for each source.

        Raises DeliveryError if the state database can't be read.
        """
        return await self._work(self._database.dropped_records)

    async def resume(self) -> None:
        """Deliver the last stored events again, in case the previous process did not deliver them.

        Then read the fence's packet counters, which show packets that were refused while the
        service did not run. Raises DeliveryError.
        """
        if again := await self._work(self._database.undelivered):
            await self._reporter.deliver(again)
        await self._observe()

    async def take(self, batch: Batch) -> None:
        """Process a batch of the sandbox's log records.

        The first packet of a flow is normally reported now. All other packets are reported later,
        by :meth:`run`.
        """
        self._running += 1
        try:
            await self._process(batch)
        finally:
            self._running -= 1
            self._taken_at = time.monotonic()

    async def _process(self, batch: Batch) -> None:
        records = batch.records
        attributions = await self._fallback_chain.attributions(
            self.sandbox, records, batch.since_ns
        )
        taken = list(map(_with_send_time, records, attributions))
        if taken:
            await self._read_new_counters(taken)
        async with self._lock:
            self._position = batch.cursor or self._position
            now_ns = time.monotonic_ns()
            found = [
                attempt
                for record, attribution in zip(taken, attributions, strict=True)
                if (attempt := self._account.record(record, now_ns, attribution)) is not None
            ]
            await self._report(found)

    async def count_dropped(self, gap: Gap) -> None:
        """Add a gap in the log records to the stored totals of its source.

        The totals are the number of gaps and the number of missing log records.
        """
        await self._count_dropped(gap.transport, gap.dropped or 0)

    async def run(self) -> None:
        """Read the packet counters and emit events about refused packets, until cancelled."""
        while True:
            await asyncio.sleep(self._wait_seconds)
            await run_shielded(self._read_and_report())

    async def close(self) -> tuple[Balance, ...]:
        """Report all packets that no event has reported yet, and return the final counts."""
        # Two readings must lack a record's packet to show that another element counted it.
        await self._observe()
        await self._observe()
        await self._report_due(closing=True)
        return self._account.balances()

    async def remove(self) -> None:
        """Delete the state database of a removed fence; call :meth:`close` before."""
        await self._work(self._database.remove)

    async def _read_and_report(self) -> None:
        await self._observe()
        await asyncio.sleep(self._grace_seconds)
        await self._report_due()

    async def _read_new_counters(self, records: Iterable[Record]) -> None:
        """Read the counters if a log record shows that the fence has changed its mode.

        A fence is enforcing or permissive, and has separate counters for each mode.
        """
        now_ns = time.monotonic_ns()
        if now_ns - self._checked_ns < _CHECK_NS or not any(
            map(self._account.is_of_new_mode, records)
        ):
            return
        self._checked_ns = now_ns
        await self._observe()

    async def _observe(self) -> None:
        async with self._reading:
            await self._read()
            self._read_at = time.monotonic()

    async def _read(self) -> None:
        began = time.monotonic()
        try:
            reading = await self._work(self._counters.read)
        except OcsfNftError as error:
            # A process with privileges in the namespace can cause this error. Everything else is
            # still reported.
            await self._report_fault(str(error))
            return
        self._fault = None
        if fault := self._database.fault():
            await self._report_gap(fault)
        await self._report_pause(reading)
        if rules := self._account.renewed_rules(reading):
            await self._report_gap(f"the counters of {', '.join(rules)} were created again")
        async with self._lock:
            for _ in self._account.observe(reading):
                await asyncio.sleep(0)
        took = time.monotonic() - began
        self._wait_seconds = min(max(_READ_SECONDS, _PART * took), _LONGEST_SECONDS)

    async def _report_pause(self, reading: Reading) -> None:
        since_ns = self._account.read_ns
        is_first, self._is_first = self._is_first, False
        if since_ns is None:
            return
        # A process with privileges in the namespace can write any number into the counters, and
        # reset them.
        unread = self._account.unread_since(reading)
        refused, allowed = (max(0, min(unread[mode], MAX_COUNT // 2)) for mode in get_args(Mode))
        # A log with a position is read from there. Records of other sources are dropped during a
        # pause.
        has_dropped = is_first and not self._source and refused + allowed
        if reading.began_ns - since_ns < _LATE_NS and not has_dropped:
            return
        event = operational_events.collection_gap(
            self._reporter.context(self.sandbox),
            sandbox=self.sandbox,
            packets=refused + allowed,
            allowed=allowed,
            since_ns=since_ns,
            until_ns=reading.began_ns,
            reason="ocsf-nft was not running, or was delayed",
            processed_ns=time.time_ns(),
        )
        await self._reporter.emit(event)
        await self._count_dropped("reader", 0)
        _log.warning(
            "the counters were not read in time",
            sandbox=self.sandbox,
            refused=refused,
            allowed=allowed,
        )

    async def _report_fault(self, fault: str) -> None:
        if fault != self._fault:
            self._fault = fault
            await self._report_gap(fault)

    async def _report_gap(self, reason: str) -> None:
        now_ns = time.time_ns()
        gap = Gap(
            transport="counters",
            reason=f"sandbox {self.sandbox}: {reason}",
            dropped=None,
            since_ns=min(self._account.read_ns or now_ns, now_ns),
            until_ns=now_ns,
        )
        context = self._reporter.context(self.sandbox)
        await self._reporter.emit(
            operational_events.records_dropped(context, gap, processed_ns=now_ns)
        )
        await self.count_dropped(gap)
        _log.warning("counts may be incomplete", sandbox=self.sandbox, reason=reason)

    async def _report_due(self, *, closing: bool = False) -> None:
        async with self._lock:
            now_ns = time.monotonic_ns()
            for _ in self._account.aggregate_overflow(now_ns):
                await asyncio.sleep(0)
            await self._fallback_chain.read_events()
            due = self._account.due(now_ns, closing=closing, record_wait_ns=self._record_wait_ns())
            while found := list(islice(due, _BATCH)):
                await self._report(found)
            await self._commit([])

    def _record_wait_ns(self) -> int:
        """Return how long to wait for the log record of a packet that a counter counted, in ns."""
        # Batches are processed in order. The record waits for the attributions of the batch that is
        # processed now, and then for its own.
        is_idle = not self._running and time.monotonic() - self._taken_at > self._grace_seconds
        seconds = self._grace_seconds + 2 * self._fallback_chain.wait_seconds
        return 0 if is_idle else round(seconds * 1_000_000_000)

    async def _report(self, found: Sequence[Attempt | FanOut | IncidentEnd]) -> None:
        if found:
            lines = await self._reporter.lines(found)
            await self._commit(lines)
            await self._reporter.deliver(lines)
            self._has_undelivered = False

    def _add_attribution(self, attempt: Attempt) -> Attempt:
        """Add the sender, a process or a user, to an attempt (refused packets of one event).

        Return the new attempt. An attempt with a log record already has its sender, and is returned
        unchanged.
        """
        known = attempt.attribution
        if attempt.record.origin.transport != "counters":
            if known is not None:
                self._fallback_chain.mark_reported(self.sandbox, attempt.record, known.process)
            return attempt
        if known is not None and attempt.packets > 1:
            known = limit_to_one_packet(known)
        if attempt.aggregation is None:
            began_ns = self._account.read_ns or 0
            record, packets = attempt.record, attempt.packets
            seen = self._fallback_chain.since_last(self.sandbox, record, packets, began_ns)
            known = seen or known
        elif attempt.record.uid is None:
            return attempt  # its packets may be of several users
        return replace(
            attempt, attribution=known or self._fallback_chain.user_attribution(attempt.record)
        )

    async def _commit(self, lines: Sequence[bytes]) -> None:
        """Store the changed counts and the new events (``lines``) in one transaction.

        The new events replace the events of the previous transaction. Raises DeliveryError if
        storing fails, or if the previous events are not delivered yet.
        """
        if self._has_undelivered:
            # A commit would delete the events from the file; the next run delivers them.
            raise DeliveryError(f"events of sandbox {self.sandbox} are not delivered yet")
        changed = state_db.Changes()
        for _ in changed.collect(self._account):
            await asyncio.sleep(0)
        moved, where = self._position != self._stored_position, self._position
        position = (self._source, where) if moved and where is not None else None
        await self._retrier(
            lambda: self._work(lambda: self._database.commit(changed, lines, position))
        )
        self._has_undelivered, self._stored_position = bool(lines), where

    async def _count_dropped(self, source: str, records: int) -> None:
        await self._retrier(lambda: self._work(lambda: self._database.add_dropped(source, records)))

    async def _work(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)


def _with_send_time(record: Record, attribution: Attribution) -> Record:
    """Return a copy of ``record`` with the packet's send time, which ``attribution`` has.

    The send time replaces the time at which the record was read. Return ``record`` unchanged if its
    time is from the kernel, or if the send time is unknown.
    """
    # The time of a late read could fit a later packet of another process.
    if attribution.sent_ns is None or not record.is_timed_when_read:
        return record
    return replace(record, time_ns=min(attribution.sent_ns, record.received_ns))
