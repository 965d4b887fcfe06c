"""Delivery of a block to a sink: in batches, and without events that the sink refuses."""

# ruff: noqa: INP001 - beside programs, not a package

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from cluster import REFUSED, UID

from ocsf_nft.errors import DeliveryError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nats.js import JetStreamContext

    from ocsf_nft.delivery.sinks.base import BatchSettings, Message
    from ocsf_nft.service.outlet import Outlet

_log = structlog.get_logger()


def parts(messages: Sequence[Message], batch_settings: BatchSettings) -> Iterator[list[Message]]:
    """Yield a block in batches of the sink's size; the same block always has the same batches."""
    part: list[Message] = []
    size = 0
    for message in messages:
        if part and (
            len(part) == batch_settings.events or size + len(message.line) > batch_settings.bytes
        ):
            yield part
            part, size = [], 0
        part.append(message)
        size += len(message.line)
    yield part


async def deliver(stream: JetStreamContext, outlet: Outlet, part: Sequence[Message]) -> None:
    """Deliver a batch; publish each refused event with its reason to the stream ``REFUSED``.

    Raises DeliveryError if the batch must be delivered again.
    """
    try:
        async with asyncio.timeout(outlet.batch_settings.timeout_seconds):
            outcome = await outlet.sink.deliver(part)
    except RefusedError as error:
        if len(part) == 1:
            await _refuse(stream, outlet, part[0], str(error))
        else:
            half = len(part) // 2
            await deliver(stream, outlet, part[:half])
            await deliver(stream, outlet, part[half:])
        return
    for refusal in outcome.refused:
        await _refuse(stream, outlet, refusal.message, refusal.reason)
    if outcome.again:
        raise DeliveryError(outcome.reason)


async def _refuse(stream: JetStreamContext, outlet: Outlet, event: Message, why: str) -> None:
    _log.error("an event was refused", sink=outlet.name, uid=event.uid, reason=why)
    headers = {UID: f"{outlet.name}/{event.uid}", "Sink": outlet.name, "Reason": why}
    await stream.publish(REFUSED, event.line, headers=headers)
