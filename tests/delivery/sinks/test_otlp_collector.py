"""OTLP sink against rotel, an OpenTelemetry collector.

Splunk and OpenSearch have no equivalent that a test machine can install.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from ocsf_nft.delivery.receiver_settings import Receiver
from ocsf_nft.delivery.sinks.otlp import Otlp
from ocsf_nft.errors import DeliveryError
from tests.delivery.sinks.attempts import attempts
from tests.delivery.sinks.servers import attributes, plain
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TIMEOUT_SECONDS = 120
DAY = "ocsf-2026.01.01"


@contextlib.asynccontextmanager
async def _running(
    *command: str | Path, **variables: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=os.environ | variables,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def _folder(package: str) -> Path:
    """Return the folder of a package without importing it."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


@contextlib.asynccontextmanager
async def _rotel(far: str) -> AsyncIterator[str]:
    """Run a collector that exports to ``far``, and yield its URL."""
    ports = [free_port(), free_port()]
    async with _running(
        _folder("rotel") / "rotel-agent",
        "start",
        ROTEL_OTLP_HTTP_ENDPOINT=f"127.0.0.1:{ports[0]}",
        ROTEL_OTLP_GRPC_ENDPOINT=f"127.0.0.1:{ports[1]}",
        ROTEL_OTLP_EXPORTER_ENDPOINT=far,
        ROTEL_OTLP_EXPORTER_PROTOCOL="http",
    ):
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await _wait_until_listening(ports[0])
        yield f"http://127.0.0.1:{ports[0]}"


async def _wait_until_listening(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            await writer.wait_closed()
            return


@contextlib.asynccontextmanager
async def _export_server(taken: asyncio.Queue[ExportLogsServiceRequest]) -> AsyncIterator[str]:
    """Run a server for the protobuf export of a collector, and yield its URL."""

    async def take(request: web.Request) -> web.Response:
        taken.put_nowait(ExportLogsServiceRequest.FromString(await request.read()))
        return web.Response(content_type="application/x-protobuf")

    app = web.Application(client_max_size=1 << 28)
    app.router.add_post("/v1/logs", take)
    runner = web.AppRunner(app, shutdown_timeout=0.05)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def test_collector_decodes_every_event_unchanged() -> None:
    taken: asyncio.Queue[ExportLogsServiceRequest] = asyncio.Queue()
    batch = attempts(40)
    events: dict[str, Any] = {}
    async with _export_server(taken) as far, _rotel(far) as url:
        async with Otlp(receiver=Receiver(url=url)) as sink:
            for part in (batch[:1], batch[1:]):
                outcome = await sink.deliver(part)
                assert (outcome.refused, outcome.again) == ((), ())
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while len(events) < len(batch):
                for resource in (await taken.get()).resource_logs:
                    assert attributes(resource.resource.attributes)["host.name"] == "host-1"
                    for record in resource.scope_logs[0].log_records:
                        uid = attributes(record.attributes)["log.record.uid"]
                        events[uid] = plain(record.body)
                        assert record.event_name == "ocsf.network_activity"
    assert events == {each.uid: each.event() for each in batch}


async def test_error_status_of_the_collector_is_reported() -> None:
    async with (
        _export_server(asyncio.Queue()) as far,
        _rotel(far) as url,
        Otlp(receiver=Receiver(url=f"{url}/nowhere")) as sink,
    ):
        with pytest.raises(DeliveryError, match=r"answers 4\d\d"):
            await sink.deliver(attempts(1))
