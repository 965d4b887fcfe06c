"""Interface of all sources of packet log records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from ocsf_nft.record import Batch


class Source(Protocol):
    """Interface of a source of packet log records, used as an asynchronous context manager.

    Entering the context may raise SourceError, UnsupportedError, AbsentError. A source of files
    ends after its last file, a live source when its context exits.
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

    # While the consumer handles a batch, the source reads nothing. If the kernel drops log records,
    # a later batch has a Gap for them. The cursor also moves past other messages in the log; a
    # batch with only a new cursor comes at most once per second.
    def batches(self) -> AsyncIterator[Batch]:
        """Yield batches of log records, in the order in which the kernel logged them.

        A batch has at least one record, Gap (lost log records), Reject (text that is no valid log
        record) or new cursor (position to resume from).
        """
