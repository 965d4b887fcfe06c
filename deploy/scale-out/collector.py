"""Deliver events from a NATS cluster to a sink of ocsf-nft: `collector.py FILE`.

The collectors of a group share the work. Each has a lease on a block (see cluster.py), delivers it,
and acknowledges it after that. If a collector dies, another one delivers the whole block again: the
same events in the same batches, so a Parquet sink writes the same files.
"""

# ruff: noqa: INP001 - a program, not a package

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import nats
import orjson
import structlog
from cluster import BLOCKS, GroupTable, connected, cut, read
from delivering import deliver, parts
from nats.js.api import ConsumerConfig
from pydantic import Field

from ocsf_nft.cli.logs import to_stderr
from ocsf_nft.config.sinks import SinkConfig  # noqa: TC001 - pydantic reads it
from ocsf_nft.delivery.sinks.base import Message
from ocsf_nft.errors import DeliveryError, OcsfNftError
from ocsf_nft.service.outlet import Outlet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

_AGAIN_SECONDS: Final = 2

_log = structlog.get_logger()


class Config(GroupTable):
    """Configuration of a collector.

    Another collector gets its block if it does not renew the lease for ``lease_seconds``.
    """

    lease_seconds: Annotated[float, Field(ge=1)] = 60.0
    sink: SinkConfig


async def collect(config: Config, stop: asyncio.Event) -> None:
    """Deliver one block after the other, until ``stop`` is set."""
    outlet = Outlet.of(config.sink)
    shared = ConsumerConfig(
        name=config.group,
        durable_name=config.group,
        filter_subject=config.subject,
        ack_wait=config.lease_seconds,
    )
    async with connected(config) as stream:
        await stream.add_consumer(BLOCKS, shared)
        group = await stream.pull_subscribe_bind(config.group, BLOCKS)
        while not stop.is_set():
            try:
                await cut(stream, config)
                block = await _next(group)
                if block is not None:
                    await take(stream, outlet, block, config.lease_seconds)
            except (nats.errors.Error, OSError, DeliveryError) as error:
                reason = str(error) or type(error).__name__
                _log.error("delivery failed, retrying", sink=outlet.name, reason=reason)
                await asyncio.sleep(_AGAIN_SECONDS)


async def _next(group: JetStreamContext.PullSubscription) -> Msg | None:
    try:
        (block,) = await group.fetch(1, timeout=1)
    except nats.errors.TimeoutError:
        return None
    return block


async def take(stream: JetStreamContext, outlet: Outlet, block: Msg, lease: float) -> None:
    """Deliver a block and acknowledge it; after a failure, release it for the next collector."""
    first, last = orjson.loads(block.data)
    async with _renewed_lease(block, lease):
        try:
            converted = [
                (each.uid, outlet.convert(each.line)) for each in await read(stream, first, last)
            ]
            messages = [Message(uid, line) for uid, line in converted if line is not None]
            if messages:
                async with outlet.sink:
                    for part in parts(messages, outlet.batch_settings):
                        await deliver(stream, outlet, part)
        except Exception:
            with contextlib.suppress(nats.errors.Error):
                await block.nak(delay=_AGAIN_SECONDS)
            raise
        await block.ack_sync()
    tries = block.metadata.num_delivered
    _log.info("delivered", first=first, last=last, events=len(messages), tries=tries)


@contextlib.asynccontextmanager
async def _renewed_lease(block: Msg, lease: float) -> AsyncIterator[None]:
    """Renew the lease on a block during the context."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(lease / 3)
            with contextlib.suppress(nats.errors.Error):
                await block.in_progress()

    task = asyncio.create_task(renew())
    try:
        yield
    finally:
        task.cancel()


def main(path: Path) -> None:
    """Collect by a configuration file until SIGTERM or SIGINT; finish the current block."""
    to_stderr()
    try:
        config = Config.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        asyncio.run(_until_signal(config))
    except (OSError, ValueError, OcsfNftError, nats.errors.Error) as error:
        sys.exit(f"collector.py: {path}: {error}")


async def _until_signal(config: Config) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await collect(config, stop)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
