"""Service that runs the configured fences, log sources, packet counters and sinks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Self

import orjson
import structlog

from ocsf_nft.accounting import state_db
from ocsf_nft.delivery.batch_settings import BatchSettings
from ocsf_nft.delivery.event_db import FILE
from ocsf_nft.delivery.retry_until_writable import StorageRetrier
from ocsf_nft.delivery.store import Store
from ocsf_nft.errors import OcsfNftError, UsageError
from ocsf_nft.fence.counters import Counters
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.ocsf.context import product, this_host
from ocsf_nft.ocsf.operational_events import attribution_degraded, lifecycle
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

#: Version of the handshake's format.
_HANDSHAKE: Final = 1
#: Name of the sink for iteration.
_ITERATED: Final = "iterated"
#: Configuration keys that a reload can change.
RELOADED: Final = frozenset({"sink", "output", "ocsf_version", "handshake", "severity", "finding"})


def _log_to_stderr() -> None:
    # structlog's default is standard output, where a program may write events.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )


class Service:
    """Service that fences the configured sandboxes, and reports their blocked packets as events.

    The start of ``async with`` activates the fences, and may raise an OcsfNftError. Its end removes
    the fences that the service installed. A later failure of the service cancels the task in the
    block, and is raised at the end of the block. After such a failure, the fences stay active.
    """

    def __init__(
        self,
        config: Config,
        *,
        found: Sequence[Outlet] | None = None,
        iterates: bool = False,
        stop: asyncio.Event | None = None,
    ) -> None:
        """Create a service; it does nothing until ``async with`` enters it.

        The sinks in ``found`` replace the configured sinks. If ``iterates`` is true, ``async for
        event in service`` also yields the events. In this case, standard output is not the default
        sink. Setting ``stop`` stops the service.
        """
        if not structlog.is_configured():
            _log_to_stderr()
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
        """Start the service; return when every fence is active and every log source is open."""
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(_first_error())
            group = await stack.enter_async_context(asyncio.TaskGroup())
            self._run = group.create_task(self._begin())
            stack.push_async_exit(self._stop_run)
            # A failure of the run cancels this task.
            await self._is_ready.wait()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the service: read the last records, remove its fences, and deliver the events.

        Delivery takes at most 5 s; undelivered events stay in the store. After the stop,
        ``counts.given_up`` has the names of some sandboxes. Their fences were not active at the
        stop, because the service had given up restoring them.
        """
        if error is None or isinstance(error, asyncio.CancelledError):
            await self._stack.__aexit__(kind, error, traceback)
        else:  # the caller's own error, which is raised again unchanged
            await self._stack.__aexit__(None, None, None)

    async def _stop_run(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        if self._iterated is not None and self._is_ready.is_set():
            self.delivery.undrained.add(_ITERATED)
        if kind is None or not issubclass(kind, asyncio.CancelledError):
            # A failure of the run cancels this task, here too.
            await asyncio.wait([self._run])

    @property
    def events(self) -> int:
        """Return how many events the service has written to its event database since its start."""
        return self._reporter.events

    def stop(self) -> None:
        """Begin to stop the service, and return at once.

        A running ``async for event in service`` ends after the last event.
        """
        self._stop.set()

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the events as decoded JSON until the service stops.

        Undelivered events of an earlier run come first. An event counts as delivered when the
        caller requests the next event. Raises UsageError for a service without ``iterates``.
        """
        if self._iterated is None:
            raise UsageError("this service can't be iterated over: create it with iterates=True")
        async for event in self._iterated.events():
            yield event

    async def reload(self, config: Config) -> None:
        """Apply a new configuration to the running service, and open all sinks again.

        After an error, the old configuration stays in use. Raises UsageError if a key that is not
        in :data:`RELOADED` has changed. Raises OcsfNftError if a file or standard output can't be
        opened.
        """
        changed = [
            name
            for name in type(config).model_fields
            if name not in RELOADED and getattr(config, name) != getattr(self.config, name)
        ]
        if changed:
            raise UsageError(
                f"{', '.join(changed)} cannot be changed by a reload: restart the service"
            )
        # New sinks also read their secrets and certificates again. Only local sinks are opened now:
        # opening any other sink is retried until it succeeds.
        await self.delivery.replace(self._outlets(config))
        self._reporter.set_severity_rules(config.severities, config.finding.as_threshold())
        self.config = config

    async def statuses(self) -> tuple[Status, ...]:
        """Return the status of each sandbox: its fence, packet counts and dropped records.

        Raises DeliveryError if the stored numbers of dropped records can't be read.
        """
        return tuple(
            [
                Status(
                    sandbox=monitor.name,
                    is_watched=True,
                    mode=monitor.mode,
                    absent=(),
                    verdict=monitor.verdict,
                    balances=account.balances(),
                    dropped_records=await account.dropped_records(),
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
        # Started before anything is logged, so that the capture sees the call of every record.
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
            # A fence that can't log has no source, and still has to be watched.
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
                # Nothing stays of a removed sandbox unless another part needs it.
                own = self._state.directory(each.name)
                self.delivery.removes_store = self.delivery.store.path.parent == own
        await report_dropped_events(self.delivery, reporter, time.time_ns())
        await reporter.emit(lifecycle(reporter.context(), activity="stop", time_ns=time.time_ns()))
        self.counts.events = reporter.events

    def _outlets(self, config: Config) -> tuple[Outlet, ...]:
        if self._found is not None:
            named = tuple(self._found)
        elif self._iterated is None or config.sink or config.output:
            named = outlets(config.sinks)
        else:  # standard output belongs to the caller
            named = ()
        if self._iterated is None:
            return named
        batch_settings = BatchSettings(timeout_seconds=None)
        return (*named, Outlet(name=_ITERATED, sink=self._iterated, batch_settings=batch_settings))

    def _handshake(self) -> bytes:
        """Return the handshake: the JSON line that some sinks get before the first event.

        Call this method when every fence is active. The line has the state of each fence.
        """
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
        event = attribution_degraded(
            self._reporter.context(),
            method=self.fallback_chain.method,
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


#: Capabilities for attribution, by the best method to use: to load the BPF programs that read
#: process data, and to inspect processes of other users.
_ATTRIBUTION_CAPABILITIES: Final = {
    "capture": {Capability.BPF, Capability.PERFMON, Capability.SYS_PTRACE},
    "socket": {Capability.SYS_PTRACE},
    "user": set[Capability](),
}


def capabilities(config: Config) -> frozenset[Capability]:
    """Return the Linux capabilities that a :class:`Service` with this configuration needs.

    These capabilities depend on the namespace and the log transport of each fence. For a fence that
    the service does not install, this function reads both from the state directory.
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
            # /proc/PID/ns of another user's process: the namespace, and its user id map
            needed.add(Capability.SYS_PTRACE)
        transport = found.transport if found else fences.requested_transport(sandbox)
        if transport != "nflog":
            needed.add(Capability.SYSLOG)
    return frozenset(needed)


async def replay(paths: Sequence[Path], outlet: Outlet, stop: asyncio.Event) -> Counts:
    """Read packet log records from files, and deliver their events directly to a sink.

    Setting ``stop`` ends the reading early. Raises an OcsfNftError if a file can't be read, or if
    the sink does not accept an event.
    """
    async with outlet.sink, Replay(paths) as source:
        # The machine that wrote the files is unknown, so the events have no ``device``.
        reporter = Reporter(outlet.deliver, host=None)
        pipeline = Pipeline(reporter, {})
        await pipeline.pump(source, stop)
        pipeline.counts.events = reporter.events
        return pipeline.counts


@contextlib.contextmanager
def _first_error() -> Iterator[None]:
    """Raise the first error in place of an exception group that the ``with`` block raises.

    If any error of the group is not an OcsfNftError, the group is raised unchanged.
    """
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
