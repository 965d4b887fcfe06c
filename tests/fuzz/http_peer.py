"""Client of the service's HTTP servers in memory: the server gets bytes without a socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web

from ocsf_nft import http_server
from ocsf_nft.control import problems, server
from ocsf_nft.control.engine import Engine
from ocsf_nft.control.event_log import EventLog
from ocsf_nft.http_connections import (
    MAX_LINE_BYTES,
    Connection,
    Connections,
    Refusals,
    without_timeout,
)
from ocsf_nft.service import health
from tests.control.engine import Sandboxes
from tests.fuzz.target import BrokenError, require

if TYPE_CHECKING:
    from collections.abc import Callable

#: Iterations of the loop after which a request must be answered, or wait for its client.
_MOST_ITERATIONS: Final = 200
_FAILURE: Final = re.compile(rb"HTTP/\d\.\d 500 ")
_MISSING: Final = Path("/nonexistent/store")


class _Transport(asyncio.Transport):
    """Connection to a client that reads everything at once."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_closed = False
        self._protocol: asyncio.BaseProtocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def writelines(self, list_of_data: Any) -> None:
        self.written += b"".join(list_of_data)

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_reading(self) -> bool:
        return not self.is_closed

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def get_extra_info(self, _name: str, default: Any = None) -> Any:
        return default


class Application:
    """Server for which a peer sends requests: its connections, and a function that resets it."""

    def __init__(self, runner: web.AppRunner, reset: Callable[[], None], **options: Any) -> None:
        self.runner = runner
        self.reset = reset
        self.options = options

    @classmethod
    def control(cls) -> Application:
        """Return the control API, with sandboxes in memory."""
        sandboxes = Sandboxes()

        async def reload() -> None:
            await asyncio.sleep(0)

        engine = Engine(
            state_dir=Path("/state"),
            sandboxes=cast("Any", sandboxes),
            events=EventLog(_MISSING, lambda: 0),
            faults=lambda: (),
            sinks=lambda: (),
            reload=reload,
            attach=lambda: (),
            is_delivery=lambda _: False,
        )

        def reset() -> None:
            sandboxes.found.clear()
            sandboxes.calls.clear()

        runner = web.AppRunner(server._Api(engine, server.LIMITS).application())
        refusals = Refusals(busy=problems.raw(503), late=problems.raw(408))
        return cls(runner, reset, limits=server.LIMITS, refusals=refusals, handler=server._handler)

    @classmethod
    def metrics(cls) -> Application:
        """Return the server of metrics and health, of a service without sandboxes."""

        async def answer(request: web.Request) -> web.Response:
            await asyncio.sleep(0)
            return http_server._response([health.Fault(request.path[:99], "fuzzed")])

        application = web.Application(client_max_size=1, middlewares=[without_timeout])
        application.add_routes(
            [web.get(f"/{name}", answer) for name in ("metrics", "healthz", "readyz")]
        )
        runner = web.AppRunner(
            application,
            access_log=None,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
        )
        return cls(runner, lambda: None, limits=http_server.LIMITS)


class Peer:
    """Client that sends bytes and requires that the server stays intact."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._loop = asyncio.new_event_loop()
        self._errors: list[dict[str, Any]] = []
        self._loop.set_exception_handler(lambda _loop, context: self._errors.append(context))
        self._loop.run_until_complete(application.runner.setup())
        self._connections = Connections(application.runner, **application.options)

    def exchange(self, data: bytes) -> None:
        """Send the bytes in two parts on a new connection, and close the connection."""
        self._application.reset()
        self._errors.clear()
        log = logging.getLogger("aiohttp.server")
        level = log.level
        log.setLevel(logging.CRITICAL)
        try:
            self._loop.run_until_complete(self._exchange(data))
        finally:
            log.setLevel(level)
        if self._errors:
            error = self._errors[0].get("exception")
            raise BrokenError(self._errors[0]["message"]) from error

    async def _exchange(self, data: bytes) -> None:
        connection = Connection(self._connections)
        transport = _Transport(connection)
        connection.connection_made(transport)
        half = len(data) // 2
        for part in (data[:half], data[half:]):
            if part and not transport.is_closed:
                cast("asyncio.Protocol", transport.get_protocol()).data_received(part)
                await self._settle()
        connection.connection_lost(None)
        await self._settle()
        written = bytes(transport.written)
        require(not written or written.startswith(b"HTTP/"), "an answer is no HTTP")
        require(_FAILURE.search(written) is None, "the server fails: status 500")
        require(not self._connections.waiting_for_client, "a closed connection waits")

    async def _settle(self) -> None:
        """Let the server work until its tasks wait for the client, or have ended."""
        own = asyncio.current_task()
        for _ in range(_MOST_ITERATIONS):
            await asyncio.sleep(0)
            ready = cast("Any", self._loop)._ready
            if not ready:
                return
        with contextlib.suppress(asyncio.CancelledError):
            require(own is None, "the server does not settle")
