"""A sink whose events are iterated over in the same process."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from ocsf_nft.delivery.sinks.base import DELIVERED, Outcome, Sink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from ocsf_nft.delivery.envelope import Message


class IteratorSink(Sink):
    """Hands over event by event, and has delivered a batch when all of it was taken.

    An event is taken when the next one is asked for: who leaves off there gets it again.
    """

    def __init__(self) -> None:
        self._pending: deque[Message] = deque()
        self._change = asyncio.Event()
        self._is_over = False

    async def open(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """There is nothing to close: another forwarder may go on with it."""

    async def deliver(self, messages: Sequence[Message]) -> Outcome:
        """Return when all of a batch was taken."""
        self._pending.extend(messages)
        self._notify()
        try:
            while self._pending:
                await self._changed()
        finally:
            self._pending.clear()  # who is cut short delivers all of it again
        return DELIVERED

    def end(self) -> None:
        """Let the iteration end: nothing more will come."""
        self._is_over = True
        self._notify()

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The events, until the end."""
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
