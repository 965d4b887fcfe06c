"""Access of the service to its state database.

All methods may raise DeliveryError.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import structlog

from ocsf_nft.errors import DeliveryError
from ocsf_nft.state.change import Change
from ocsf_nft.state.retry_until_writable import UnfinishedError
from ocsf_nft.state.state_db import StateDatabase

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ocsf_nft.state.dropped_events import DroppedEvents
    from ocsf_nft.state.retry_until_writable import StorageRetrier

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
        #: Its calls block, and raise DeliveryError if the disk can't be written.
        self.database = StateDatabase(
            path, max_bytes=max_bytes, max_seconds=max_seconds, drops=drops
        )
        #: Repeats a call of ``database`` until the disk can be written.
        self.retry = retrier
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
        """Open the database file, see :meth:`StateDatabase.open`."""
        # The check of a large file takes long, and the sources already have records.
        opening = asyncio.ensure_future(asyncio.to_thread(self.database.open))
        try:
            await asyncio.shield(opening)
        except BaseException:
            await asyncio.wait([opening])  # the thread goes on after a cancellation
            self.database.close()
            raise
        self._writer = asyncio.create_task(self._write())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Store the pending changes, if the disk accepts them, and close the database file."""
        failure = DeliveryError("the state database is closed")
        try:
            self._writer.cancel()
            await asyncio.wait([self._writer])
            if self._checkpoint is not None:
                await asyncio.wait([self._checkpoint])
            if self._pending and self._failure is None:
                self.database.commit([each.change for each in self._pending])
                self._confirm(len(self._pending))
        except DeliveryError as error:
            _log.error("the last changes could not be stored", reason=str(error))
            failure = error
        finally:
            self._fail(failure)
            self.database.close()

    async def commit(self, change: Change) -> None:
        """Store a change, and return when it is stored; its events are then on the disk.

        A failed transaction is repeated until it succeeds. Raises DeliveryError if it still fails
        when the service has stopped, and if the store is closed. The change is stored even if the
        caller is cancelled.
        """
        if isinstance(self._failure, DeliveryError):
            raise self._failure
        if self._failure is not None:
            raise DeliveryError(f"nothing can be stored any more: {self._failure}")
        commit = _Commit(change, asyncio.get_running_loop().create_future())
        self._pending.append(commit)
        self._submitted.set()
        await commit.done

    async def flush(self) -> None:
        """Return when all changes are stored that wait now; raises as :meth:`commit`.

        The database has them then, also those of callers that were cancelled.
        """
        if self._pending:
            await self.commit(Change())

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
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Raise an error in the callers that wait, and in later ones."""
        self._failure = self._failure or error
        for each in self._pending:
            if not each.done.done():  # its caller was cancelled
                each.done.set_exception(error)
        self._pending.clear()

    def _confirm(self, number: int) -> None:
        """Let the callers of the first changes return."""
        written = self._pending[:number]
        del self._pending[:number]
        for each in written:
            if not each.done.done():
                each.done.set_result(None)

    async def _write_some(self) -> None:
        number = _count_joint(self._pending)
        changes = [each.change for each in self._pending[:number]]
        # Nothing may be awaited after a success: after a cancellation, it would be stored again.
        stored = await self.retry(lambda: self._transaction(changes))
        self._confirm(number)
        if stored and self.on_stored is not None:
            self.on_stored(self.database.end)
        rows = sum(len(each.account.parts) for each in changes if each.account is not None)
        self._log_pages += _COMMIT_PAGES + _EVENT_PAGES * stored + rows
        self._start_checkpoint()

    def _transaction(self, changes: Sequence[Change]) -> int:
        if any(each.events for each in changes) and self.database.retention.make_room():
            raise UnfinishedError
        return self.database.commit(changes)

    def _start_checkpoint(self) -> None:
        # Otherwise a commit does this from time to time, and takes some milliseconds longer.
        is_running = self._checkpoint is not None and not self._checkpoint.done()
        if self._log_pages >= _LOG_PAGES and not is_running:
            self._log_pages = 0
            self._checkpoint = asyncio.ensure_future(self._copy_log())

    async def _copy_log(self) -> None:
        try:
            await asyncio.to_thread(self.database.checkpoint_log_in_thread)
        except DeliveryError as error:  # a later commit reports it, if the disk stays unwritable
            _log.debug("the database's log could not be copied", reason=str(error))

    async def sweep(self) -> None:
        """Remove all events that are older than the store's age limit; retry after a failure."""
        while await self.retry(self.database.sweep):  # noqa: ASYNC110 - it removes some
            await asyncio.sleep(0)

    async def dropped_events(self) -> tuple[DroppedEvents, ...]:
        """Return the removed events, see :meth:`StateDatabase.dropped_events`."""
        return await self.retry(self.database.dropped_events)

    async def faults(self) -> tuple[str, ...]:
        """Return the reports about damaged files, see :meth:`StateDatabase.faults`."""
        return await self.retry(self.database.faults)

    async def confirm_fault(self, report: str) -> None:
        """Confirm that an event has a report: :meth:`faults` no longer returns it."""
        await self.retry(lambda: self.database.confirm_fault(report))


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
