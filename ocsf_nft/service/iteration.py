"""Stored events for a program that iterates over a service: ``async for event in service``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import orjson

from ocsf_nft.service.delivery_answers import SinkStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ocsf_nft.state.state_db import StoredEvent
    from ocsf_nft.state.state_store import StateStore

#: Name in the status and metrics, beside those of the sinks.
NAME: Final = "iterated"
#: Number and size of the events that are read at a time.
_EVENTS: Final = 100
_BYTES: Final = 1 << 20


class Iteration:
    """Events of ``store`` for a program, in order.

    The program has taken an event when it requests the next one. The number of the last one is
    stored, so that a restart continues there. Only one caller at a time may iterate.
    """

    def __init__(self, store: StateStore, taken: int) -> None:
        """Create an iteration that begins after the event ``taken``."""
        self._store = store
        #: Number of the last event that was taken.
        self.acknowledged = taken
        #: Called when an event was taken.
        self.on_taken: Callable[[], None] = lambda: None
        self._taken = 0
        self._changed = asyncio.Event()
        self._over = asyncio.Event()

    async def events(self) -> AsyncIterator[Any]:
        """Yield the events as decoded JSON, until :meth:`end`."""
        while not self._over.is_set():
            self._changed.clear()
            found = await self._read()
            for event in found:
                yield orjson.loads(event.line)
                if self._over.is_set():
                    return
                await self._take(event.number)
            if found:
                continue
            if self.acknowledged < self._store.database.end:  # the events were removed meanwhile
                self._note_taken(self._store.database.end)
            else:
                await self._changed.wait()

    async def _read(self) -> list[StoredEvent]:
        beyond, database = self.acknowledged, self._store.database
        return await self._store.retry(lambda: database.read(beyond, events=_EVENTS, size=_BYTES))

    async def _take(self, number: int) -> None:
        await self._store.retry(lambda: self._store.database.set_iterated(number))
        await asyncio.sleep(0)  # the service goes on, also if the program never waits
        self._taken += 1
        self._note_taken(number)

    def _note_taken(self, number: int) -> None:
        self.acknowledged = number
        self._changed.set()
        self.on_taken()

    def wake(self) -> None:
        """Note that there may be new events."""
        self._changed.set()

    async def drain(self) -> None:
        """Wait until all stored events are taken."""
        while self.acknowledged < self._store.database.end:
            self._changed.clear()
            await self._changed.wait()

    def end(self) -> None:
        """End the iteration: the program gets no more events."""
        self._over.set()
        self._changed.set()

    @property
    def status(self) -> SinkStatus:
        """Return the progress, in the form of a sink's."""
        return SinkStatus(
            name=NAME,
            done=self.acknowledged,
            delivered=self._taken,
            refused=0,
            failures=0,
            dead=0,
            fault=None,
        )
