"""NFLOG sources of a service: sandboxes with the same namespace and group share one source."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from ocsf_nft.service.keyed_locks import KeyedLocks
from ocsf_nft.service.shielded import run_shielded
from ocsf_nft.sources.nflog import Nflog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ocsf_nft.netns import Namespace
    from ocsf_nft.service.pipeline import Pipeline

_Key = tuple[str, int]


class NflogFeed:
    """Open NFLOG source, and the sandboxes that its records may be about."""

    def __init__(self, source: Nflog, pipeline: Pipeline) -> None:
        self.source: Final = source
        self.sandboxes: Final[set[str | None]] = set()
        self._pipeline = pipeline
        self._stop = asyncio.Event()
        self._drained = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    @property
    def has_failed(self) -> bool:
        """Return True if the source can't be read any more."""
        return self._pump is not None and self._pump.done()

    def start(self) -> None:
        """Start reading, if it has not started."""
        if self._pump is None:
            self._pump = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            await self._pipeline.pump(self.source, self._stop, self.sandboxes)
            # Another sandbox may have joined meanwhile.
            self._stop.clear()
            self._drained.set()

    async def wait_until_failed(self) -> None:
        """Wait until the source can't be read any more; raises the SourceError.

        Call :meth:`start` before.
        """
        if self._pump is not None:
            await asyncio.shield(self._pump)

    async def drain(self) -> None:
        """Process the records that the kernel has logged before.

        In a shared source, late records of a sandbox may stay unread. They have no process: the
        sandboxes that share a source are VMs.
        """
        if self._pump is None or self._pump.done():
            return
        if len(self.sandboxes) > 1:
            await asyncio.sleep(self.source.quiet_seconds)
            return
        self._drained.clear()
        self._stop.set()
        drained = asyncio.create_task(self._drained.wait())
        await asyncio.wait([self._pump, drained], return_when=asyncio.FIRST_COMPLETED)
        drained.cancel()

    async def close(self) -> None:
        """Close the source."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])
            if not self._pump.cancelled():
                self._pump.exception()  # wait_until_failed raises it
        await run_shielded(self.source.__aexit__())


class NflogFeeds:
    """Open NFLOG sources of a service by namespace and group."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._feeds: dict[_Key, NflogFeed] = {}
        # A group has only one reader, so it can't be opened while it is being closed.
        self._locks = KeyedLocks[_Key]()

    @contextlib.asynccontextmanager
    async def joined(
        self, sandbox: str, namespace: Namespace, group: int
    ) -> AsyncIterator[NflogFeed]:
        """Open the source of a namespace and an NFLOG group for the records of a sandbox.

        The ``async with`` block gets the feed, which may be another sandbox's too. At the end, the
        source is closed if it is no other sandbox's. Raises the errors of
        :meth:`Nflog.__aenter__`.
        """
        key = namespace.identity(), group
        async with self._locks.hold(key):
            feed = self._feeds.get(key)
            if feed is None or feed.has_failed:
                if feed is not None:
                    await feed.close()  # so that its group is free
                feed = NflogFeed(await Nflog(namespace, group).__aenter__(), self._pipeline)
                self._feeds[key] = feed
            feed.sandboxes.add(sandbox)
        try:
            yield feed
        finally:
            async with self._locks.hold(key):
                feed.sandboxes.discard(sandbox)
                if not feed.sandboxes:
                    await feed.close()
                    if self._feeds.get(key) is feed:
                        del self._feeds[key]
