"""One sandbox that a running service watches: its fence, its packet counts and its log sources."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog

from ocsf_nft.errors import DeliveryError
from ocsf_nft.namespace_processes import processes_in
from ocsf_nft.namespace_watch import present_identity
from ocsf_nft.netns import of_process
from ocsf_nft.service import fence_facts
from ocsf_nft.service.status import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.attribution.socket_lookups import AttachedNamespace
    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.flows.sandbox_account import Balance
    from ocsf_nft.netns import Namespace
    from ocsf_nft.service.account_loop import AccountLoop
    from ocsf_nft.service.bypass_watch import BypassWatch
    from ocsf_nft.service.fence_monitor import FenceMonitor
    from ocsf_nft.service.log_feeds import LogFeed
    from ocsf_nft.service.nflog_feeds import NflogFeed
    from ocsf_nft.service.sandbox_names import SandboxNames
    from ocsf_nft.service.sandbox_start import WatchParts

_log = structlog.get_logger()

#: Pause until a record that could not be stored is stored again.
_RETRY_SECONDS: Final = 1.0
#: Longest time in which a fence is off before its removal.
_STORING_SECONDS: Final = 5.0


@dataclass(slots=True, kw_only=True, eq=False)
class WatchedSandbox:
    """Sandbox that a service watches in one network namespace.

    :func:`sandbox_start.watch` makes it, and :meth:`close` ends it.
    """

    config: SandboxConfig
    #: Identity of its network namespace.
    identity: str
    monitor: FenceMonitor
    account: AccountLoop
    names: SandboxNames
    #: None for a VM without the last gate.
    bypass: BypassWatch | None
    attached: AttachedNamespace | None
    #: Log sources with its records. Others may share those of NFLOG.
    nflog: Sequence[NflogFeed]
    logs: Sequence[LogFeed]
    parts: WatchParts
    #: Closes everything but the fence.
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    @property
    def name(self) -> str:
        """Return the name of the sandbox."""
        return self.config.name

    async def watch(self, stop: asyncio.Event) -> bool:
        """Watch the sandbox until ``stop`` is set, or its network namespace ends.

        Its last records are read then. Return True if the namespace has ended. Raises an
        ExceptionGroup with the errors of the monitor, the account or a log source.
        """
        draining = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for feed in self.nflog:
                feed.start()
            replace = partial(self.monitor.change_addresses, self.names.addresses)
            watches = [
                group.create_task(self.monitor.watch()),
                group.create_task(self.monitor.prepare()),
                group.create_task(self.account.run()),
                group.create_task(self.names.run(replace)),
                *(() if self.bypass is None else (group.create_task(self.bypass.run()),)),
                *(group.create_task(feed.wait_until_failed()) for feed in self.nflog),
            ]
            # A fence that can't log has no source, and still has to be watched.
            pump = self.parts.pipeline.pump
            pumps = [
                group.create_task(pump(each.source, draining, each.sandboxes, each.name))
                for each in self.logs
            ]
            ended = group.create_task(self.wait_until_ended())
            stopping = group.create_task(stop.wait())
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
            draining.set()
            await asyncio.gather(*pumps, *(feed.drain() for feed in self.nflog))
            # Its counters have the packets of later records.
            self.parts.fences.accounts.drop(self.name, self.account)
            for each in (*watches, ended, stopping):
                each.cancel()
        return ended.done() and not ended.cancelled()

    async def wait_until_ended(self) -> None:
        """Wait until the sandbox's network namespace ends.

        It does not end with its name, or with the process that names it, while it has processes.
        But the next namespace of that name ends it.
        """
        watch, name = self.parts.namespaces, self.config.namespace
        await watch.wait_until_ended(self._file, self.identity)
        while not self.has_successor and await self._follow_process():
            async with asyncio.TaskGroup() as group:
                ended = watch.wait_until_ended(self._file, self.identity)
                waits: list[asyncio.Task[Any]] = [group.create_task(ended)]
                if name is not None:
                    waits.append(group.create_task(watch.wait_until_present(name)))
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for each in waits:
                    each.cancel()

    @property
    def has_ended(self) -> bool:
        """Return True if the end of the sandbox's network namespace is about to be noticed."""
        return self.has_successor or not self.exists

    @property
    def exists(self) -> bool:
        """Return True if the sandbox's network namespace exists, under its last known file."""
        return self._file.has_identity(self.identity)

    @property
    def has_successor(self) -> bool:
        """Return True if another network namespace has the configured name."""
        name = self.config.namespace
        return name is not None and present_identity(name) not in {None, self.identity}

    @property
    def _file(self) -> Namespace:
        return self.monitor.reports.installed.namespace

    async def _follow_process(self) -> bool:
        """Find the namespace by one of its processes from now on; return False if it has none."""
        found = await asyncio.to_thread(processes_in, self.identity)
        for pid in found.pids:
            try:
                is_moved = await self.monitor.move(of_process(pid))
            except DeliveryError as error:  # a full disk, for example: it is tried again
                _log.error("a record can't be stored", sandbox=self.name, reason=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
                return True
            if is_moved:
                _log.warning(
                    "a network namespace is watched without its name: it has processes",
                    sandbox=self.name,
                    pid=pid,
                    processes=found.count,
                )
                return True
        return False

    def status(self, *, is_watched: bool) -> Status:
        """Return the status of the sandbox by the last reading of its counters."""
        reports = self.monitor.reports
        return Status(
            sandbox=self.name,
            is_watched=is_watched,
            mode=reports.mode,
            absent=self.account.counters.absent(is_permissive=reports.mode == "permissive"),
            verdict=reports.verdict,
            surroundings=self.monitor.surroundings.present,
            guard_note=fence_facts.guard_note(reports.installed),
            balances=self.account.balances(),
            dropped_records=self.parts.store.database.dropped_records(self.name),
        )

    async def finish(self, *, removes: bool = False) -> tuple[Balance, ...]:
        """Report all packets that no event has reported yet, and return the final counts.

        With ``removes``, the fence is turned off before the last reading: call :meth:`remove` after
        that. After an error, it is on. Raises DeliveryError if the last counts can't be stored.
        """
        await self.account.refresh()  # opens the counters' sockets beside those of the guard
        await self.monitor.stop()
        return await (self._turn_off_and_read() if removes else self.account.close())

    async def _turn_off_and_read(self) -> tuple[Balance, ...]:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.monitor.removal.turn_on)
            await self.monitor.removal.turn_off()
            try:
                async with asyncio.timeout(_STORING_SECONDS):
                    balances = await self.account.close()
            except TimeoutError as error:
                raise DeliveryError(
                    f"the last counts of sandbox {self.name} can't be stored: "
                    "free space on the disk of the state directory, and try again"
                ) from error
            stack.pop_all()
        return balances

    async def remove(self) -> bool:
        """Remove the fence; return False if another process has removed the fence.

        Call :meth:`finish` before. Raises the errors of :func:`installer.remove`; the fence is on
        then.
        """
        was_there = await self.monitor.removal.remove()
        if was_there and not self.monitor.removal.was_off:
            reason = "its fence may have blocked packets between the last reading and its removal"
            await self.account.gaps.report(reason)
        return was_there

    async def close(self) -> None:
        """Close everything but the fence; call :meth:`finish` before."""
        await self.stack.aclose()
