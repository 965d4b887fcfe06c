"""One sandbox in a running service: its fence, its packet counts and its log sources."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.service.account_loop import AccountLoop
    from ocsf_nft.service.fence_monitor import FenceMonitor
    from ocsf_nft.service.pipeline import Pipeline
    from ocsf_nft.service.record_feeds import Feed


@dataclass(slots=True, kw_only=True, eq=False)
class WatchedSandbox:
    """Sandbox that a service watches."""

    monitor: FenceMonitor
    account: AccountLoop
    #: Log sources with records of this sandbox alone.
    feeds: Sequence[Feed]
    #: Reason why the sandbox is no longer watched; None while it is.
    failure: str | None = None

    @property
    def name(self) -> str:
        """Return the name of the sandbox."""
        return self.monitor.name

    async def start(self) -> None:
        """Start the tamper guard, and read the counters for the first time.

        Raises an OcsfNftError if the sandbox can't be watched.
        """
        await self.monitor.start()
        self.account.counters.enter_beside(self.monitor.namespace_socket)
        await self.account.resume()

    async def watch(self, pipeline: Pipeline, stop: asyncio.Event) -> None:
        """Watch the sandbox until ``stop`` is set, and its last records are read.

        Raises an ExceptionGroup with the errors of the monitor, the account or a log source.
        """
        async with asyncio.TaskGroup() as group:
            watches = [
                group.create_task(self.monitor.watch()),
                group.create_task(self.account.run()),
            ]
            # A fence that can't log has no source, and still has to be watched.
            pumps = [
                group.create_task(pipeline.pump(each.source, stop, each.sandboxes, each.name))
                for each in self.feeds
            ]
            await stop.wait()
            await asyncio.gather(*pumps)
            for watch in watches:
                watch.cancel()

    async def end(self) -> None:
        """Stop watching, and report all packets that no event has reported yet."""
        await self.monitor.stop()
        await self.account.close()

    async def remove(self) -> None:
        """Remove the fence if this process installed it, and then the stored counts too."""
        if await self.monitor.remove():
            await self.account.remove()
