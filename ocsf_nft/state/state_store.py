"""Access of the service to its state database.

All methods may raise DeliveryError.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import structlog

from ocsf_nft.errors import DeliveryError
from ocsf_nft.state.retry_until_writable import UnfinishedError
from ocsf_nft.state.state_db import StateDatabase

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from ocsf_nft.state.change import Account, Change, DroppedRecords
    from ocsf_nft.state.dropped_events import DroppedEvents
    from ocsf_nft.state.retry_until_writable import StorageRetrier
    from ocsf_nft.state.state_db import StoredEvent

_log = structlog.get_logger()

#: Maximum number of events in one transaction, except for those of a single change.
_MAX_EVENTS: Final = 512
#: Number of pages in SQLite's log after which a thread copies them into the database file.
_LOG_PAGES: Final = 1000
#: Pages that a transaction changes at least, and those that an event changes: that of the event, of
#: its uid, and of the index.
_COMMIT_PAGES: Final = 3
_EVENT_PAGES: Final = 3


class StateStore:
    """State database of a service: events, packet counts and read positions.

    Changes that are committed at the same time are stored in one transaction. The event loop waits
    during the transaction, because a thread would take longer.
    """

    def __init__(
        self,
        path: Path,
        retrier: StorageRetrier,
        *,
        max_bytes: int = 1 << 30,
        max_seconds: float = 30 * 86_400.0,
        drops: bool = False,
    ) -> None:
        self._database = StateDatabase(
            path, max_bytes=max_bytes, max_seconds=max_seconds, drops=drops
        )
        self._retrier = retrier
        self._pending: list[_Commit] = []
        self._submitted = asyncio.Event()
        self._failure: BaseException | None = None
        #: Called with the number of the last event once new events are stored.
        self.on_stored: Callable[[int], None] | None = None
        #: Estimated number of pages in SQLite's log.
        self._log_pages = 0
        self._checkpoint: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        """Open the database file; rename a damaged file, and create a new one in its place.

        See :meth:`faults` for the report about a damaged file.
        """
        # The check of a large file takes long, and the sources already have records.
        opening = asyncio.ensure_future(asyncio.to_thread(self._database.open))
        try:
            await asyncio.shield(opening)
        except BaseException:
            await asyncio.wait([opening])  # the thread goes on after a cancellation
            self._database.close()
            raise
        self._writer = asyncio.create_task(self._write())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Store the pending changes, if the disk accepts them, and close the database file."""
        try:
            self._writer.cancel()
            await asyncio.wait([self._writer])
            if self._checkpoint is not None:
                await asyncio.wait([self._checkpoint])
            if self._pending and self._failure is None:
                self._database.commit([each.change for each in self._pending])
        except DeliveryError as failure:
            _log.error("the last changes could not be stored", reason=str(failure))
        finally:
            self._database.close()

    @property
    def identity(self) -> str:
        """Return a random text that no other state database has."""
        return self._database.identity

    @property
    def path(self) -> Path:
        """Return the path of the database file."""
        return self._database.path

    @property
    def end(self) -> int:
        """Return the event number of the last stored event; 0 if no event was ever stored."""
        return self._database.end

    @property
    def used_bytes(self) -> int:
        """Return the size of the stored events in bytes."""
        return self._database.used_bytes

    @property
    def max_bytes(self) -> int:
        """Return the largest allowed size of the stored events, in bytes."""
        return self._database.max_bytes

    async def commit(self, change: Change) -> None:
        """Store a change, and return when it is stored; its events are then on the disk.

        A failed transaction is repeated until it succeeds. Raises DeliveryError if it still fails
        when the service has stopped. The change is stored even if the caller is cancelled.
        """
        if isinstance(self._failure, DeliveryError):
            raise self._failure
        if self._failure is not None:
            raise DeliveryError(f"nothing can be stored any more: {self._failure}")
        commit = _Commit(change, asyncio.get_running_loop().create_future())
        self._pending.append(commit)
        self._submitted.set()
        await commit.done

    async def _write(self) -> None:
        try:
            while True:
                await self._submitted.wait()
                self._submitted.clear()
                while self._pending:
                    await self._write_some()
                    await asyncio.sleep(0)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - any failure is raised by the callers
            self._failure = error
            for each in self._pending:
                if not each.done.done():
                    each.done.set_exception(error)
            self._pending.clear()

    async def _write_some(self) -> None:
        number = _count_joint(self._pending)
        changes = [each.change for each in self._pending[:number]]
        # Nothing may be awaited after a success: after a cancellation, it would be stored again.
        stored = await self._retrier(lambda: self._transaction(changes))
        written = self._pending[:number]
        del self._pending[:number]
        for each in written:
            if not each.done.done():  # its caller was cancelled
                each.done.set_result(None)
        if stored and self.on_stored is not None:
            self.on_stored(self.end)
        rows = sum(len(each.account.parts) for each in changes if each.account is not None)
        self._log_pages += _COMMIT_PAGES + _EVENT_PAGES * stored + rows
        self._start_checkpoint()

    def _transaction(self, changes: Sequence[Change]) -> int:
        if any(each.events for each in changes) and self._database.make_room():
            raise UnfinishedError
        return self._database.commit(changes)

    def _start_checkpoint(self) -> None:
        # Otherwise a commit does this from time to time, and takes some milliseconds longer.
        is_running = self._checkpoint is not None and not self._checkpoint.done()
        if self._log_pages >= _LOG_PAGES and not is_running:
            self._log_pages = 0
            self._checkpoint = asyncio.ensure_future(self._copy_log())

    async def _copy_log(self) -> None:
        try:
            await asyncio.to_thread(self._database.checkpoint_log)
        except DeliveryError as error:  # a later commit reports it, if the disk stays unwritable
            _log.debug("the database's log could not be copied", reason=str(error))

    def set_acknowledged(self, acknowledged: Mapping[str, int]) -> None:
        """Set the number of the last event that each sink has acknowledged.

        Later events stay until each sink has acknowledged them, unless they are too old, or the
        database is full.
        """
        self._database.set_acknowledged(acknowledged)

    async def read(self, beyond: int, *, events: int, size: int) -> list[StoredEvent]:
        """Return at most ``events`` events with numbers above ``beyond``, in order.

        They have at most ``size`` bytes of JSON, but the first one may be larger. Retry after a
        failure.
        """
        return await self._retrier(lambda: self._database.read(beyond, events=events, size=size))

    async def begin_iteration(self) -> int:
        """Return the number of the last event that an iterating program has taken.

        The first iteration begins with the next new event.
        """
        return await self._retrier(self._database.begin_iteration)

    async def set_iterated(self, number: int) -> None:
        """Store the number of the last event that an iterating program has taken."""
        await self._retrier(lambda: self._database.set_iterated(number))

    async def account(self, sandbox: str) -> Account:
        """Return the stored account of a sandbox; empty if none is stored."""
        return self._database.account(sandbox)

    def has_account(self, sandbox: str) -> bool:
        """Return True if anything about a sandbox is stored, apart from its events."""
        return self._database.has_account(sandbox)

    async def replace_account(self, sandbox: str, account: Account) -> None:
        """Replace the account of a sandbox."""
        await self._retrier(lambda: self._database.replace_account(sandbox, account))

    async def remove_account(self, sandbox: str) -> None:
        """Delete a sandbox's account and numbers of dropped records; its events stay stored."""
        await self._retrier(lambda: self._database.remove_account(sandbox))

    async def dropped_records(self, sandbox: str) -> tuple[DroppedRecords, ...]:
        """Return the numbers of gaps and missing log records of each source of a sandbox."""
        return self._database.dropped_records(sandbox)

    async def host_position(self, source: str) -> str | None:
        """Return the position at which to resume reading other firewalls' records, or None."""
        return self._database.host_position(source)

    async def sweep(self) -> None:
        """Remove all events that are older than the store's age limit; retry after a failure."""
        while await self._retrier(self._database.sweep):  # noqa: ASYNC110 - it removes some
            await asyncio.sleep(0)

    async def dropped_events(self) -> tuple[DroppedEvents, ...]:
        """Return for each sink how many events were removed before the sink had received them.

        Events that :meth:`confirm_reported` has marked as reported are not counted.
        """
        return await self._retrier(self._database.dropped_events)

    async def faults(self) -> tuple[str, ...]:
        """Return the reports about damaged files that were renamed.

        A report stays, over restarts, until :meth:`confirm_fault` has confirmed it.
        """
        return await self._retrier(self._database.faults)

    async def confirm_fault(self, report: str) -> None:
        """Confirm that an event has a report: :meth:`faults` no longer returns it."""
        await self._retrier(lambda: self._database.confirm_fault(report))

    async def confirm_reported(self, dropped: Sequence[DroppedEvents]) -> None:
        """Mark dropped events as reported: :meth:`dropped_events` no longer counts them.

        ``dropped`` is an earlier result of :meth:`dropped_events`.
        """
        await self._retrier(lambda: self._database.confirm_reported(dropped))


@dataclass(slots=True, eq=False)
class _Commit:
    """Change to store, and the future of the caller that waits for it."""

    change: Change
    done: asyncio.Future[None]


def _count_joint(pending: Sequence[_Commit]) -> int:
    """Return how many of the pending changes one transaction stores: one at least."""
    events = 0
    for number, each in enumerate(pending):
        events += len(each.change.events)
        if events > _MAX_EVENTS:
            return max(1, number)
    return len(pending)
