"""Frames between the service and its delivery process, over a Unix stream socket.

The delivery process trusts the service, which has started it: the service may send pickled objects.
The service does not trust the delivery process, which talks to the network: its frames are JSON.
"""

from __future__ import annotations

import asyncio
import enum
import json
import pickle
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

#: Kind of a frame, and size of its body.
_HEADER: Final = struct.Struct("!BI")
#: Largest number of characters of a text for people.
_MAX_TEXT: Final = 1000
#: Unsent bytes above which the other side is behind.
_MAX_UNSENT_BYTES: Final = 4 << 20


class LinkError(DeliveryError):
    """Error: the delivery process sent something that is not valid."""


class Kind(enum.IntEnum):
    """Kind of a frame."""

    # From the service:
    #: What the process needs at its start: a pickled :class:`Start`. Its number is 0.
    START = 1
    #: Number of the last stored event.
    STORED = 2
    #: First line of sinks that require it.
    HANDSHAKE = 3
    #: New sinks: a number for the answer, and outlets, pickled.
    REPLACE = 4
    #: Request to remove old dead letters and to send ``STATUS``: the number of the last stored
    #: event, a number for the answer, the dropped dead letters that events have reported, and the
    #: reported faults of the database.
    SYNC = 5
    #: Request to deliver the last events and to end: the number of the last one, and what events
    #: have reported, as in ``SYNC``.
    DRAIN = 6
    #: Request to resolve a host name: a number for the answer, and the name.
    RESOLVE = 7

    # From the process:
    #: Answer to ``START`` and ``REPLACE``: its number, and an error or null.
    OPENED = 20
    #: Progress of all sinks.
    STATUS = 21
    #: Record of the process's log.
    LOG = 22
    #: The process ends because a sink can't be used any more: an error.
    CLOSED = 23
    #: Answer to ``RESOLVE``: its number, the name, and for each version of IP the addresses with
    #: their TTL, or an error.
    RESOLVED = 24


def clean(text: str) -> str:
    """Return a text without characters that end a line of a log, or that a terminal obeys.

    A long text is shortened. The result of a second call is the same.
    """
    shown = text[:_MAX_TEXT]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)


class Frame(NamedTuple):
    """Message from one side to the other."""

    kind: Kind
    body: bytes

    def json(self) -> Any:
        """Return the body as decoded JSON; raises LinkError if it is not JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise LinkError(f"the delivery process sent no JSON: {error}") from error

    def unpickled(self) -> Any:
        """Return the object in the body; only the delivery process may call this."""
        return pickle.loads(self.body)  # noqa: S301 - it is from the service that started us


class Link:
    """One side of the connection between the service and its delivery process."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        max_bytes: Mapping[Kind, int] | None = None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._max_bytes = max_bytes
        self._is_ended = False

    @classmethod
    async def open(cls, sock: socket.socket, max_bytes: Mapping[Kind, int] | None = None) -> Link:
        """Return a link over a connected socket, which it owns from now on.

        ``max_bytes`` has the kinds of frames that may be received, and the largest size of each;
        None for no limits.
        """
        sock.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=sock), max_bytes)

    @property
    def is_behind(self) -> bool:
        """Return True if the other side does not read as fast as this side sends."""
        return self._writer.transport.get_write_buffer_size() > _MAX_UNSENT_BYTES

    def end(self) -> None:
        """Send nothing more: later frames are dropped, and the other side sees the end."""
        if not (self._is_ended or self._writer.is_closing()):
            self._writer.write_eof()
        self._is_ended = True

    async def close(self, seconds: float = 0.0) -> None:
        """Close the connection, after at most ``seconds`` for sending the frames that wait."""
        try:
            if seconds:
                self._writer.close()
                async with asyncio.timeout(seconds):
                    await self._writer.wait_closed()
            self._writer.transport.abort()
            await self._writer.wait_closed()
        except (OSError, TimeoutError):  # the other side has closed it, or does not read
            self._writer.transport.abort()

    def send(self, kind: Kind, body: bytes = b"") -> None:
        """Send a frame; it waits in memory while the other side does not read."""
        if not (self._is_ended or self._writer.is_closing()):
            self._writer.write(_HEADER.pack(kind, len(body)) + body)

    def send_json(self, kind: Kind, found: Any) -> None:
        """Send a frame with JSON; values of other types are sent as text."""
        # Not by orjson, which refuses a text that is not UTF-8, as the name of a file may be.
        self.send(kind, json.dumps(found, default=str).encode())

    def send_object(self, kind: Kind, found: object) -> None:
        """Send a frame with any object; only the service may call this."""
        self.send(kind, pickle.dumps(found))

    async def receive(self) -> Frame | None:
        """Return the next frame; None if the other side has closed the connection.

        Raises LinkError if the frame is not valid.
        """
        try:
            number, size = _HEADER.unpack(await self._reader.readexactly(_HEADER.size))
            kind = Kind(number)
            if self._max_bytes is not None and size > self._max_bytes.get(kind, -1):
                raise LinkError(f"the delivery process sent {size} bytes of kind {kind.name}")
            return Frame(kind, await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, OSError):
            return None
        except ValueError as error:
            raise LinkError(f"the delivery process sent an unknown frame: {error}") from error
