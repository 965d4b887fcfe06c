"""Interface of all sources of packet log records, and their error for invalid records."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ocsf_nft.record import Batch

#: First characters of a line of an NFLOG record.
NFLOG_LINE_START: Final = "NFLOG group="


class MalformedError(Exception):
    """Error: a log record can't be decoded; the exception's text is the reason."""


class Source(AbstractAsyncContextManager["Source"], Protocol):
    """Interface of a source of packet log records, used as an asynchronous context manager.

    Entering the context may raise SourceError, UnsupportedError or AbsentError. A source that reads
    files ends after the last file. A live source ends when its context exits.
    """

    @property
    def quiet_seconds(self) -> float:
        """Return the time (s) without a batch after which all records logged before are read."""

    # While the consumer handles a batch, the source reads nothing. If the kernel drops log records,
    # a later batch has a Gap for them. The cursor also moves past other messages in the log; a
    # batch with only a new cursor comes at most once per second.
    def batches(self) -> AsyncIterator[Batch]:
        """Yield batches of log records, in the order in which the kernel logged them.

        Each batch has at least one item: a record, a Gap, a Reject or a new cursor. A Gap reports
        lost log records. A Reject is text that is no valid log record. A cursor is a position from
        which reading can resume.
        """
