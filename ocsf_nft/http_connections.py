"""Bounded connections of an HTTP server: a slow or hostile client can't take its resources."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

#: Limit of the request line and of a header, also for a client that never ends them.
MAX_LINE_BYTES: Final = 8190
#: Connections that wait to be accepted: these use no resources of the process.
BACKLOG: Final = 128
#: Requests of a client that wait for the responses to the ones before; later versions of aiohttp
#: read no more than half of it. Data is passed on in parts of this size, so that few more can wait.
_MOST_QUEUED: Final = 64
_PART_BYTES: Final = 4096
#: asyncio accepts up to ``backlog`` connections before we can reject one of them. If there is no
#: free descriptor, it sets as many timers to try again.
ACCEPTED_AT_ONCE: Final = 1


class Limits(NamedTuple):
    """Limits for the clients of a server."""

    #: Connections at once, also those of clients that left before the response was ready.
    connections: int
    #: Time for a client to send a request, to read the response, and to send the next request.
    client_seconds: float


class Refusals(NamedTuple):
    """Complete HTTP responses to clients that are disconnected; empty for none."""

    #: For a new client, if there are too many connections and none waits for its client.
    busy: bytes = b""
    #: For a client that has sent only a part of a request in time.
    late: bytes = b""
    #: For a client that may never connect.
    forbidden: bytes = b""


def lengthen_queue(server: asyncio.Server, connections: int = BACKLOG) -> None:
    """Let the kernel queue so many connections, after asyncio gave it a small number."""
    for listener in server.sockets:
        with listener.dup() as same:
            same.listen(connections)


class Connections:
    """Open HTTP connections; at the limit, a new one replaces the one with the slowest client."""

    def __init__(
        self,
        runner: web.AppRunner,
        limits: Limits,
        *,
        refusals: Refusals = Refusals(),  # noqa: B008 - immutable
        handler: Callable[[web.Server], web.RequestHandler] = lambda server: server(),
        admits: Callable[[asyncio.Transport], bool] = lambda _: True,
    ) -> None:
        """Create the connections of ``runner``; ``admits`` returns False for a forbidden client."""
        self._runner = runner
        self._handler = handler
        self.admits = admits
        self.limits = limits
        self.refusals = refusals
        #: Connections that wait for their clients, in the order of their waits.
        self.waiting_for_client: dict[Connection, None] = {}

    def handler(self) -> asyncio.Protocol | None:
        """Return aiohttp's handler for a new connection; None if the connection must be refused.

        If too many connections are open, the connection that has waited longest for its client is
        closed. If no connection waits for its client, the new connection is refused.
        """
        server = self._runner.server
        if server is None:  # the server has stopped
            return None
        if len(server.connections) >= self.limits.connections:
            # A client that sends its request as soon as it is connected is never the slowest.
            slowest = next(iter(self.waiting_for_client), None)
            if slowest is None:  # the server waits for no client
                return None
            slowest.end()
        return self._handler(server)


class Connection(asyncio.Protocol):
    """HTTP connection that passes all data to aiohttp, and closes if its client takes too long."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._handler: asyncio.Protocol
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        #: Whether the client has sent anything since the last response.
        self._has_begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start aiohttp's handler, or refuse the connection."""
        self._transport = cast("asyncio.Transport", transport)
        if not self._connections.admits(self._transport):
            self._refuse(self._connections.refusals.forbidden)
            return
        handler = self._connections.handler()
        if handler is None:
            self._refuse(self._connections.refusals.busy)
            return
        self._handler = handler
        self._start_timeout()
        self._handler.connection_made(transport)

    def _refuse(self, answer: bytes) -> None:
        self._transport.set_protocol(asyncio.Protocol())  # ignores all that follows
        self._transport.write(answer)
        self._transport.close()

    @contextlib.contextmanager
    def without_timeout(self) -> Iterator[None]:
        """Let the ``with`` block take any time, since the client has sent its request."""
        self._stop_timeout()
        try:
            yield
        finally:
            self._has_begun = False
            self._start_timeout()

    def end(self) -> None:
        """Close the connection at once."""
        self._stop_timeout()
        if self._has_begun:
            self._transport.write(self._connections.refusals.late)
        # Not close(), which would wait until the client has read all data.
        self._transport.abort()

    def _start_timeout(self) -> None:
        if not self._transport.is_closing():
            self._connections.waiting_for_client[self] = None
            seconds = self._connections.limits.client_seconds
            self._timer = asyncio.get_running_loop().call_later(seconds, self.end)

    def _stop_timeout(self) -> None:
        self._connections.waiting_for_client.pop(self, None)
        if self._timer is not None:  # None if the connection was closing from the start
            self._timer.cancel()

    # aiohttp's handler does the rest.

    def connection_lost(self, exc: Exception | None) -> None:
        """End aiohttp's handler."""
        self._stop_timeout()
        self._handler.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass data to aiohttp, but close if the client does not wait for its responses."""
        self._has_begun = True
        for start in range(0, len(data), _PART_BYTES):
            self._handler.data_received(data[start : start + _PART_BYTES])
            # Versions of aiohttp before 3.14 queue as many requests as a client sends.
            if len(getattr(self._handler, "_messages", ())) > _MOST_QUEUED:
                self._has_begun = False
                self.end()
                return

    def eof_received(self) -> bool | None:
        """Pass the end of the data to aiohttp."""
        return self._handler.eof_received()

    def pause_writing(self) -> None:
        """Stop aiohttp from writing."""
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        """Let aiohttp write again."""
        self._handler.resume_writing()


@web.middleware
async def without_timeout(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Stop the timeout of a request's connection while the request is handled."""
    found = None if request.transport is None else request.transport.get_protocol()
    with found.without_timeout() if isinstance(found, Connection) else contextlib.nullcontext():
        return await handler(request)
