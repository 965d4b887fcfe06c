"""Interface of all sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from ocsf_nft.record import Batch


class Source(Protocol):
    """Stream of batches of kernel records, inside one asynchronous context.

    Entering the context opens the source; it raises SourceError, UnsupportedError or AbsentError.
    From then on the source misses no record silently. The iteration gives back-pressure: a source
    reads nothing while its consumer is busy, and reports records that the kernel then drops as a
    Gap. A replay ends with its files. A live source ends when its context is left or its task is
    cancelled.
    """

    async def __aenter__(self) -> Self:
        """Open the source."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the source."""

    def batches(self) -> AsyncIterator[Batch]:
        """Yield the records that are read, in the kernel's order; no batch is empty.

        A source whose transport also carries other messages yields batches with only a new cursor,
        at most once a second. So its position advances although matching records are rare.
        """
