"""Store of events: each event once, until every sink has it, and for some time after that.

When :meth:`Store.put` returns, its events are on the disk, safe from a power cut. An event with the
``metadata.uid`` of a stored one is not stored again. Each sink has a checkpoint: the number of the
last event that it has acknowledged, or that is not for it. Events that a sink refuses are stored
apart, with the reason (dead letters).

One thread does all work, in order. All methods may raise DeliveryError.
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
    """Asynchronous access to one :class:`EventDatabase`, for a run and its forwarders."""

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
        """Open the file; quarantine a damaged one."""
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
        """Close the file."""
        await self._shut()

    async def _shut(self) -> None:
        # Shielded from cancellation: afterwards another store may open the file.
        closing = self._worker.submit(self._database.close)
        self._worker.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closing))

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self._database.path

    @property
    def end(self) -> int:
        """Number of the last event; 0 if there never was one."""
        return self._database.end

    @property
    def used_bytes(self) -> int:
        """Size of the events on the disk in bytes, as of the last transaction."""
        return self._database.used_bytes

    @property
    def max_bytes(self) -> int:
        """Largest size of the events on the disk, in bytes."""
        return self._database.max_bytes

    def fault(self) -> str | None:
        """Return the report about a quarantined file once; None if there is no new one."""
        return self._database.fault()

    async def register(self, names: Iterable[str]) -> tuple[DroppedEvents, ...]:
        """Set the sinks; return the undelivered events of each sink that was removed.

        A new sink gets the events that are stored from now on.
        """
        return await self._work(lambda: self._database.register(frozenset(names)))

    async def put(self, lines: Sequence[bytes], *, source: str = "", position: str = "") -> None:
        """Store events, given as one JSON line each, and the ``position`` of their ``source``.

        All calls that wait are stored in one transaction. If the call raises, nothing is stored.
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
        """Wait until there is an event with a higher number than ``beyond``."""
        while self.end <= beyond:
            await self._stored.wait()

    async def read(self, beyond: int, *, events: int, size: int) -> list[StoredEvent]:
        """Return the next events after a number.

        At most ``events`` events and ``size`` bytes, but at least one event if there is one.
        """
        return await self._work(lambda: self._database.read(beyond, LAST, events, size))

    async def read_until(self, beyond: int, until: int) -> list[StoredEvent]:
        """Return all events with numbers above ``beyond``, up to and including ``until``."""
        return await self._work(lambda: self._database.read(beyond, until, LAST, LAST))

    async def checkpoint(self, sink: str) -> tuple[int, int | None]:
        """Return the numbers of a sink's last acknowledged event and of its batch's last event.

        The second number is None if no batch is pending.
        """
        return await self._work(lambda: self._database.checkpoint(sink))

    async def begin_batch(self, sink: str, until: int) -> None:
        """Store the last event number of a batch, before it is sent."""
        await self._work(lambda: self._database.begin_batch(sink, until))

    async def acknowledge(
        self, sink: str, until: int, refused: Sequence[RefusedEvent] = ()
    ) -> None:
        """Store that a sink has all events up to ``until``, except the ``refused`` ones.

        The refused events become dead letters.
        """
        await self._work(lambda: self._database.acknowledge(sink, until, refused))

    async def dead_letters_to_retry(self, sink: str, *, events: int) -> list[DeadLetter]:
        """Return the first dead letters of a sink with a requested retry, at most ``events``."""
        return await self._work(lambda: self._database.dead_letters_to_retry(sink, events))

    async def count_dead_letters(self, sink: str) -> int:
        """Return the number of dead letters of a sink."""
        return await self._work(lambda: self._database.count_dead_letters(sink))

    async def finish_retries(
        self, delivered: Sequence[DeadLetter], refused: Sequence[tuple[DeadLetter, str]]
    ) -> None:
        """Delete the delivered dead letters, and store the new reasons of the refused ones.

        Retention may have removed some of them meanwhile.
        """
        await self._work(lambda: self._database.finish_retries(delivered, refused))

    async def sweep(self) -> None:
        """Remove the events that are too old, in parts; other operations run between them."""
        while await self._work(self._database.sweep):
            pass

    async def dropped_events(self) -> tuple[DroppedEvents, ...]:
        """Return the unreported events that were removed before their sinks had them.

        Events count as unreported until :meth:`confirm_reported`.
        """
        return await self._work(self._database.dropped_events)

    async def confirm_reported(self, dropped: Sequence[DroppedEvents]) -> None:
        """Subtract events that have been reported from the unreported ones."""
        await self._work(lambda: self._database.confirm_reported(dropped))

    async def position(self, source: str) -> str | None:
        """Return the stored position of a source that belongs to no sandbox; None without one."""
        return await self._work(lambda: self._database.position(source))

    async def remove(self) -> bool:
        """Delete the file if no sink needs any of its events; return whether it was deleted.

        If it was, close the store afterwards.
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
    """Events that wait to be stored, and the name and position of their source."""

    lines: Sequence[bytes]
    position: tuple[str, str] | None
    is_stored: bool = False
