"""Interface of all sources of packet log records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from ocsf_nft.record import Batch


class Source(Protocol):
    """Interface of a source of packet log records, used as an asynchronous context manager.

    Entering the context opens the source, or raises SourceError, UnsupportedError or AbsentError.
    While the consumer handles a batch, the source reads nothing. If the kernel drops log records, a
    later batch has a Gap for them. A source of log files ends after its last file. A live source
    ends when its context exits or its task is cancelled.
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
        """Yield batches of log records, in the order in which the kernel logged them.

        A batch has at least one of these: a record, a Gap, a Reject (text that is no valid record),
        or a new cursor (the position to resume from). The cursor also moves past other messages in
        the log. A batch with only a new cursor comes at most once per second.
        """
