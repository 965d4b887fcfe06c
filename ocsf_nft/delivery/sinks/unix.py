"""JSON Lines through a Unix stream socket, to a program of this host that listens there.

The program (Vector, Fluent Bit, a supervisor) acknowledges nothing. With ``until_read`` an event
counts as delivered when it has read it; one that dies with events that it had not read gets them
again when it is back. What it had read and not done anything with is lost to it. After a
connection broke, all of a batch is sent again: it may have read a part of it, and of the last
event, which then has no line end, half.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from ocsf_nft.delivery.sinks.base import DELIVERED, Outcome, Sink
from ocsf_nft.delivery.sinks.error_text import cause
from ocsf_nft.delivery.sinks.line_writer import lines_of
from ocsf_nft.delivery.sinks.stream_connection import Stream
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ocsf_nft.delivery.envelope import Message


class Unix(Sink):
    """Sends events to who listens at ``path``; with ``until_read``, until he has read them."""

    def __init__(self, *, path: Path, until_read: bool = True) -> None:
        self._path = path
        self._until_read = until_read
        self._stream: Stream | None = None

    async def open(self) -> None:
        """Connect; raises DeliveryError when nobody listens."""
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # Not the loop's: it takes a listener that has no room for one more for a slow one.
            opened.connect(os.fsencode(self._path))
        except OSError as error:
            opened.close()
            raise DeliveryError(
                f"{self._path} can't be connected to: {cause(error)}: start what listens there"
            ) from error
        self._stream = Stream(opened)

    async def close(self) -> None:
        """Close the connection."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    async def deliver(self, messages: Sequence[Message]) -> Outcome:
        """Send events, one line each."""
        if self._stream is None:
            raise DeliveryError(f"{self._path} is not connected")
        try:
            await self._stream.send(lines_of(messages))
            if self._until_read:
                await self._stream.acknowledged()
        except OSError as error:
            raise DeliveryError(f"{self._path} was cut: {cause(error)}") from error
        return DELIVERED
