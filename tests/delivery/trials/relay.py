"""A relay to a server that can be closed, stopped or slow, and can use TLS for the server."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final

from tests.ports import free_port

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

#: Approximate room in a socket of a narrow relay (socket(7): the kernel doubles it).
_NARROW_BYTES: Final = 2048
_GOOD_BYE_SECONDS: Final = 0.1


class Relay:
    """Relay of requests to the server at ``port`` of this host, and of its answers.

    The answers can be stopped or slow. If the relay ``is_narrow``, it stops or slows the requests
    instead, and has room for a few kilobytes of them.
    """

    def __init__(
        self, port: int, *, context: ssl.SSLContext | None = None, is_narrow: bool = False
    ) -> None:
        self.port = free_port()
        self.seconds = 0.0
        self.may_pass = asyncio.Event()
        self.may_pass.set()
        #: Called with each piece of a request.
        self.on_request: Callable[[bytes], None] = lambda _: None
        self._behind = port
        self._context = context
        self._is_narrow = is_narrow
        self._server: asyncio.Server | None = None
        self._ends: set[_End] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen."""
        if self._server is not None:
            return
        listening = socket.create_server(("127.0.0.1", self.port))
        if self._is_narrow:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NARROW_BYTES)
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _End(self._ends, self._connected),
            sock=listening,
            ssl=self._context,
            ssl_shutdown_timeout=None if self._context is None else _GOOD_BYE_SECONDS,
        )

    async def close(self) -> None:
        """Stop listening, and cut all connections."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for end in tuple(self._ends):
            end.transport.abort()

    def _connected(self, end: _End) -> None:
        task = asyncio.create_task(self._join(end))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, end: _End) -> None:
        try:
            _, server = await asyncio.get_running_loop().create_connection(
                lambda: _End(self._ends), "127.0.0.1", self._behind
            )
        except ConnectionError:
            end.transport.abort()
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._relay(end, server, is_request=True))
            group.create_task(self._relay(server, end, is_request=False))

    async def _relay(self, source: _End, target: _End, *, is_request: bool) -> None:
        """Relay all data from one end, also what arrived before that end was cut."""
        while data := await source.received.get():
            if is_request:
                self.on_request(data)
            if is_request == self._is_narrow:
                await self.may_pass.wait()
                await asyncio.sleep(self.seconds)
            target.transport.write(data)
            source.transport.resume_reading()
        target.transport.close()


class _End(asyncio.Protocol):
    """One of the two connections: its received pieces, and an empty one at its end."""

    def __init__(self, ends: set[_End], connected: Callable[[_End], None] = lambda _: None) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()
        self.transport: asyncio.Transport
        self._ends = ends
        self._connected = connected

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._ends.add(self)
        self._connected(self)

    def data_received(self, data: bytes) -> None:
        self.received.put_nowait(data)
        self.transport.pause_reading()

    def connection_lost(self, _: Exception | None) -> None:
        self._ends.discard(self)
        self.received.put_nowait(b"")
