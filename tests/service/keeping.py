"""A store of events in memory, and an account that reports to it."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from ocsf_nft.attribution.fallback_chain import FallbackChain
from ocsf_nft.errors import DeliveryError
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.service.account_loop import AccountLoop
from ocsf_nft.service.event_rendering import Reporter
from ocsf_nft.state.retry_until_writable import StorageRetrier
from ocsf_nft.state.state_db import FILE
from ocsf_nft.state.state_store import StateStore
from tests.flows.reading import NOW

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from ocsf_nft.state.change import Change, DroppedRecords


@dataclass
class MemoryStore:
    """Events in memory, and positions of sources; storing takes some ``seconds``, or fails."""

    seconds: float = 0.0
    fails: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    tried: list[bytes] = field(default_factory=list)
    positions: dict[str, str] = field(default_factory=dict)
    dropped: list[tuple[str, DroppedRecords]] = field(default_factory=list)

    async def commit(self, change: Change) -> None:
        self.tried = list(change.events)
        await asyncio.sleep(self.seconds)
        if self.fails:
            raise DeliveryError("the disk is full")
        self.events += map(orjson.loads, change.events)
        self.dropped += change.dropped
        if change.position is not None:
            self.positions[change.position.source] = change.position.position

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
    store: StateStore | None = None,
    slots: asyncio.Semaphore | None = None,
) -> AsyncIterator[AccountLoop]:
    """Open the account of a sandbox, with its state database in a folder.

    ``sink`` gets the events before they are stored. If it fails, nothing is stored. An already open
    ``store`` has the account of a run that was killed.
    """
    async with contextlib.AsyncExitStack() as stack:
        if store is None:
            store = await stack.enter_async_context(opened_store(path))
        commit_stored = store.commit

        async def commit(change: Change) -> None:
            await sink.commit(change)
            await commit_stored(change)

        made = AccountLoop(
            "sb",
            counters,  # type: ignore[arg-type]
            store,
            StateDirectory(path),
            Reporter(commit, None),
            begun_ns=NOW,
            fallback_chain=fallback_chain or FallbackChain(),
            source=source,
            slots=slots,
        )
        await stack.enter_async_context(made)
        await made.resume()
        yield made


def opened_store(path: Path) -> StateStore:
    return StateStore(path / FILE, StorageRetrier(asyncio.Event()))
