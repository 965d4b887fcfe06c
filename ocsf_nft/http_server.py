"""HTTP server of the service (a process ``ocsf-nft run``): metrics, liveness and readiness.

Processes in a sandbox may reach this server, so the number of connections is limited and slow
clients are disconnected.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from aiohttp import web

from ocsf_nft.errors import UsageError
from ocsf_nft.metrics import exposition_of
from ocsf_nft.service import health

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from ocsf_nft.fence.values import Endpoint
    from ocsf_nft.service.health import Fault
    from ocsf_nft.service.run import Service

#: Limit of the request line and of a header, also for a client that never ends them.
_MOST_BYTES: Final = 8190
#: Connections at once, also those of clients that left before the response was ready.
_MOST: Final = 32
#: Time for a client to send a request, to read the response, and to send the next request.
_CLIENT_SECONDS: Final = 5.0
#: Connections that wait to be accepted: these use no resources of the process.
_BACKLOG: Final = 128


@contextlib.asynccontextmanager
async def serve(service: Service, at: Endpoint) -> AsyncIterator[None]:
    """Serve metrics and health until the ``async with`` body ends.

    ``at`` is the address of the server. Raises UsageError if the address can't be used.
    """
    application = web.Application(client_max_size=1, middlewares=[_without_timeout])
    application.add_routes(
        [
            # For Prometheus.
            web.get("/metrics", partial(_metrics, service)),
            # 503 if there is a fault that a restart could repair.
            web.get("/healthz", partial(_alive, service)),
            # 503 if a fence is not active, counters can't be read, or events can't be stored. The
            # status stays 200 if a sink is down.
            web.get("/readyz", partial(_ready, service)),
        ]
    )
    runner = web.AppRunner(
        application, access_log=None, max_line_size=_MOST_BYTES, max_field_size=_MOST_BYTES,
        shutdown_timeout=1.0,
    )  # fmt: skip
    await runner.setup()
    try:
        with contextlib.closing(await _listen(runner, at)):
            yield
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, at: Endpoint) -> asyncio.Server:
    # asyncio accepts up to ``backlog`` connections before we can reject one of them. If there is no
    # free descriptor, it sets as many timers to try again.
    accepted_at_once = 1
    try:
        server = await asyncio.get_running_loop().create_server(
            partial(_Connection, _Connections(runner)),
            str(at.address),
            at.port,
            backlog=accepted_at_once,
        )
    except OSError as error:
        raise UsageError(f"nothing can listen at {at}: {error.strerror}") from error
    for listener in server.sockets:
        with listener.dup() as same:
            same.listen(_BACKLOG)  # asyncio has given the kernel the same small number
    return server


class _Connections:
    """Open HTTP connections; at the limit, a new one replaces the one with the slowest client."""

    def __init__(self, runner: web.AppRunner) -> None:
        self._runner = runner
        #: Connections that wait for their clients, in the order of their waits.
        self.waiting_for_client: dict[_Connection, None] = {}

    def handler(self) -> asyncio.Protocol | None:
        """Return aiohttp's handler for a new connection; None if the connection must be refused.

        If too many connections are open, the connection that has waited longest for its client is
        closed. If no connection waits for its client, the new connection is refused.
        """
        server = self._runner.server
        if server is None:  # the server has stopped
            return None
        if len(server.connections) >= _MOST:
            # A client that sends its request as soon as it is connected is never the slowest.
            slowest = next(iter(self.waiting_for_client), None)
            if slowest is None:  # the server waits for no client
                return None
            slowest.end()
        return server()


class _Connection(asyncio.Protocol):
    """HTTP connection that passes all data to aiohttp, and closes if its client takes too long."""

    def __init__(self, connections: _Connections) -> None:
        self._connections = connections
        self._handler: asyncio.Protocol
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        handler = self._connections.handler()
        if handler is None:
            transport.set_protocol(asyncio.Protocol())  # ignores all that follows
            transport.close()
            return
        self._transport = cast("asyncio.Transport", transport)
        self._handler = handler
        self._start_timeout()
        self._handler.connection_made(transport)

    @contextlib.contextmanager
    def without_timeout(self) -> Iterator[None]:
        self._stop_timeout()
        try:
            yield
        finally:
            self._start_timeout()

    def end(self) -> None:
        self._stop_timeout()
        # Not close(), which would wait until the client has read all data.
        self._transport.abort()

    def _start_timeout(self) -> None:
        if not self._transport.is_closing():
            self._connections.waiting_for_client[self] = None
            self._timer = asyncio.get_running_loop().call_later(_CLIENT_SECONDS, self.end)

    def _stop_timeout(self) -> None:
        self._connections.waiting_for_client.pop(self, None)
        if self._timer is not None:  # None if the connection was closing from the start
            self._timer.cancel()

    # aiohttp's handler does the rest.

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timeout()
        self._handler.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._handler.data_received(data)

    def eof_received(self) -> bool | None:
        return self._handler.eof_received()

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()


@web.middleware
async def _without_timeout(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    found = None if request.transport is None else request.transport.get_protocol()
    with found.without_timeout() if isinstance(found, _Connection) else contextlib.nullcontext():
        return await handler(request)


async def _metrics(service: Service, _request: web.Request) -> web.Response:
    content_type = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    return web.Response(body=await exposition_of(service), headers=content_type)


async def _alive(service: Service, _request: web.Request) -> web.Response:
    return _response(health.stuck(service))


async def _ready(service: Service, _request: web.Request) -> web.Response:
    return _response(health.faults(service), health.down(service))


def _response(faults: Sequence[Fault], notes: Sequence[Fault] = ()) -> web.Response:
    lines = (*faults, *notes) or ("well",)
    return web.Response(status=503 if faults else 200, text="".join(f"{each}\n" for each in lines))
