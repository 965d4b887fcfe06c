"""The state database and the sinks' database as one store, and helpers that fill a disk."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from typing import TYPE_CHECKING, Self

from ocsf_nft.delivery import sink_db
from ocsf_nft.delivery.event_stream import EventStream
from ocsf_nft.delivery.sink_db import SinkDatabase
from ocsf_nft.state.archive import Archive
from ocsf_nft.state.change import Change
from ocsf_nft.state.retry_until_writable import StorageRetrier
from ocsf_nft.state.state_store import StateStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ocsf_nft.delivery.sink_db import RefusedEvent
    from ocsf_nft.state.dropped_events import DroppedEvents
    from ocsf_nft.state.state_db import StoredEvent


class Store:
    """Stored events, and the checkpoints of sinks, as a service has them."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = 1 << 30,
        max_seconds: float = 1e9,
        drops: bool = False,
    ) -> None:
        self.path = path
        self.retrier = StorageRetrier(asyncio.Event())
        self.state = StateStore(
            path,
            self.retrier,
            max_bytes=max_bytes,
            max_seconds=max_seconds,
            drops=drops,
        )
        self.stream: EventStream
        self.sinks = SinkDatabase(
            sink_db.path_of(path), max_bytes=max_bytes // 8, max_seconds=max_seconds
        )

    async def __aenter__(self) -> Self:
        await self.state.__aenter__()
        self.stream = EventStream(self.path, self.state.database.identity, self.end)
        self.state.on_stored = self.stream.advance
        self.sinks.open()
        self.refresh()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.sinks.close()
        self.stream.close()
        await self.state.__aexit__(None, None, None)

    @property
    def end(self) -> int:
        return self.state.database.end

    def refresh(self) -> None:
        """Pass the checkpoints to the retention of events."""
        self.state.database.retention.acknowledged = self.sinks.checkpoints()

    def advanced(self, _name: str, _number: int) -> None:
        self.refresh()

    async def put(self, lines: Sequence[bytes]) -> None:
        """Store events in one transaction, without a retry."""
        while self.state.database.retention.make_room():
            pass
        self.state.database.commit([Change(events=lines)])
        self.stream.advance(self.end)

    async def register(self, names: Sequence[str]) -> dict[str, int]:
        removed = self.sinks.register(names, self.state.database.identity, self.end)
        self.refresh()
        return removed

    async def acknowledge(
        self, sink: str, until: int, refused: Sequence[RefusedEvent] = ()
    ) -> None:
        self.sinks.acknowledge(sink, until, refused)
        self.refresh()

    async def read(self, beyond: int, *, events: int, size: int) -> list[StoredEvent]:
        return self.stream.read(beyond, self.end, events=events, size=size)

    async def dropped_after_sweep(self) -> tuple[DroppedEvents, ...]:
        """Return the dropped events and dead letters after a removal."""
        await self.state.sweep()
        while self.sinks.sweep():
            pass
        return (*await self.state.dropped_events(), *self.sinks.dropped_events())


async def stored_uids(store: Store, beyond: int = 0) -> list[str]:
    with Archive(store.path) as archive:  # the stream has the latest also if they are removed
        return [row.uid for row in archive.read(beyond)]


def fill(folder: Path, left: int = 0) -> Path:
    """Fill the disk of a folder until ``left`` bytes are free; return the file."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while shutil.disk_usage(folder).free > left:
            file.write(b"\0" * 4096)
    return path
