"""Sink that writes JSON Lines to the Unix stream socket of a program on this host.

If the connection breaks, the last line that the program received may be incomplete. The whole batch
of events is then sent again, so some events may arrive twice.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from ocsf_nft.delivery.sinks.base import DELIVERED, BatchResult, Message, Sink
from ocsf_nft.delivery.sinks.error_text import cause
from ocsf_nft.delivery.sinks.line_writer import lines_of
from ocsf_nft.delivery.sinks.stream_connection import Stream
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Unix(Sink):
    """Sink for a program that listens on the Unix socket ``path``.

    If ``until_read`` is true, events count as delivered when the program has read them. Otherwise
    they count as delivered when they are in the socket's buffer.
    """

    def __init__(self, *, path: Path, until_read: bool = True) -> None:
        self._path = path
        self._until_read = until_read
        self._stream: Stream | None = None

    async def open(self) -> None:
        """Connect to the program's socket; raises DeliveryError if that fails."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # Not the event loop's connect: it waits if the listener's backlog is full.
            sock.connect(os.fsencode(self._path))
        except OSError as error:
            sock.close()
            raise DeliveryError(
                f"{self._path} can't be connected to: {cause(error)}: "
                "start the program that listens there"
            ) from error
        self._stream = Stream(sock)

    async def close(self) -> None:
        """Close the connection to the program that listens on the Unix socket."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Send events, one line each, to the program that listens on the Unix socket.

        Raises DeliveryError if the connection is not open or breaks.
        """
        if self._stream is None:
            raise DeliveryError(f"{self._path} is not connected")
        try:
            await self._stream.send(lines_of(messages))
            # The program sends no acknowledgement, but the kernel counts the unread bytes.
            if self._until_read:
                await self._stream.wait_until_acknowledged()
        except OSError as error:
            raise DeliveryError(f"the connection to {self._path} broke: {cause(error)}") from error
        # Not sent again, even if the program exits before it has processed the events.
        return DELIVERED
