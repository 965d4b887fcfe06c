"""HTTP server of the service (a process ``ocsf-nft run``): metrics, liveness and readiness.

Processes in a sandbox may reach this server, so the number of connections is limited and slow
clients are disconnected.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Final

from aiohttp import web

from ocsf_nft.errors import UsageError
from ocsf_nft.http_connections import (
    ACCEPTED_AT_ONCE,
    MAX_LINE_BYTES,
    Connection,
    Connections,
    Limits,
    lengthen_queue,
    without_timeout,
)
from ocsf_nft.metrics import exposition_of
from ocsf_nft.service import health

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from ocsf_nft.fence.values import Endpoint
    from ocsf_nft.service.health import Fault
    from ocsf_nft.service.run import Service

LIMITS: Final = Limits(connections=32, client_seconds=5.0)


@contextlib.asynccontextmanager
async def serve(service: Service, at: Endpoint, limits: Limits = LIMITS) -> AsyncIterator[None]:
    """Serve metrics and health until the ``async with`` body ends.

    ``at`` is the address of the server. Raises UsageError if the address can't be used.
    """
    application = web.Application(client_max_size=1, middlewares=[without_timeout])
    application.add_routes(
        [
            # For Prometheus.
            web.get("/metrics", partial(_metrics, service)),
            # 503 if there is a fault that a restart could repair.
            web.get("/healthz", partial(_alive, service)),
            # 503 if there is a fault of a sandbox or of the storage. The status stays 200 if a sink
            # is down.
            web.get("/readyz", partial(_ready, service)),
        ]
    )
    runner = web.AppRunner(
        application, access_log=None, max_line_size=MAX_LINE_BYTES, max_field_size=MAX_LINE_BYTES,
        shutdown_timeout=1.0,
    )  # fmt: skip
    await runner.setup()
    try:
        with contextlib.closing(await _listen(Connections(runner, limits), at)):
            yield
    finally:
        await runner.cleanup()


async def _listen(connections: Connections, at: Endpoint) -> asyncio.Server:
    try:
        server = await asyncio.get_running_loop().create_server(
            partial(Connection, connections), str(at.address), at.port, backlog=ACCEPTED_AT_ONCE
        )
    except OSError as error:
        raise UsageError(f"nothing can listen at {at}: {error.strerror}") from error
    lengthen_queue(server)
    return server


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
