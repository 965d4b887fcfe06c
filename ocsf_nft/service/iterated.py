"""A sink whose events are iterated over in the same process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from ocsf_nft.delivery.sinks.base import DELIVERED, Outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from types import TracebackType

    from ocsf_nft.delivery.message import Message


class Iterated:
    """Hands over batch by batch, and has delivered one when the next is asked for."""

    def __init__(self) -> None:
        self._batches: asyncio.Queue[tuple[Sequence[Message], asyncio.Event] | None]
        self._batches = asyncio.Queue()

    async def __aenter__(self) -> Self:
        """Open it: there is nothing to open."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let the iteration end."""
        self._batches.put_nowait(None)

    async def deliver(self, messages: Sequence[Message]) -> Outcome:
        """Return when all of a batch was taken."""
        taken = asyncio.Event()
        self._batches.put_nowait((messages, taken))
        await taken.wait()
        return DELIVERED

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The events, until the sink is closed."""
        while (batch := await self._batches.get()) is not None:
            messages, taken = batch
            for message in messages:
                yield message.event()
            taken.set()
