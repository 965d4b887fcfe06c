"""Sink that writes JSON Lines to standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ocsf_nft.delivery.sinks.base import DELIVERED, BatchResult, Message, Sink
from ocsf_nft.delivery.sinks.line_writer import WriterThread, lines_of, write_lines
from ocsf_nft.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Stdout(Sink):
    """Sink that writes events to standard output, one line each.

    If the reader of a pipe exits, the events in the pipe are dropped. If the pipe is full, the sink
    waits for the reader.
    """

    def __init__(self) -> None:
        self._writer = WriterThread("stdout", "standard output")
        self._start = b""

    def note_crash(self) -> None:
        """Note that another process has written before: its last line may be incomplete."""
        # The next line must not be joined to it. If it is complete, there is an empty line.
        self._start = b"\n"

    async def open(self) -> None:
        """Start the writer thread.

        A write that began before the last :meth:`close` may still run. This method first waits for
        the end of that write.
        """
        await self._writer.start()

    async def close(self) -> None:
        """Stop the writer thread, but do not wait for a running write; stdout stays open."""
        await self._writer.stop()

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Write the events of ``messages``, one line each.

        Raises ClosedError if the reader has closed the pipe, DeliveryError if the write fails for
        another reason.
        """
        lines = self._start + lines_of(messages)
        await self._writer.run(lambda: _write(lines))
        self._start = b""
        return DELIVERED


def _write(lines: bytes) -> None:
    try:
        write_lines(sys.stdout.fileno(), lines)
    except ConnectionError as error:  # a pipe, or the socket of a journal
        raise ClosedError("standard output can't be written: its reader has closed it") from error
