"""HTTP server of the control API: adds, changes and releases sandboxes, and streams events.

The mode and group of its socket decide who may connect. Programs that may are limited all the same:
a broken one must not take the service's resources.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import hdrs, web

from ocsf_nft.control import models, problems
from ocsf_nft.control.containers import Containers
from ocsf_nft.control.etags import condition_of, etag_of
from ocsf_nft.control.event_stream import EventStreams
from ocsf_nft.control.openapi import openapi
from ocsf_nft.control.peer import caller_of, pid_of
from ocsf_nft.control.query import parameters
from ocsf_nft.control.socket_file import QUEUED
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence import values
from ocsf_nft.http_connections import (
    ACCEPTED_AT_ONCE,
    MAX_LINE_BYTES,
    Connection,
    Connections,
    Limits,
    Refusals,
    lengthen_queue,
    without_timeout,
)
from ocsf_nft.service.calls import ShieldedCalls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from pydantic import BaseModel

    from ocsf_nft.control.engine import Engine
    from ocsf_nft.control.socket_file import SocketFile
    from ocsf_nft.process import Process
    from ocsf_nft.service.sandbox_view import Condition, SandboxView

_log = structlog.get_logger()

#: An engine may start hundreds of containers at once, for example after a boot.
LIMITS: Final = Limits(connections=512, client_seconds=5.0)
MAX_BODY_BYTES: Final = 64 << 10
#: Time to read the rest of a body that was refused: a client often reads the answer only then.
_LINGER_SECONDS: Final = 2.0
#: Time for the answers to finish when the service stops.
_SHUTDOWN_SECONDS: Final = 1.0
#: Time for the calls to finish then. Loading a fence takes at most as long.
_FINISH_SECONDS: Final = 10.0
_MAX_NAME_SHOWN: Final = 100
_SANDBOX: Final = "/v1/sandboxes/{name}"
_CONTAINER: Final = "/v1/containers/{key}"


@contextlib.asynccontextmanager
async def serve(engine: Engine, at: SocketFile, limits: Limits = LIMITS) -> AsyncIterator[None]:
    """Serve the control API at an open socket until the ``async with`` body ends.

    At the end, the socket is closed and removed, streams of events end, and calls that change
    sandboxes are completed.
    """
    api = _Api(engine, limits)
    runner = web.AppRunner(api.application(), shutdown_timeout=_SHUTDOWN_SECONDS)
    await runner.setup()
    connections = Connections(
        runner,
        limits,
        refusals=Refusals(
            busy=problems.raw(503), late=problems.raw(408), forbidden=problems.raw(403)
        ),
        handler=_handler,
        admits=_Admission(engine.is_delivery),
    )
    try:
        server = await asyncio.get_running_loop().create_unix_server(
            partial(Connection, connections), sock=at.socket, backlog=ACCEPTED_AT_ONCE
        )
        lengthen_queue(server, QUEUED)
        try:
            yield
        finally:
            at.remove()
            server.close()  # the socket too
    finally:
        await runner.cleanup()
        await api.calls.finish(_FINISH_SECONDS)


class _Admission:
    """Check of the clients: the delivery process has the service's user, but may call nothing.

    It talks to the network, and has no other way to change the sandboxes. ``is_delivery`` returns
    True for its id.
    """

    def __init__(self, is_delivery: Callable[[int], bool]) -> None:
        self._is_delivery = is_delivery
        #: Latest refused client, which the log has once.
        self._refused = 0

    def __call__(self, transport: asyncio.Transport) -> bool:
        """Return False if a client must be refused; the log then has its process."""
        pid = pid_of(transport.get_extra_info("socket"))
        if not self._is_delivery(pid):
            return True
        if pid != self._refused:
            _log.critical(
                "the delivery process tried to use the control API: it may be under attack", pid=pid
            )
        self._refused = pid
        return False


class _Api:
    """Handlers of the requests."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits
        self._streams = EventStreams(engine.events)
        self.calls = ShieldedCalls()
        self._containers = Containers(engine.sandboxes, engine.attach)

    def application(self) -> web.Application:
        """Return the application with its routes."""
        made = web.Application(
            # aiohttp refuses a body of this size.
            client_max_size=MAX_BODY_BYTES + 1,
            middlewares=[without_timeout, _errors_as_problems],
        )
        made.add_routes(
            [
                web.get("/v1/sandboxes", self._list),
                web.get(_SANDBOX, self._show),
                web.put(_SANDBOX, self._put),
                web.delete(_SANDBOX, self._release),
                web.put(_CONTAINER, self._attach),
                web.delete(_CONTAINER, self._detach),
                web.get("/v1/events", self._streams.answer, allow_head=False),
                web.get("/v1/status", self._status),
                web.post("/v1/reload", self._reload),
                web.get("/v1/openapi.json", self._openapi),
            ]
        )
        made.on_shutdown.append(self._streams.stop)
        return made

    async def _list(self, request: web.Request) -> web.Response:
        parameters(request)
        found = [models.view_of(each) for each in self._engine.sandboxes.views()]
        return _json(models.SandboxList(sandboxes=found))

    async def _show(self, request: web.Request) -> web.Response:
        parameters(request)
        name = _name(request)
        status = await self._engine.sandboxes.status(name)
        view = self._engine.sandboxes.view(name)
        return _json(models.sandbox_status(view, status), view)

    async def _put(self, request: web.Request) -> web.Response:
        parameters(request)
        caller = _caller(request)
        name = _name(request)
        requested = models.sandbox_of(name, await self._body(request))
        require = _condition(name, request)
        done = await self.calls.run(self._engine.sandboxes.put(requested, caller, require))
        view = self._engine.sandboxes.view(name)
        made = models.PutAnswer(changes=list(done.changes), sandbox=models.view_of(view))
        return _created(_json(made, view), name, is_new=done.is_new)

    async def _release(self, request: web.Request) -> web.Response:
        parameters(request)
        name = _name(request)
        caller = _caller(request)
        require = _condition(name, request)
        status = await self.calls.run(self._engine.sandboxes.release(name, caller, require))
        return _json(models.final_status(status))

    async def _attach(self, request: web.Request) -> web.Response:
        parameters(request)
        caller = _caller(request)
        facts = models.facts_of(await self._body(request))
        done = await self.calls.run(self._containers.put(request.match_info["key"], facts, caller))
        if done.sandbox is None:
            return web.Response(status=204)
        view = models.view_of(self._engine.sandboxes.view(done.sandbox))
        made = models.ContainerAnswer(table=done.table, changes=list(done.changes), sandbox=view)
        return _created(_json(made), done.sandbox, is_new=done.is_new)

    async def _detach(self, request: web.Request) -> web.Response:
        parameters(request)
        caller = _caller(request)
        status = await self.calls.run(self._containers.release(request.match_info["key"], caller))
        return _json(models.final_status(status))

    async def _status(self, request: web.Request) -> web.Response:
        parameters(request)
        return _json(models.service_status(self._engine))

    async def _reload(self, request: web.Request) -> web.Response:
        parameters(request)
        await self.calls.run(self._engine.reload())
        return _json(models.Reloaded(reloaded=True))

    async def _openapi(self, request: web.Request) -> web.Response:
        parameters(request)
        return web.Response(body=openapi(), content_type="application/json")

    async def _body(self, request: web.Request) -> bytes:
        """Return the body of a request; raise an error of HTTP if it is too large or too slow."""
        if (request.content_length or 0) > MAX_BODY_BYTES:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, request.content_length or 0)
        try:
            async with asyncio.timeout(self._limits.client_seconds):
                return await request.read()
        except TimeoutError:
            raise web.HTTPRequestTimeout from None


