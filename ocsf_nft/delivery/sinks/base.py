"""What every sink is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType


class Sink(Protocol):
    """A place that events are delivered to: one asynchronous context, one call per batch."""

    async def __aenter__(self) -> Self:
        """Open it; raises DeliveryError when it can't be."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""

    async def deliver(self, events: Sequence[bytes]) -> None:
        """Deliver serialised events, whole and in order, and return when they are.

        May be called from several tasks at once. Raises DeliveryError when it fails; no part of
        an event stays behind then.
        """
