"""Collector of the demo's events: finds the first event that meets a condition."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable


class Collector:
    """Events of a service, in memory."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._arrival = asyncio.Condition()
        self._is_over = False

    async def collect(self, events: AsyncIterable[dict[str, Any]]) -> None:
        """Store all ``events``, and wake the callers of :meth:`find`."""
        try:
            async for event in events:
                self.events.append(event)
                async with self._arrival:
                    self._arrival.notify_all()
        finally:
            self._is_over = True
            async with self._arrival:
                self._arrival.notify_all()

    async def find(
        self, is_selected: Callable[[dict[str, Any]], bool], seconds: float
    ) -> dict[str, Any] | None:
        """Return the first event for which ``is_selected`` returns true; wait until it arrives.

        Returns None if no such event arrives within ``seconds``, or before the events end.
        """

        def found() -> dict[str, Any] | None:
            return next(filter(is_selected, self.events), None)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._arrival:
                await self._arrival.wait_for(lambda: self._is_over or found() is not None)
        return found()
