"""Delivery to sinks with its store, for tests without a service."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from ocsf_nft.delivery import sink_db
from ocsf_nft.delivery.event_stream import EventStream
from ocsf_nft.delivery.sink_db import SinkDatabase
from ocsf_nft.service.sink_delivery import SinkDelivery
from ocsf_nft.state.change import Change
from ocsf_nft.state.retry_until_writable import StorageRetrier
from ocsf_nft.state.state_db import FILE
from ocsf_nft.state.state_store import StateStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from ocsf_nft.service.outlet import Outlet
    from ocsf_nft.state.dropped_events import DroppedEvents


class Delivering(SinkDelivery):
    """Delivery whose store is opened and closed with it."""

    def __init__(
        self,
        found: Sequence[Outlet],
        folder: Path,
        stop: asyncio.Event | None = None,
        **limits: Any,
    ) -> None:
        self.retrier = StorageRetrier(stop or asyncio.Event())
        self.store = StateStore(folder / FILE, self.retrier, **limits)
        database = SinkDatabase(sink_db.path_of(folder / FILE), max_bytes=1 << 20, max_seconds=60)
        self._database = database
        self._outlets = found

    async def __aenter__(self) -> Self:
        await self.store.__aenter__()
        stream = EventStream(
            self.store.database.path, self.store.database.identity, self.store.database.end
        )
        self.store.on_stored = stream.advance
        super().__init__(
            self._outlets, stream, self._database, self.retrier, on_change=self._pass_on
        )
        try:
            return await super().__aenter__()
        except BaseException:
            await self.store.__aexit__(None, None, None)
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await super().__aexit__(kind, error, traceback)
        finally:
            await self.store.__aexit__(None, None, None)

    def _pass_on(self) -> None:
        self.store.database.retention.acknowledged = self.acknowledged

    async def synchronize(self) -> bool:
        """Do what a delivery process does at the request of its service."""
        while self._database.sweep():
            pass
        return True

    async def faults(self) -> tuple[str, ...]:
        return self._database.faults()

    async def confirm_fault(self, report: str) -> None:
        self._database.confirm_fault(report)

    async def dropped_events(self) -> tuple[DroppedEvents, ...]:
        return self._database.dropped_events()

    async def confirm_reported(self, dropped: Sequence[DroppedEvents]) -> None:
        self._database.confirm_reported(dropped)

    async def store_events(self, lines: Sequence[bytes]) -> None:
        await self.store.commit(Change(events=lines))
