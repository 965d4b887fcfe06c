"""Store of events on disk, from which each sink (destination) gets its events.

An event stays at least until every sink has acknowledged it. Only the limits of size and age can
remove the event earlier. All methods may raise DeliveryError.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

from ocsf_nft.delivery.event_db import EventDatabase
from ocsf_nft.delivery.retention import LAST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    from ocsf_nft.delivery.event_db import DeadLetter, RefusedEvent, StoredEvent
    from ocsf_nft.delivery.retention import DroppedEvents

T = TypeVar("T")


class Store:
    """Asynchronous access to one :class:`EventDatabase`; one thread does all work, in order."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = 1 << 30,
        max_seconds: float = 30 * 86_400.0,
        drops: bool = False,
    ) -> None:
        self._database = EventDatabase(
            path, max_bytes=max_bytes, max_seconds=max_seconds, drops=drops
        )
        self._waiting: list[_Put] = []
        self._stored = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._loop: asyncio.AbstractEventLoop

    async def __aenter__(self) -> Self:
        """Open the database file; rename a damaged file, and create a new one in its place."""
        self._loop = asyncio.get_running_loop()
        try:
            await self._work(self._database.open)
        except BaseException:
            await self._shut()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the database file."""
        await self._shut()

    async def _shut(self) -> None:
        # Shielded from cancellation: afterwards another store may open the file.
        closing = self._worker.submit(self._database.close)
        self._worker.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closing))

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
        """Return the used size of the database in bytes, as measured in the last transaction."""
        return self._database.used_bytes

    @property
    def max_bytes(self) -> int:
        """Return the largest allowed size of the database, in bytes."""
        return self._database.max_bytes

    def fault(self) -> str | None:
        """Return a message if a damaged database file was renamed, else None.

        Each message is returned only once.
        """
        return self._database.fault()

    async def register(self, names: Iterable[str]) -> tuple[DroppedEvents, ...]:
        """Set the names of all sinks (destinations of events); remove all other sinks.

        For each removed sink with undelivered events, the result has the number of these events. A
        new sink gets only events stored from now on.
        """
        return await self._work(lambda: self._database.register(frozenset(names)))

    async def put(self, lines: Sequence[bytes], *, source: str = "", position: str = "") -> None:
        """Store events (JSON lines), and return when they are on the disk.

        An event with the ``metadata.uid`` of a stored event is ignored. ``source`` is the name of a
        log, or empty. The read position of that log, ``position``, is stored in the same
        transaction. Raises DeliveryError if the transaction fails; then the call may be repeated.
        """
        put = _Put(lines, (source, position) if source else None)
        self._waiting.append(put)
        try:
            await self._work(lambda: self._put(put))
        finally:
            # Also if the caller was cancelled before the worker stored its events.
            with contextlib.suppress(ValueError):
                self._waiting.remove(put)

    async def wait_for_event(self, beyond: int) -> None:
        """Wait until the store has an event with a number above ``beyond``."""
        while self.end <= beyond:
            await self._stored.wait()

    async def read(self, beyond: int, *, events: int, size: int) -> list[StoredEvent]:
        """Return the next stored events with numbers above ``beyond``, in order.

        Returns at most ``events`` events, with at most ``size`` bytes of JSON in total. The first
        event is returned even if it is larger.
        """
        return await self._work(lambda: self._database.read(beyond, LAST, events, size))

    async def read_until(self, beyond: int, until: int) -> list[StoredEvent]:
        """Return all events with numbers above ``beyond``, up to and including ``until``."""
        return await self._work(lambda: self._database.read(beyond, until, LAST, LAST))

    async def checkpoint(self, sink: str) -> tuple[int, int | None]:
        """Return two event numbers that describe the progress of a sink.

        The sink no longer needs the events up to and including the first number. The second is the
        number of the pending batch's last event, or None without a pending batch. A batch is
        pending from :meth:`begin_batch` until :meth:`acknowledge`.
        """
        return await self._work(lambda: self._database.checkpoint(sink))

    async def begin_batch(self, sink: str, until: int) -> None:
        """Store that a batch is sent to a sink next; ``until`` is the batch's last event number.

        The batch begins with the first event that the sink still needs (:meth:`checkpoint`). After
        a crash, exactly the same batch can then be sent again.
        """
        await self._work(lambda: self._database.begin_batch(sink, until))

    async def acknowledge(
        self, sink: str, until: int, refused: Sequence[RefusedEvent] = ()
    ) -> None:
        """Store that a sink no longer needs the events up to and including number ``until``.

        ``refused`` are the events that the sink refused: they are stored as dead letters.
        """
        await self._work(lambda: self._database.acknowledge(sink, until, refused))

    async def dead_letters_to_retry(self, sink: str, *, events: int) -> list[DeadLetter]:
        """Return a sink's dead letters for which a user requested a retry, oldest first.

        A dead letter is an event that the sink refused. Returns at most ``events`` of them.
        """
        return await self._work(lambda: self._database.dead_letters_to_retry(sink, events))

    async def count_dead_letters(self, sink: str) -> int:
        """Return the number of dead letters of a sink: the stored events that the sink refused."""
        return await self._work(lambda: self._database.count_dead_letters(sink))

    async def finish_retries(
        self, delivered: Sequence[DeadLetter], refused: Sequence[tuple[DeadLetter, str]]
    ) -> None:
        """Store the results of retries: delete delivered dead letters, and keep refused ones.

        A dead letter is an event that a sink refused. ``refused`` has pairs: a dead letter, and
        why the sink refused it again.
        """
        await self._work(lambda: self._database.finish_retries(delivered, refused))

    async def sweep(self) -> None:
        """Remove all events and dead letters that are older than the store's age limit."""
        while await self._work(self._database.sweep):
            pass

    async def dropped_events(self) -> tuple[DroppedEvents, ...]:
        """Return for each sink how many events were removed before the sink had received them.

        Events that :meth:`confirm_reported` has marked as reported are not counted.
        """
        return await self._work(self._database.dropped_events)

    async def confirm_reported(self, dropped: Sequence[DroppedEvents]) -> None:
        """Mark dropped events as reported: :meth:`dropped_events` no longer counts them.

        A dropped event was removed from the store before a sink had received it. ``dropped`` is
        an earlier result of :meth:`dropped_events`.
        """
        await self._work(lambda: self._database.confirm_reported(dropped))

    async def position(self, source: str) -> str | None:
        """Return the stored position at which to resume reading the log ``source``, or None.

        Only a log that belongs to no sandbox, such as the host's log, has its position in
        the store.
        """
        return await self._work(lambda: self._database.position(source))

    async def remove(self) -> bool:
        """Delete the database file, unless it has undelivered events or dead letters.

        A dead letter is an event that a sink refused. Return True if the file was deleted. After a
        deletion, the caller must close the store.
        """
        return await self._work(self._database.remove)

    def _put(self, put: _Put) -> None:
        if put.is_stored:  # together with an earlier one
            return
        waiting = tuple(self._waiting)
        self._database.put(
            [line for each in waiting for line in each.lines],
            [each.position for each in waiting if each.position is not None],
        )
        for each in waiting:
            each.is_stored = True
        # From this thread, since the caller may have been cancelled meanwhile.
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        stored, self._stored = self._stored, asyncio.Event()
        stored.set()

    async def _work(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)


@dataclass(slots=True, eq=False)
class _Put:
    """Events of one call of :meth:`Store.put`; the call waits until they are on the disk."""

    lines: Sequence[bytes]
    #: Name of the events' log, and where to resume reading it; None to store no position.
    position: tuple[str, str] | None
    is_stored: bool = False
