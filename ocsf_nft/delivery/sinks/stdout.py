"""JSON Lines on standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ocsf_nft.delivery.sinks.base import DELIVERED, Outcome, Sink
from ocsf_nft.delivery.sinks.line_writer import Writer, lines_of, write_lines
from ocsf_nft.errors import ClosedError, DeliveryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.delivery.envelope import Message


class Stdout(Sink):
    """Writes events to standard output, one line each.

    A pipe acknowledges nothing: what its reader had not read when it went away is lost. A reader
    that is slow is waited for.
    """

    def __init__(self) -> None:
        self._writer = Writer("stdout", "")

    async def open(self) -> None:
        """Wait until what was being written when it was left has been."""
        try:
            await self._writer.begin(_nothing)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Leave standard output as it is, for others."""
        await self._writer.end(_nothing, is_waited_for=False)

    async def deliver(self, messages: Sequence[Message]) -> Outcome:
        """Write events; raises ClosedError when the reader of a pipe is gone for good."""
        lines = lines_of(messages)
        await self._writer.do(lambda: _write(lines))
        return DELIVERED


def _nothing() -> None:
    """Nothing is opened or closed: standard output is there all the time."""


def _write(lines: bytes) -> None:
    try:
        write_lines(sys.stdout.fileno(), lines)
    except ConnectionError as error:  # a pipe, or the socket of a journal
        raise ClosedError("standard output can't be written: its reader is gone") from error
    except OSError as error:
        raise DeliveryError(f"standard output can't be written: {error.strerror}") from error
