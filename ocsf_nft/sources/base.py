"""What every source is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from ocsf_nft.record import Batch


class Source(Protocol):
    """A place that records are read from: one asynchronous context, one stream of batches.

    Entering opens it (SourceError, UnsupportedError or AbsentError when that fails) and, once
    entered, no record that the kernel makes is missed silently. Back-pressure is the iteration
    itself: nothing is read while the consumer is busy, and what the kernel then drops comes as a
    Gap. Replayed sources end; live ones go on until their context is left or their task cancelled.
    """

    async def __aenter__(self) -> Self:
        """Open it."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""

    def batches(self) -> AsyncIterator[Batch]:
        """What is read, in the kernel's order; never an empty batch.

        A source that shares its transport with other messages also yields batches with nothing but
        a new cursor, at most once a second: a position moves on though matches are rare.
        """
