"""Run: fence or find fenced, read, map, keep, deliver, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, Final, Self

import orjson

from ocsf_nft.accounting import state_db
from ocsf_nft.delivery.batch_settings import BatchSettings
from ocsf_nft.delivery.event_db import FILE
from ocsf_nft.delivery.retry_until_writable import StorageRetrier
from ocsf_nft.delivery.store import Store
from ocsf_nft.errors import OcsfNftError, UsageError
from ocsf_nft.fence.counters import Counters
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.ocsf.context import product, this_host
from ocsf_nft.ocsf.operational_events import attribution_fell, lifecycle
from ocsf_nft.privileges import Capability
from ocsf_nft.service import attribution_setup, fences
from ocsf_nft.service.account_loop import AccountLoop
from ocsf_nft.service.event_rendering import Reporter
from ocsf_nft.service.fence_monitor import FenceMonitor
from ocsf_nft.service.housekeeping import report_dropped_events, run_housekeeping
from ocsf_nft.service.iterator_sink import IteratorSink
from ocsf_nft.service.pipeline import Counts, Pipeline
from ocsf_nft.service.record_feeds import HOST, EarlySources, feeds, log_name
from ocsf_nft.service.sink_delivery import Outlet, SinkDelivery, outlets
from ocsf_nft.service.status import Status
from ocsf_nft.sources.replay import Replay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from ocsf_nft.attribution.fallback_chain import FallbackChain
    from ocsf_nft.config import Config, SandboxConfig
    from ocsf_nft.service.fences import Fence

#: The form of the handshake: another number is another form.
_HANDSHAKE: Final = 1
#: The sink that events are iterated over by.
_ITERATED: Final = "iterated"
#: What of a configuration is taken over while a run goes on.
RELOADED: Final = frozenset({"sink", "output", "ocsf_version", "handshake", "severity", "finding"})


class Service:
    """The sandboxes of a configuration under watch, while its context is entered.

    Once it is entered every fence stands, and every record is read. When it is left, what the
    kernel has logged by then is still kept and delivered, and the fences that it installed are
    removed; what a sink does not take within some seconds waits in the store for the next run.

    A fence that others alter is put back, if that is not switched off; ``given_up`` of the counts
    are those that were altered too often, and don't stand.

    Entering raises an OcsfNftError when a fence can't stand, a source can't be read or events
    can't be kept. What fails later cancels who has entered, and is raised when it is left. The
    fences are left standing then: who is fenced stays fenced.
    """

    def __init__(
        self,
        config: Config,
        *,
        found: Sequence[Outlet] | None = None,
        iterates: bool = False,
        stop: asyncio.Event | None = None,
    ) -> None:
        """``found`` is where events go, in place of the configuration's sinks.

        With ``iterates`` they are iterated over (``async for event in service``), and go besides
        to the sinks that the configuration names. When ``stop`` is set it begins to end, though
        its context is not left yet.
        """
        self.config = config
        self.counts = Counts()
        self.retrier: StorageRetrier
        self.delivery: SinkDelivery
        self.fence_monitors: tuple[FenceMonitor, ...] = ()
        self.accounts: tuple[AccountLoop, ...] = ()
        self.fallback_chain: FallbackChain
        self._reporter: Reporter
        self._iterated = IteratorSink() if iterates else None
        self._found = found
        self._state = StateDirectory(config.state_dir)
        self._stop = stop or asyncio.Event()
        self._is_ready = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()
        self._run: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        """Begin, and return when all stands and is read."""
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(_first_error())
            group = await stack.enter_async_context(asyncio.TaskGroup())
            self._run = group.create_task(self._begin())
            stack.push_async_exit(self._stop_run)
            # When it fails it is this task that is cancelled.
            await self._is_ready.wait()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End."""
        if error is None or isinstance(error, asyncio.CancelledError):
            await self._stack.__aexit__(kind, error, traceback)
        else:  # the caller's own, which is raised again as it is
            await self._stack.__aexit__(None, None, None)

    async def _stop_run(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        if self._iterated is not None and self._is_ready.is_set():
            self.delivery.undrained.add(_ITERATED)
        if kind is None or not issubclass(kind, asyncio.CancelledError):
            # When it fails it is this task that is cancelled, here too.
            await asyncio.wait([self._run])

    @property
    def events(self) -> int:
        """How many events were kept since it began."""
        return self._reporter.events

    def stop(self) -> None:
        """Begin to end: what is iterated over ends once all is told."""
        self._stop.set()

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        """The events, as JSON reads them, from where an earlier run left off.

        One counts as taken when the next is asked for: who is killed before gets it again. Ends
        when the service does (:meth:`stop`). Raises UsageError when it does not ``iterate``.
        """
        if self._iterated is None:
            raise UsageError("this service is not iterated over: make it with iterates=True")
        async for event in self._iterated.events():
            yield event

    async def reload(self, config: Config) -> None:
        """Take over another configuration's sinks, severities and findings.

        Sinks are opened anew, with their secrets and certificates. Raises UsageError where
        anything else is another one, and an OcsfNftError when a local sink of a new name can't be
        opened: all goes on as before then. Any other one that can't be is waited for.
        """
        changed = [
            name
            for name in type(config).model_fields
            if name not in RELOADED and getattr(config, name) != getattr(self.config, name)
        ]
        if changed:
            raise UsageError(
                f"{', '.join(changed)} can't be taken over while a run goes on: start it again"
            )
        await self.delivery.replace(self._outlets(config))
        self._reporter.set_severity_rules(config.severities, config.finding.as_threshold())
        self.config = config

    async def statuses(self) -> tuple[Status, ...]:
        """How the accounts of the sandboxes stand; raises DeliveryError."""
        return tuple(
            [
                Status(
                    sandbox=monitor.name,
                    is_watched=True,
                    mode=monitor.mode,
                    absent=(),
                    verdict=monitor.verdict,
                    balances=account.balances(),
                    lost=await account.dropped_records(),
                )
                for monitor, account in zip(self.fence_monitors, self.accounts, strict=True)
            ]
        )

    async def _begin(self) -> None:
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._watch(stack)
        finally:
            if self._iterated is not None:
                self._iterated.end()

    async def _watch(self, stack: contextlib.AsyncExitStack) -> None:
        config = self.config
        self.retrier = StorageRetrier(self._stop)
        for sandbox in config.sandbox:
            stack.enter_context(self._state.run_lock(sandbox.name))
        # Before anything is logged: so no record is of a call from before it.
        self.fallback_chain = await stack.enter_async_context(
            attribution_setup.build_fallback_chain(config, self._state)
        )
        early = EarlySources()
        for sandbox in config.sandbox:
            await early.open(sandbox, self._state, stack)
        active_fences = [
            await asyncio.to_thread(fences.activate, each, self._state) for each in config.sandbox
        ]
        self.delivery = await stack.enter_async_context(
            SinkDelivery(self._outlets(config), self._store(), self.retrier)
        )
        self._reporter = reporter = Reporter(
            self.delivery.store_events,
            this_host(),
            severities=config.severities,
            threshold=config.finding.as_threshold(),
        )
        accounts = {
            sandbox.name: await stack.enter_async_context(self._account_loop(sandbox, fence))
            for sandbox, fence in zip(config.sandbox, active_fences, strict=True)
        }
        sources = await feeds(config, active_fences, accounts, self.delivery.store, early, stack)
        await reporter.emit(lifecycle(reporter.context(), activity="start", time_ns=time.time_ns()))
        self.accounts = tuple(accounts.values())
        self.fence_monitors = tuple(
            FenceMonitor(sandbox, fence, self._state, reporter)
            for sandbox, fence in zip(config.sandbox, active_fences, strict=True)
        )
        for each in self.fence_monitors:
            await each.announce()
            stack.push_async_callback(each.stop)
            await each.start()
        for account in self.accounts:
            await account.resume()
        pipeline = Pipeline(reporter, accounts, config.prefixes, self.counts)
        self.delivery.set_handshake(self._handshake())
        self._is_ready.set()
        async with asyncio.TaskGroup() as group:
            watches = [group.create_task(each.watch()) for each in self.fence_monitors]
            watches += [group.create_task(each.run()) for each in self.accounts]
            watches.append(group.create_task(run_housekeeping(self.delivery, reporter)))
            watches.append(
                group.create_task(self.fallback_chain.watch_capture(self._report_capture_end))
            )
            pumps = [group.create_task(each.pump(pipeline, self._stop)) for each in sources]
            # A fence that can't log leaves nothing to read, and still has to be watched.
            await self._stop.wait()
            await asyncio.gather(*pumps)
            for watch in watches:
                watch.cancel()
        await self._end(reporter)

    async def _end(self, reporter: Reporter) -> None:
        for each in self.fence_monitors:
            await each.stop()
        self.counts.given_up = [each.name for each in self.fence_monitors if each.has_given_up]
        for account in self.accounts:
            await account.close()
        for each, account in zip(self.fence_monitors, self.accounts, strict=True):
            if await each.remove():
                await account.remove()
                # Of a sandbox that is gone, nothing stays that nobody needs.
                own = self._state.directory(each.name)
                self.delivery.removes_store = self.delivery.store.path.parent == own
        await report_dropped_events(self.delivery, reporter, time.time_ns())
        await reporter.emit(lifecycle(reporter.context(), activity="stop", time_ns=time.time_ns()))
        self.counts.events = reporter.events

    def _outlets(self, config: Config) -> tuple[Outlet, ...]:
        if self._found is not None:
            return tuple(self._found)
        if self._iterated is None:
            return outlets(config.sinks)
        # Standard output only where it is asked for: it is the caller's.
        named = outlets(config.sinks) if config.sink or config.output else ()
        batch_settings = BatchSettings(timeout_seconds=None)
        return (*named, Outlet(name=_ITERATED, sink=self._iterated, batch_settings=batch_settings))

    def _handshake(self) -> bytes:
        """A line for who reads events from a pipe or a socket: all stands, and is read."""
        return orjson.dumps(
            {
                "handshake": _HANDSHAKE,
                "version": product().version,
                "pid": os.getpid(),
                "sandboxes": [
                    {"name": each.name, "fence": each.verdict, "mode": each.mode}
                    for each in self.fence_monitors
                ],
            }
        )

    def _store(self) -> Store:
        settings = self.config.store
        return Store(
            settings.path or self._state.path / FILE,
            max_bytes=settings.max_bytes,
            max_seconds=settings.max_age,
            drops=settings.when_full == "drop",
        )

    async def _report_capture_end(self, reason: str) -> None:
        """Tell that processes are not captured any more."""
        event = attribution_fell(
            self._reporter.context(),
            rung=self.fallback_chain.method,
            reason=reason,
            time_ns=time.time_ns(),
        )
        await self._reporter.emit(event)

    def _account_loop(self, sandbox: SandboxConfig, fence: Fence) -> AccountLoop:
        return AccountLoop(
            sandbox.name,
            Counters(fence.installed),
            self._state.directory(sandbox.name) / state_db.FILE,
            self._reporter,
            begun_ns=self._state.written_ns(sandbox.name) or time.time_ns(),
            retrier=self.retrier,
            fallback_chain=self.fallback_chain,
            source=log_name(sandbox) if fence.installed.transport == "kmsg" else "",
        )


#: What naming processes takes, by the best rung to be used: to load programs that read what the
#: processes are, and to look at processes of other users.
_ATTRIBUTION_CAPABILITIES: Final = {
    "capture": {Capability.BPF, Capability.PERFMON, Capability.SYS_PTRACE},
    "socket": {Capability.SYS_PTRACE},
    "user": set[Capability](),
}


def capabilities(config: Config) -> frozenset[Capability]:
    """What a :class:`Service` needs for as long as it runs.

    Where a fence stands that a run finds, and how it logs, is on record.
    """
    state = StateDirectory(config.state_dir)
    needed: set[Capability] = set()
    if config.host_log == "kmsg":
        needed.add(Capability.SYSLOG)  # /dev/kmsg where dmesg_restrict=1
    for sandbox in config.sandbox:
        needed.add(Capability.NET_ADMIN)  # binding NFLOG, listing and renewing the fence
        if sandbox.profile != "tap":
            needed |= _ATTRIBUTION_CAPABILITIES[config.attribution.method]
        found = None if sandbox.install else fences.read_record(sandbox.name, state)
        namespace = sandbox.namespace or (found.namespace if found else HOST)
        if namespace != HOST:
            needed.add(Capability.SYS_ADMIN)  # setns(2) into another namespace
            # /proc/PID/ns of another user's process: where it is, and how its users are numbered
            needed.add(Capability.SYS_PTRACE)
        transport = found.transport if found else fences.requested_transport(sandbox)
        if transport != "nflog":
            needed.add(Capability.SYSLOG)
    return frozenset(needed)


async def replay(paths: Sequence[Path], outlet: Outlet, stop: asyncio.Event) -> Counts:
    """Deliver what files hold; no fence is looked at, nothing is stored. Raises an OcsfNftError.

    Nobody knows which machine wrote them, so the events name no device.
    """
    async with outlet.sink, Replay(paths) as source:
        reporter = Reporter(outlet.deliver, host=None)
        pipeline = Pipeline(reporter, {})
        await pipeline.pump(source, stop)
        pipeline.counts.events = reporter.events
        return pipeline.counts


@contextlib.contextmanager
def _first_error() -> Iterator[None]:
    """Of several tasks that fail together, the first of our own errors is the one to tell."""
    try:
        yield
    except BaseExceptionGroup as group:
        ours, others = group.split(OcsfNftError)
        if ours is None or others is not None:
            raise
        leaf: BaseException = ours
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        raise leaf from None
