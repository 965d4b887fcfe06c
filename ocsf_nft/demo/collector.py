"""The demo's sink: keeps events in memory, and waits for one."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from ocsf_nft.delivery.sinks.base import DELIVERED, BatchResult, Sink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocsf_nft.delivery.envelope import Message


class Collector(Sink):
    """A sink whose events can be looked at."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._arrival = asyncio.Condition()
        self._is_closed = False

    async def open(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """Close it: what has come in stays, and nobody need wait for more."""
        async with self._arrival:
            self._is_closed = True
            self._arrival.notify_all()

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Keep events."""
        self.events += [message.event() for message in messages]
        async with self._arrival:
            self._arrival.notify_all()
        return DELIVERED

    async def find(
        self, is_wanted: Callable[[dict[str, Any]], bool], seconds: float
    ) -> dict[str, Any] | None:
        """The first event that is wanted, None when none has come in that time."""

        def found() -> dict[str, Any] | None:
            return next(filter(is_wanted, self.events), None)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._arrival:
                await self._arrival.wait_for(lambda: self._is_closed or found() is not None)
        return found()
