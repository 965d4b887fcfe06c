"""A store of events in memory, and an account that reports to it."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from ocsf_nft.accounting import state_db
from ocsf_nft.attribution.fallback_chain import FallbackChain
from ocsf_nft.delivery.retry_until_writable import StorageRetrier
from ocsf_nft.errors import DeliveryError
from ocsf_nft.service.account_loop import AccountLoop
from ocsf_nft.service.event_rendering import Reporter
from tests.accounting.reading import NOW

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path


@dataclass
class MemoryStore:
    """Events in memory, and positions of sources; storing takes some ``seconds``, or fails."""

    seconds: float = 0.0
    fails: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    tried: list[bytes] = field(default_factory=list)
    positions: dict[str, str] = field(default_factory=dict)

    async def store(self, lines: Sequence[bytes], *, source: str = "", position: str = "") -> None:
        self.tried = list(lines)
        await asyncio.sleep(self.seconds)
        if self.fails:
            raise DeliveryError("the disk is full")
        self.events += map(orjson.loads, lines)
        if source:
            self.positions[source] = position

    async def wait_for_class(self, uid: int) -> None:
        async with asyncio.timeout(60):
            while not self.of_class(uid):  # noqa: ASYNC110 - no other task waits
                await asyncio.sleep(0.001)

    def of_class(self, uid: int) -> list[dict[str, Any]]:
        return [event for event in self.events if event["class_uid"] == uid]


@contextlib.asynccontextmanager
async def running_account(
    counters: object,
    path: Path,
    sink: MemoryStore,
    fallback_chain: FallbackChain | None = None,
    *,
    source: str = "kmsg",
) -> AsyncIterator[AccountLoop]:
    """Open the account of a sandbox, with its file in a folder."""
    made = AccountLoop(
        "sb",
        counters,  # type: ignore[arg-type]
        path / state_db.FILE,
        Reporter(sink.store, None),
        begun_ns=NOW,
        retrier=StorageRetrier(asyncio.Event()),
        fallback_chain=fallback_chain or FallbackChain({}),
        source=source,
    )
    async with made:
        await made.resume()
        yield made
