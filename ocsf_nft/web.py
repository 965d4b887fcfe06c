"""What a run answers over HTTP: metrics, and whether it is alive and does its work.

``/metrics`` is for Prometheus. ``/healthz`` is 200 as long as a restart would mend nothing,
``/readyz`` as long as every fence stands and every record is read and kept; both say what is
wrong, a line each. Nothing can be changed here, and nothing of an event is told.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from aiohttp import web

from ocsf_nft.errors import UsageError
from ocsf_nft.metrics import exposition_of
from ocsf_nft.service import health

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from ocsf_nft.config.listening import Listening
    from ocsf_nft.service import Service

_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
#: Who asks for a header and sends no end of it is not waited for.
_MOST_BYTES: Final = 8190


@contextlib.asynccontextmanager
async def answering(service: Service, at: Listening) -> AsyncIterator[None]:
    """Answer at an address while the context is entered; raises UsageError when it is taken."""
    application = web.Application(client_max_size=1)
    application.add_routes(
        [
            web.get("/metrics", lambda _: _metrics(service)),
            web.get("/healthz", lambda _: _told(health.stuck(service))),
            web.get("/readyz", lambda _: _told(health.faults(service), health.down(service))),
        ]
    )
    runner = web.AppRunner(
        application, access_log=None, max_line_size=_MOST_BYTES, max_field_size=_MOST_BYTES,
        shutdown_timeout=1.0,
    )  # fmt: skip
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, str(at.address), at.port).start()
        except OSError as error:
            raise UsageError(f"nothing can listen at {at}: {error.strerror}") from error
        yield
    finally:
        await runner.cleanup()


async def _metrics(service: Service) -> web.Response:
    body = await exposition_of(service)
    return web.Response(body=body, headers={"Content-Type": _METRICS_TYPE})


async def _told(faults: Sequence[str], besides: Sequence[str] = ()) -> web.Response:
    lines = (*faults, *besides) or ("well",)
    return web.Response(status=503 if faults else 200, text="".join(f"{each}\n" for each in lines))
