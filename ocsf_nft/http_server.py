"""What a run answers over HTTP: metrics, and whether it is alive and does its work.

``/metrics`` is for Prometheus. ``/healthz`` is 200 as long as a restart would mend nothing,
``/readyz`` as long as every fence stands and every record is read and kept; both say what is
wrong, a line each. Nothing can be changed here, and nothing of an event is told.

Whoever reaches the address may be who is watched: it must take nothing from the watch. So there are
few connections at once, and none waits for long for its client.
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

    from ocsf_nft.config.listen_address import Listening
    from ocsf_nft.service import Service

_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
#: Who asks for a header and sends no end of it is not waited for.
_MOST_BYTES: Final = 8190
#: Connections at once, those among them whose client went away before its answer was made.
_MOST: Final = 32
#: How long a client may take to ask, to read what it is answered, and to ask again.
_CLIENT_SECONDS: Final = 5.0
#: Connections that wait to be accepted: those take nothing of ours.
_BACKLOG: Final = 128


@contextlib.asynccontextmanager
async def answering(service: Service, at: Listening) -> AsyncIterator[None]:
    """Answer at an address while the context is entered; raises UsageError when it is taken."""
    application = web.Application(client_max_size=1, middlewares=[_unhurried])
    application.add_routes(
        [
            web.get("/metrics", partial(_metrics, service)),
            web.get("/healthz", partial(_alive, service)),
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


async def _listen(runner: web.AppRunner, at: Listening) -> asyncio.Server:
    # asyncio accepts so many in one go, before it hears that one of them is too many; where there
    # is no descriptor left, it sets itself so many alarms to try again.
    in_one_go = 1
    try:
        server = await asyncio.get_running_loop().create_server(
            partial(_Visitor, _Visitors(runner)), str(at.address), at.port, backlog=in_one_go
        )
    except OSError as error:
        raise UsageError(f"nothing can listen at {at}: {error.strerror}") from error
    for listener in server.sockets:
        with listener.dup() as same:
            same.listen(_BACKLOG)  # to the kernel asyncio has told the same small number
    return server


class _Visitors:
    """Those who are here, and who of them is to go where there is no room for another."""

    def __init__(self, runner: web.AppRunner) -> None:
        self._runner = runner
        #: Whose clients owe something, the one that has for longest first.
        self.waited_for: dict[_Visitor, None] = {}

    def handler(self) -> asyncio.Protocol | None:
        """What handles one more, aiohttp's; None where all who are here wait for us."""
        server = self._runner.server
        if server is None:
            return None
        if len(server.connections) >= _MOST:
            # Who asks as soon as it is connected is never that one.
            slowest = next(iter(self.waited_for), None)
            if slowest is None:
                return None
            slowest.end()
        return server()


class _Visitor(asyncio.Protocol):
    """A connection: aiohttp's, where there is room for it and for as long as its client may take.

    aiohttp bounds neither the number of connections, nor how long one takes to ask and to read.
    """

    def __init__(self, visitors: _Visitors) -> None:
        self._visitors = visitors
        self._handler: asyncio.Protocol
        self._transport: asyncio.Transport
        self._alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hand it on, or close it."""
        handler = self._visitors.handler()
        if handler is None:
            transport.set_protocol(asyncio.Protocol())  # we hear no more of it
            transport.close()
            return
        self._transport = cast("asyncio.Transport", transport)
        self._handler = handler
        self._hurry()
        self._handler.connection_made(transport)

    @contextlib.contextmanager
    def unhurried(self) -> Iterator[None]:
        """Not to be closed meanwhile: the client waits for us."""
        self._rest()
        try:
            yield
        finally:
            self._hurry()

    def end(self) -> None:
        """Be done with it."""
        self._rest()
        # Not closed: that would wait until the client has read all.
        self._transport.abort()

    def _hurry(self) -> None:
        if not self._transport.is_closing():
            self._visitors.waited_for[self] = None
            self._alarm = asyncio.get_running_loop().call_later(_CLIENT_SECONDS, self.end)

    def _rest(self) -> None:
        self._visitors.waited_for.pop(self, None)
        if self._alarm is not None:  # None if the connection was closing from the start
            self._alarm.cancel()

    # The rest is aiohttp's.

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
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
async def _unhurried(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    visitor = None if request.transport is None else request.transport.get_protocol()
    with visitor.unhurried() if isinstance(visitor, _Visitor) else contextlib.nullcontext():
        return await handler(request)


async def _metrics(service: Service, _request: web.Request) -> web.Response:
    body = await exposition_of(service)
    return web.Response(body=body, headers={"Content-Type": _METRICS_TYPE})


async def _alive(service: Service, _request: web.Request) -> web.Response:
    return _told(health.stuck(service))


async def _ready(service: Service, _request: web.Request) -> web.Response:
    return _told(health.faults(service), health.down(service))


def _told(faults: Sequence[str], besides: Sequence[str] = ()) -> web.Response:
    lines = (*faults, *besides) or ("well",)
    return web.Response(status=503 if faults else 200, text="".join(f"{each}\n" for each in lines))
