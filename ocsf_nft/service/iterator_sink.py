"""Sink for ``async for event in service``: code in the service's process receives the events."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from ocsf_nft.delivery.sinks.base import DELIVERED, BatchResult, Sink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from ocsf_nft.delivery.envelope import Message


class IteratorSink(Sink):
    """Sink for code in this process that iterates over :meth:`events`.

    An event is acknowledged when the iteration requests the next event. If the iteration stops
    before that, the event is delivered again later.
    """

    def __init__(self) -> None:
        self._pending: deque[Message] = deque()
        self._change = asyncio.Event()
        self._is_over = False

    async def open(self) -> None:
        """Do nothing: there is nothing to open."""

    async def close(self) -> None:
        """Do nothing: after a reload of the configuration, the same sink is used again."""

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Pass a batch of events to :meth:`events`; return when all are acknowledged."""
        self._pending.extend(messages)
        self._notify()
        try:
            while self._pending:
                await self._changed()
        finally:
            self._pending.clear()  # after a cancellation the whole batch is delivered again
        return DELIVERED

    def end(self) -> None:
        """End the iteration over :meth:`events` after the events that are already in its queue."""
        self._is_over = True
        self._notify()

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the events as decoded JSON, until :meth:`end` is called."""
        while True:
            while not self._pending:
                if self._is_over:
                    return
                await self._changed()
            message = self._pending[0]
            yield message.event()
            if self._pending and self._pending[0] is message:
                self._pending.popleft()
                self._notify()

    async def _changed(self) -> None:
        await self._change.wait()

    def _notify(self) -> None:
        change, self._change = self._change, asyncio.Event()
        change.set()
