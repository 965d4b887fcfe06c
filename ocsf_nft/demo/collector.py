"""Sink of the demo: stores events in memory, and finds the first event that meets a condition."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from ocsf_nft.delivery.sinks.base import DELIVERED, BatchResult, Sink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocsf_nft.delivery.envelope import Message


class Collector(Sink):
    """Sink that stores all events in memory."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._arrival = asyncio.Condition()
        self._is_closed = False

    async def open(self) -> None:
        """Do nothing: there is nothing to open."""

    async def close(self) -> None:
        """Close the sink: waiting calls of :meth:`find` return."""
        async with self._arrival:
            self._is_closed = True
            self._arrival.notify_all()

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Store a batch of events in :attr:`events`, and wake the callers of :meth:`find`."""
        self.events += [message.event() for message in messages]
        async with self._arrival:
            self._arrival.notify_all()
        return DELIVERED

    async def find(
        self, is_selected: Callable[[dict[str, Any]], bool], seconds: float
    ) -> dict[str, Any] | None:
        """Return the first event for which ``is_selected`` returns true; wait until it arrives.

        Returns None if no such event arrives within ``seconds``, or before :meth:`close` is called.
        """

        def found() -> dict[str, Any] | None:
            return next(filter(is_selected, self.events), None)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._arrival:
                await self._arrival.wait_for(lambda: self._is_closed or found() is not None)
        return found()
