"""Interface of all sources of packet log records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from ocsf_nft.record import Batch


class Source(Protocol):
    """Interface of a source of packet log records, used as an asynchronous context.

    Entering the context opens the source, or raises SourceError, UnsupportedError or AbsentError.
    From then on, the source reads each record, or reports dropped records as a Gap. It reads
    nothing while its consumer handles a batch. If the kernel drops records in that time, they are
    also in a Gap. A source of log files ends after its last file. A live source ends when its
    context exits or its task is cancelled.
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
        """Yield batches of records, in the order in which the kernel logged them.

        A batch has at least one record, gap, rejected line or new cursor. Some transports also
        carry other messages. While only such messages arrive, the source yields at most one batch
        per second, with only a new cursor. So the cursor advances although records are rare.
        """