class _Handler(web.RequestHandler):
    """Connection of aiohttp that answers each error with a problem document."""

    __slots__ = ()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException):  # an error that aiohttp found
            resp = problems.of_http(resp)
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if not isinstance(exc, ConnectionError):  # the client has left: nothing to log or answer
            super().handle_error(request, status, exc, message)  # writes it to the log
        answer = problems.problem(status)
        answer.force_close()
        return answer


def _handler(server: web.Server) -> web.RequestHandler:
    return _Handler(
        server, loop=asyncio.get_running_loop(), access_log_format="", max_line_size=MAX_LINE_BYTES,
        max_field_size=MAX_LINE_BYTES, lingering_time=_LINGER_SECONDS, tcp_keepalive=False,
        # A small compressed body can be a large one.
        auto_decompress=False,
    )  # fmt: skip


@web.middleware
async def _errors_as_problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except OcsfNftError as error:
        return problems.of_error(error)


def _name(request: web.Request) -> str:
    # A name that is too long is not shown in full.
    return values.sandbox_name(request.match_info["name"][:_MAX_NAME_SHOWN])


def _condition(name: str, request: web.Request) -> Condition:
    given = request.headers.getall(hdrs.IF_MATCH, [])
    return condition_of(name, ",".join(given) if given else None)


def _caller(request: web.Request) -> Process | None:
    # None if the client has left already.
    sock = None if request.transport is None else request.transport.get_extra_info("socket")
    return None if sock is None else caller_of(sock)


def _json(answer: BaseModel, view: SandboxView | None = None) -> web.Response:
    """Return an answer; with ``view``, it has the tag of this sandbox."""
    body = answer.model_dump_json().encode("utf-8", "backslashreplace") + b"\n"
    headers = None if view is None else {hdrs.ETAG: etag_of(view)}
    return web.Response(body=body, content_type="application/json", headers=headers)


def _created(answer: web.Response, sandbox: str, *, is_new: bool) -> web.Response:
    """Return an answer about a sandbox, with the status and the path of a new one if it is new."""
    if is_new:
        answer.set_status(201)
        answer.headers[hdrs.LOCATION] = f"/v1/sandboxes/{sandbox}"
    return answer
