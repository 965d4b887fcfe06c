"""Forwarders of a store, with short waits, for tests."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from ocsf_nft.delivery.forwarder import Forwarder
from ocsf_nft.delivery.sinks.base import BatchSettings
from ocsf_nft.state.retry_until_writable import StorageRetrier

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.delivery.receiver import Receiver
    from tests.delivery.stores import Store


def make_forwarder(
    store: Store, sink: Receiver, *, name: str = "a", **batch_settings: Any
) -> Forwarder:
    quick = {"events": 10, "retry_seconds": 0.01} | batch_settings
    return Forwarder(
        name,
        sink,
        store.stream,
        store.sinks,
        batch_settings=BatchSettings(**quick),
        retrier=StorageRetrier(asyncio.Event()),
        on_advance=store.advanced,
    )


@contextlib.asynccontextmanager
async def running(*forwarders: Forwarder) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.run()) for each in forwarders]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
