"""Accounting of one sandbox in a running service: packet counts are read, stored and reported."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft import cloud_metadata
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence.state import AccountPlace
from ocsf_nft.flows import codec
from ocsf_nft.flows.sandbox_account import SandboxAccount
from ocsf_nft.flows.uncounted_records import received_records
from ocsf_nft.ip_text import text_of
from ocsf_nft.process import limit_to_one_packet
from ocsf_nft.service import stored_account
from ocsf_nft.service.counter_mismatch import CounterMismatch
from ocsf_nft.service.gap_reports import GapReports
from ocsf_nft.service.reading_schedule import IDLE_SECONDS, ReadingSchedule
from ocsf_nft.service.record_doubts import RecordDoubts
from ocsf_nft.service.shielded import run_in_pool, run_shielded
from ocsf_nft.service.stored_account import StoredAccount
from ocsf_nft.state.change import Account, AccountChange, Change, Position

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from concurrent.futures import Executor

    from ocsf_nft.attempt import Attempt, FanOut, IncidentEnd
    from ocsf_nft.attribution.fallback_chain import FallbackChain
    from ocsf_nft.attribution.socket_lookups import AttachedNamespace
    from ocsf_nft.fence.counters import Counters
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.flows.sandbox_account import Balance
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Batch, Record
    from ocsf_nft.service.event_rendering import Reporter
    from ocsf_nft.state.state_store import StateStore

#: Destinations that are reported separately also beyond a user's limits.
_PREFERRED: Final = frozenset(map(text_of, cloud_metadata.exact_addresses()))
#: Longest pause between two readings of a fence that logs nothing.
_UNLOGGED_SECONDS: Final = 1.0
#: Records of packets that a reading has shown may come later, by some tenths of a second through a
#: journal.
_GRACE_SECONDS: Final = 0.1
_JOURNAL_GRACE_SECONDS: Final = 0.6
#: Shortest time between two readings that unknown records cause. A process that forges log prefixes
#: must not cause more.
_CHECK_NS: Final = 500_000_000
#: Account that is restored and stored. Its parts need megabytes.
_IN_STORE: Final = StoredAccount(is_in_store=True)
#: Attempts in one transaction and one delivery.
_BATCH: Final = 256


class AccountLoop:
    """Task that counts the refused packets of one sandbox, and reports them as events.

    The counts come from the kernel's log records and the fence's counters. Events, and the counts
    that they report, are stored in one transaction.
    """

    def __init__(  # noqa: PLR0913 - the parts of an account
        self,
        sandbox: str,
        counters: Counters,
        store: StateStore,
        state: StateDirectory,
        reporter: Reporter,
        *,
        begun_ns: int,
        fallback_chain: FallbackChain,
        attached: AttachedNamespace | None = None,
        pool: Executor | None = None,
        slots: asyncio.Semaphore | None = None,
        is_logged: bool = True,
        source: str = "",
    ) -> None:
        """Create the loop; nothing is opened yet.

        ``state`` has the path of the database with the account. Packets before ``begun_ns`` (ns
        since the epoch) are not counted. ``attached`` is the namespace with the senders to find by
        ``fallback_chain``; None for a VM. ``pool`` has the threads that read counters; None for
        asyncio's. ``slots`` limits the number of readings that are in memory at the same time.
        ``is_logged`` is false if the kernel can't log the fence's packets. ``source`` is the key of
        the stored read position in the log, such as ``journal``; empty for a log without positions.
        """
        self.sandbox = sandbox
        self._store = store
        self._state = state
        self._stored = StoredAccount()
        self._fallback_chain = fallback_chain
        self._attached = attached
        self._source = source
        #: Position in the kernel's log after the last processed record, and the stored one. None if
        #: the log has no positions, or was never read.
        self.position: str | None = None
        self._stored_position: str | None = None
        self.counters = counters
        self._reporter = reporter
        self._account = SandboxAccount(
            sandbox,
            begun_ns=begun_ns,
            preferred=_PREFERRED,
            is_finding=reporter.is_finding,
            add_attribution=self._add_attribution,
        )
        self._pool, self._slots = pool, slots or asyncio.Semaphore()
        self.gaps = GapReports(self._account, reporter, has_position=bool(source))
        self.schedule = ReadingSchedule(IDLE_SECONDS if is_logged else _UNLOGGED_SECONDS)
        self._grace_seconds = _JOURNAL_GRACE_SECONDS if source == "journal" else _GRACE_SECONDS
        #: Reason why the last reading of the counters failed; None if it succeeded.
        self.fault: str | None = None
        self.mismatch = CounterMismatch()
        self._doubts = RecordDoubts(sandbox, reporter)
        #: Numbers before a reading that is being processed, else None.
        self._before: tuple[Balance, ...] | None = None
        #: Set by log records: the counters must be read soon.
        self._has_records = asyncio.Event()
        self._lock = asyncio.Lock()
        #: Storage of the latest change.
        self._committing: asyncio.Task[None]
        #: Number of batches of log records that are being processed, and when the last one ended.
        self._running, self._taken_at = 0, -math.inf
        self._has_taken = asyncio.Event()  # set while none is being processed
        self._has_taken.set()
        # One reading after another, so that no counter seems to decrease.
        self._reading = asyncio.Lock()
        self._checked_ns = 0

    async def __aenter__(self) -> Self:
        """Open the counters, and restore the stored counts.

        Raises an OcsfNftError if the counters or the state database can't be read.
        """
        try:
            await run_in_pool(self._pool, self.counters.open)
            await self._load()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _load(self) -> None:
        self._stored = await stored_account.find(self._store, self._state, self.sandbox)
        stored = self._stored.account
        try:
            # In a thread, since an account may have thousands of flows.
            await run_in_pool(self._pool, partial(codec.restore, self._account, stored.parts))
        except codec.DAMAGE as error:
            fault = f"its stored counts are damaged ({type(error).__name__}: {error})"
            self._stored = StoredAccount(fault=fault)
            return
        if stored.position is not None and stored.position.source == self._source:
            self.position = self._stored_position = stored.position.position
        if self._stored.is_in_store:
            self._stored = _IN_STORE

    async def __aexit__(self, *_: object) -> None:
        """Close the counters' sockets."""
        async with self._reading:
            await self._close_counters()

    async def _close_counters(self) -> None:
        # In a thread: the kernel closes a socket after the transaction that a process in the
        # sandbox makes, which may take a minute.
        await run_in_pool(self._pool, self.counters.close)

    def balances(self) -> tuple[Balance, ...]:
        """Return each rule's numbers of counted, reported and pending packets at the last read.

        During the processing of a reading, the numbers are those before it.
        """
        return self._account.balances() if self._before is None else self._before

    async def resume(self) -> None:
        """Read the counters, which show packets that were refused while the service did not run.

        Nothing about the sandbox is stored before. Raises DeliveryError.
        """
        await self._adopt()
        await self._observe()

    async def _adopt(self) -> None:
        account, fault = self._stored.account, self._stored.fault
        if fault is not None:
            await self.gaps.report(fault)
            account = Account(dropped=self._store.database.dropped_records(self.sandbox))
        if not self._stored.is_in_store:
            replace_account = self._store.database.replace_account
            await self._store.retry(partial(replace_account, self.sandbox, account))
        place = AccountPlace(self._store.database.path, self._store.database.identity)
        if fault is not None or place != self._state.account_place(self.sandbox):
            set_place = partial(self._state.set_account_place, self.sandbox, place)
            await run_shielded(asyncio.to_thread(set_place))
        self._stored = _IN_STORE

    async def take(self, batch: Batch) -> None:
        """Process a batch of log records; report the first packet of a flow, normally, now."""
        self._running += 1
        self._has_taken.clear()
        try:
            # Another sandbox goes on if this one fails: what was counted must be reported.
            await run_shielded(self._process(batch))
        finally:
            self._running -= 1
            self._taken_at = time.monotonic()
            if not self._running:
                self._has_taken.set()
            if batch.records:
                self.request_reading()

    def request_reading(self) -> None:
        """Let the counters be read soon, because packets were or may have been refused."""
        self._has_records.set()

    async def refresh(self) -> None:
        """Read the counters now, unless they are being read, or were read just before."""
        if not self._reading.locked():
            await run_shielded(self._refresh())

    async def _refresh(self) -> None:
        async with self._reading:
            # After a long pause was planned, or an error, the sockets are closed: this opens them.
            explained = self._explained()
            is_new = not self.schedule.early_seconds or self.schedule.is_idle
            if is_new or not self.counters.is_open or any(explained.values()):
                unchanged = {name: each for name, each in explained.items() if not each}
                async with self._slots:
                    await self._read(unchanged)
        if self._account.is_active():
            self.request_reading()

    async def _process(self, batch: Batch) -> None:
        records = batch.records
        attributions = await self._fallback_chain.attributions(
            self._attached, records, batch.since_ns
        )
        attributions = list(map(self._doubts.weakened, attributions))
        taken = list(map(_with_send_time, records, attributions))
        if taken:
            await self._read_new_counters(taken)
        async with self._lock:
            self.position = batch.cursor or self.position
            now_ns = time.monotonic_ns()
            found = [
                attempt
                for record, attribution in zip(taken, attributions, strict=True)
                if (attempt := self._account.record(record, now_ns, attribution)) is not None
            ]
            await self._report(found)

    async def run(self) -> None:
        """Read the packet counters and emit events about refused packets, until cancelled."""
        while True:
            await self._wait()
            await self._read_and_report()

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.schedule.wait_seconds):
                await self._has_records.wait()
        if self._has_records.is_set():
            self.schedule.hurry()
        await asyncio.sleep(self.schedule.early_seconds)
        self._has_records.clear()

    async def close(self) -> tuple[Balance, ...]:
        """Report all packets that no event has reported yet, and return the final counts.

        Call it when no more log records are given to :meth:`take`.
        """
        await self._has_taken.wait()
        # Two readings must lack a record's packet to show that another element counted it.
        await self._observe(is_complete=True)
        await self._observe(is_complete=True)
        await self._report_due(closing=True)
        async with self._lock:
            if lines := self._doubts.close(self._account.rules):
                await self._commit(lines, is_final=True)
        return self._account.balances()

    async def remove(self) -> None:
        """Delete the stored counts of a removed fence; call :meth:`close` before."""
        # First, since the rows without their place are an old copy, and the reverse is a fault.
        self._state.delete_account_place(self.sandbox)
        await self._store.retry(partial(self._store.database.remove_account, self.sandbox))

    async def _read_and_report(self) -> None:
        await run_shielded(self._observe())
        await asyncio.sleep(self._grace_seconds)
        await run_shielded(self._report_and_plan())

    async def _report_and_plan(self) -> None:
        await self._report_due()
        self.mismatch.observe(self.balances(), self._doubts.forged(self._account.rules))
        expiry_ms = self._account.expiry_ms
        self.schedule.plan(
            is_active=self._account.is_active(),
            expiry_seconds=None if expiry_ms is None else expiry_ms / 1000 - time.monotonic(),
        )
        if self.schedule.is_idle:  # an idle sandbox needs no descriptor
            async with self._reading:
                await self._close_counters()

    async def _read_new_counters(self, records: Iterable[Record]) -> None:
        # An enforcing fence and a permissive one have separate counters.
        now_ns = time.monotonic_ns()
        if now_ns - self._checked_ns < _CHECK_NS or not any(
            map(self._account.is_of_new_mode, records)
        ):
            return
        self._checked_ns = now_ns
        await self._observe()

    async def _observe(self, *, is_complete: bool = False) -> None:
        async with self._reading, self._slots:
            await self._read({} if is_complete else self._explained())

    def _explained(self) -> dict[str, int]:
        return self._account.explained_packets(time.monotonic_ns() // 1_000_000)

    async def _read(self, explained: Mapping[str, int]) -> None:
        """Read the counters; ``explained`` is the argument of :meth:`Counters.read`."""
        began = time.monotonic()
        received = received_records(self._account.rules, is_settled=not self._running)
        try:
            reading = await run_in_pool(self._pool, partial(self.counters.read, explained))
        except OcsfNftError as error:
            # A process with privileges in the namespace can cause this error. Everything else is
            # still reported.
            self.schedule.note_failure()
            before, self.fault = self.fault, str(error)
            if self.fault != before:
                await self.gaps.report(self.fault, lasts=True)
            return
        if self.fault is not None:
            self.fault = None
            await self.gaps.report_end()
        is_first = self.gaps.is_first
        await self.gaps.report_pause(reading, self.schedule.unread_seconds)
        if rules := self._account.renewed_rules(reading):
            # While the fence is watched, its change is a finding already.
            reason = f"the counters of {', '.join(rules)} were created again"
            await self.gaps.report(reason, is_finding=is_first)
        async with self._lock:
            # Other tasks get turns only while the flows are processed.
            if any(each.elements is not None for each in reading.rules.values()):
                self._before = self._account.balances()
            try:
                for _ in self._account.observe(reading):
                    await asyncio.sleep(0)
            finally:
                self._before = None
            # In the transaction that stores the new counters in place of the old ones.
            await self._report(await self._due_of_ended())
        if not self._source:  # records of a log with positions come late, and again
            async with self._lock:
                lines = self._doubts.observe(received, reading, self._account.rules)
                self._account.doubt_records(self._doubts.until_ns)
                if lines:
                    await self._commit(lines)
        self.schedule.note_reading(time.monotonic() - began)

    async def _due_of_ended(self) -> list[Attempt | FanOut | IncidentEnd]:
        """Return all that is to be reported of counters that no longer exist."""
        found: list[Attempt | FanOut | IncidentEnd] = []
        for each in self._account.due_of_ended(time.monotonic_ns()):
            found.append(each)
            if len(found) % _BATCH == 0:  # there may be more than 10,000
                await asyncio.sleep(0)
        return found

    async def _report_due(self, *, closing: bool = False) -> None:
        async with self._lock:
            now_ns = time.monotonic_ns()
            for _ in self._account.aggregate_overflow(now_ns):
                await asyncio.sleep(0)
            await self._fallback_chain.read_events()
            # In one transaction: it deletes the parts of counters that no longer exist.
            await self._report(await self._due_of_ended())
            due = self._account.due(now_ns, closing=closing, record_wait_ns=self._record_wait_ns())
            while found := list(islice(due, _BATCH)):
                await self._report(found)
            await self._commit([], is_final=closing)

    def _record_wait_ns(self) -> int:
        # Batches are processed in order. The record waits for the attributions of the batch that is
        # processed now, and then for its own.
        is_idle = not self._running and time.monotonic() - self._taken_at > self._grace_seconds
        seconds = self._grace_seconds + 2 * self._fallback_chain.wait_seconds
        return 0 if is_idle else round(seconds * 1_000_000_000)

    async def _report(self, found: Sequence[Attempt | FanOut | IncidentEnd]) -> None:
        if found:
            await self._commit([], found)

    def _add_attribution(self, attempt: Attempt) -> Attempt:
        known = attempt.attribution
        if attempt.record.origin.transport != "counters":
            if known is not None:
                self._fallback_chain.mark_reported(self._attached, attempt.record, known.process)
            return attempt
        if known is not None and attempt.packets > 1:
            known = limit_to_one_packet(known)
        if attempt.aggregation is None:
            began_ns = self._account.read_ns or 0
            record, packets = attempt.record, attempt.packets
            seen = self._fallback_chain.since_last(self._attached, record, packets, began_ns)
            known = seen or known
        elif attempt.record.uid is None:
            return attempt  # its packets may be of several users
        return replace(
            attempt, attribution=known or self._fallback_chain.user_attribution(attempt.record)
        )

    async def _commit(
        self,
        lines: Sequence[bytes],
        found: Sequence[Attempt | FanOut | IncidentEnd] = (),
        *,
        is_final: bool = False,
    ) -> None:
        """Store new events and the changed counts in one transaction.

        The events are ``lines``, and those about ``found``. After a cancellation, they are stored
        too, since the account has them as reported. But nothing waits for a full disk then.
        """
        committing = await run_shielded(self._begin_commit(lines, found, is_final=is_final))
        await asyncio.wait([committing])
        committing.result()

    async def _begin_commit(
        self,
        lines: Sequence[bytes],
        found: Sequence[Attempt | FanOut | IncidentEnd],
        *,
        is_final: bool,
    ) -> asyncio.Task[None]:
        lines = [*lines, *await self._reporter.lines(found)]
        change = AccountChange(self.sandbox)
        for _ in codec.collect(self._account, change, is_final=is_final):
            await asyncio.sleep(0)
        position = None
        if self.position is not None and self.position != self._stored_position:
            position = Position(self.sandbox, self._source, self.position)
            self._stored_position = self.position
        whole = Change(events=lines, account=change or None, position=position)
        is_empty = not (lines or change or position)
        committing = asyncio.sleep(0) if is_empty else self._reporter.commit(whole)
        self._committing = asyncio.create_task(committing)
        # After a cancellation, nothing waits for an error.
        self._committing.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._committing


def _with_send_time(record: Record, attribution: Attribution) -> Record:
    # The time of a late read could fit a later packet of another process.
    if attribution.sent_ns is None or not record.is_timed_when_read:
        return record
    return replace(record, time_ns=min(attribution.sent_ns, record.received_ns))
