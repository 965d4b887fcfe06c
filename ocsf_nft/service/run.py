"""Service that runs the configured fences, log sources, packet counters and sinks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Self

import structlog

from ocsf_nft import redaction
from ocsf_nft.delivery import sink_db
from ocsf_nft.errors import UsageError
from ocsf_nft.fence.guard_thread import GuardThread
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.namespace_watch import NamespaceWatch
from ocsf_nft.ocsf.context import this_host
from ocsf_nft.ocsf.operational_events import attribution_degraded, lifecycle
from ocsf_nft.service import health, log_feeds, startup
from ocsf_nft.service.accounts import Accounts
from ocsf_nft.service.delivery_process import DeliveryProcess
from ocsf_nft.service.event_rendering import Reporter
from ocsf_nft.service.handshake import handshake
from ocsf_nft.service.housekeeping import reap, report_dropped_events, run_housekeeping
from ocsf_nft.service.iteration import Iteration
from ocsf_nft.service.nflog_feeds import NflogFeeds
from ocsf_nft.service.outlet import Outlet, outlets
from ocsf_nft.service.pipeline import Counts, Pipeline
from ocsf_nft.service.sandbox_start import FenceParts, WatchParts
from ocsf_nft.service.sandbox_view import must_be_absent, must_exist, no_condition
from ocsf_nft.service.sandboxes import Sandboxes
from ocsf_nft.service.shared_names import SharedNames
from ocsf_nft.service.shielded import run_shielded
from ocsf_nft.service.task_errors import first_error
from ocsf_nft.state.retry_until_writable import StorageRetrier

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from types import TracebackType

    from ocsf_nft.attribution.fallback_chain import FallbackChain
    from ocsf_nft.config import Config, SandboxConfig
    from ocsf_nft.process import Process
    from ocsf_nft.service.finding_counts import FindingCount, FindingKey
    from ocsf_nft.service.sandbox import Sandbox
    from ocsf_nft.service.sandbox_view import Condition, PutResult, SandboxView
    from ocsf_nft.service.status import Status
    from ocsf_nft.state.state_store import StateStore

_log = structlog.get_logger()

#: Threads that read counters, and number of readings in memory: one takes up to 10 MB for a moment.
#: And the time that a request for the status waits for them.
_READERS: Final = 4
_REFRESH_SECONDS: Final = 1.0
#: Restores that are prepared at the same time, so that threads are left for all else.
_PREPARING: Final = 2
#: Time for that before the service is ready; with many fences it goes on afterwards.
_PREPARE_SECONDS: Final = 1.0
#: Configuration keys that a reload can change.
RELOADED: Final = frozenset({
    "attach", "sandbox", "sink", "output", "ocsf_version", "handshake", "severity", "finding",
    "dns_tunnel", "events",
})  # fmt: skip


def _log_to_stderr() -> None:
    # structlog's default is standard output, where a program may write events.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )


class Service:
    """Service that fences sandboxes, and reports their blocked packets as events.

    The start of ``async with`` activates the fences of the configured sandboxes, and may raise an
    OcsfNftError. More sandboxes may be added by :meth:`put`. The end of the block removes the
    fences that the service installed for its configuration. A later failure of the service cancels
    the task in the block, and is raised at the end of the block. After such a failure, the fences
    stay active.
    """

    def __init__(
        self,
        config: Config,
        *,
        iterates: bool = False,
        must_exist: bool = True,
        stop: asyncio.Event | None = None,
        programs: startup.Programs | None = None,
    ) -> None:
        """Create a service; it does nothing until ``async with`` enters it.

        With ``iterates``, ``async for event in service`` also yields the events, and standard
        output is no default sink. Without ``must_exist``, a network namespace that is missing at
        the start is waited for. Setting ``stop`` stops the service. ``programs`` is the result of
        :func:`startup.load_programs`; without it, the start loads the BPF programs.
        """
        if not structlog.is_configured():
            _log_to_stderr()
        self.config = config
        self.counts = Counts()
        self.retrier: StorageRetrier
        self.store: StateStore
        self.delivery: DeliveryProcess
        self.fallback_chain: FallbackChain
        self._reporter: Reporter
        self._iterates = iterates
        self._must_exist = must_exist
        self._iteration: Iteration | None = None
        self._state = StateDirectory(config.state_dir)
        is_alone = config.host_log is None and config.control is None
        self._sandboxes = Sandboxes(
            self._state, is_needed=is_alone, on_change=self._update_handshake
        )
        #: Threads that read counters; they are shared by all sandboxes.
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="counters")
        self._slots = asyncio.Semaphore(_READERS)
        self._refreshing: set[asyncio.Task[None]] = set()
        self._stop = stop or asyncio.Event()
        self._programs = programs
        self._is_ready = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()
        self._run: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        """Start the service; return when every fence is active and every log source is open."""
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(first_error())
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
        if self._is_ready.is_set():
            self.delivery.is_abandoned = True
        if kind is None or not issubclass(kind, asyncio.CancelledError):
            # A failure of the run cancels this task, here too.
            await asyncio.wait([self._run])

    @property
    def sandboxes(self) -> tuple[Sandbox, ...]:
        """Return the sandboxes of the service."""
        return self._sandboxes.all

    @property
    def events(self) -> int:
        """Return how many events the service has stored since its start."""
        return self._reporter.events

    @property
    def findings(self) -> Mapping[FindingKey, FindingCount]:
        """Return the numbers of findings of this run by sandbox and situation."""
        return self._reporter.finding_counts()

    def stop(self) -> None:
        """Begin to stop the service, and return at once.

        A running ``async for event in service`` ends after the last event.
        """
        self._stop.set()

    async def put(
        self,
        sandbox: SandboxConfig,
        caller: Process | None = None,
        require: Condition = no_condition,
        *,
        namespace_id: str | None = None,
    ) -> PutResult:
        """Add a sandbox, or change its policy; see :meth:`Sandboxes.put`.

        The sandbox is stored, and comes back after a restart of the service.
        """
        return await self._sandboxes.put(sandbox, caller, require, namespace_id=namespace_id)

    async def add(self, sandbox: SandboxConfig) -> None:
        """Add a sandbox, as :meth:`put` does; raises ConflictError if there is one of its name."""
        await self._sandboxes.put(sandbox, require=must_be_absent)

    async def set(self, sandbox: SandboxConfig) -> tuple[str, ...]:
        """Change the policy of a sandbox that was added, and return the differences, as texts.

        Raises AbsentError if there is no such sandbox, and the errors of :meth:`put`.
        """
        return (await self._sandboxes.put(sandbox, require=must_exist)).changes

    async def release(
        self,
        name: str,
        caller: Process | None = None,
        require: Condition = no_condition,
        *,
        keeps_fence: bool = False,
    ) -> Status:
        """Release a sandbox that was added; see :meth:`Sandboxes.release`."""
        return await self._sandboxes.release(name, caller, require, keeps_fence=keeps_fence)

    def view(self, name: str) -> SandboxView:
        """Return the state of a sandbox; raises AbsentError if there is none of this name."""
        return self._sandboxes.view(name)

    def views(self) -> tuple[SandboxView, ...]:
        """Return the state of each sandbox, in the order of their names."""
        return self._sandboxes.views()

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the events as decoded JSON until the service stops.

        Undelivered events of an earlier run come first. An event counts as delivered when the
        caller requests the next event. Raises UsageError for a service without ``iterates``.
        """
        if self._iteration is None:
            raise UsageError("this service can't be iterated over: create it with iterates=True")
        async for event in self._iteration.events():
            yield event

    async def reload(self, config: Config) -> None:
        """Apply a new configuration to the running service, and open all sinks again.

        Raises UsageError if a key that is not in :data:`RELOADED` has changed, and an OcsfNftError
        if a file or standard output can't be opened. The old configuration stays in use then. At
        last, raises the first error of a sandbox: see :meth:`Sandboxes.reload`.
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
        self._reporter.set_severity_rules(config.severities, config.finding_settings)
        self._reporter.has_dns_activity = config.events.dns_activity
        self.config = config
        await self._sandboxes.reload(config.sandbox)

    async def statuses(self) -> tuple[Status, ...]:
        """Return the status of each sandbox: its fence, packet counts and dropped records.

        The counters are read before. Raises DeliveryError if the state database can't be used.
        """
        await self._refresh(self.sandboxes)
        found = (each.status() for each in self.sandboxes)
        return tuple(each for each in found if each is not None)

    async def status(self, name: str) -> Status | None:
        """Return the status of one sandbox, and read only its counters before.

        None if it is not watched. Raises AbsentError if there is no such sandbox, DeliveryError.
        """
        await self._refresh((self._sandboxes.find(name),))
        return self._sandboxes.find(name).status()

    async def _refresh(self, sandboxes: Iterable[Sandbox]) -> None:
        """Read the counters of sandboxes, but do not wait long for any."""
        watched = [each.watched for each in sandboxes if each.watched is not None]
        tasks = [asyncio.create_task(each.account.refresh()) for each in watched]
        self._refreshing.update(tasks)
        for task in tasks:
            task.add_done_callback(self._forget_refresh)
        if tasks:
            await asyncio.wait(tasks, timeout=_REFRESH_SECONDS)

    def _forget_refresh(self, task: asyncio.Task[None]) -> None:
        self._refreshing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("counters could not be read", reason=str(error))

    async def _begin(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            await self._watch(stack)

    async def _loaded_programs(self, stack: contextlib.AsyncExitStack) -> startup.Programs:
        programs = self._programs
        if programs is None:  # the chain of attribution loads the capture itself
            return await run_shielded(self._load_programs(stack))
        if programs.gate is not None:
            stack.callback(programs.gate.close)
        return programs

    async def _load_programs(self, stack: contextlib.AsyncExitStack) -> startup.Programs:
        gate = await asyncio.to_thread(startup.load_gate, self.config)
        if gate is not None:  # also if the service was cancelled meanwhile
            stack.callback(gate.close)
        return startup.Programs(gate=gate)

    async def _watch(self, stack: contextlib.AsyncExitStack) -> None:
        config = self.config
        stack.callback(self._pool.shutdown, wait=False)
        programs = await self._loaded_programs(stack)
        guards = GuardThread()
        stack.callback(guards.close)
        self.retrier = StorageRetrier(self._stop)
        redaction.configure(startup.redactor(config))
        self.store = store = startup.state_store(config, self.retrier)
        self._reporter = reporter = Reporter(
            store.commit,
            config.identity.of(this_host()),
            severities=config.severities,
            findings=config.finding_settings,
        )
        reporter.has_dns_activity = config.events.dns_activity
        accounts = Accounts()
        pipeline = Pipeline(reporter, accounts, config.prefixes, self.counts)
        self.fallback_chain = await stack.enter_async_context(
            startup.attribution_chain(config, programs.capture)
        )
        if config.control is not None:  # so that the first sandbox is added at once
            await self.fallback_chain.start()
        namespaces = await stack.enter_async_context(NamespaceWatch())
        stack.push_async_callback(self._sandboxes.close)
        fence_parts = FenceParts(
            state=self._state, chain=self.fallback_chain, nflog=NflogFeeds(pipeline),
            accounts=accounts, pool=self._pool,
        )  # fmt: skip
        await self._sandboxes.activate(fence_parts, config.sandbox, must_exist=self._must_exist)
        await stack.enter_async_context(store)
        await reporter.resume_findings(await store.retry(store.database.open_findings))
        if self._iterates:
            self._iteration = Iteration(store, await store.retry(store.database.begin_iteration))
        self.delivery = await stack.enter_async_context(
            DeliveryProcess(
                self._outlets(config),
                store,
                sinks=sink_db.path_of(store.database.path),
                max_bytes=startup.dead_letter_bytes(config),
                max_seconds=config.store.max_age,
                iteration=self._iteration,
            )
        )
        await reporter.emit(lifecycle(reporter.context(), activity="start", time_ns=time.time_ns()))
        host_feed = log_feeds.of_host(config, store)
        if host_feed is not None:
            await stack.enter_async_context(host_feed.source)
        parts = WatchParts(
            fences=fence_parts,
            store=store,
            reporter=reporter,
            pipeline=pipeline,
            guards=guards,
            gate=programs.gate,
            namespaces=namespaces,
            names=await stack.enter_async_context(SharedNames(self.delivery.names.resolve)),
            preparing=asyncio.Semaphore(_PREPARING),
            slots=self._slots,
        )
        async with asyncio.TaskGroup() as group:
            await self._sandboxes.begin(parts, group)
            self._update_handshake()
            others = [
                group.create_task(
                    run_housekeeping(
                        store, self.delivery, reporter, lambda: health.all_faults(self)
                    )
                ),
                group.create_task(reap(self._state, store, reporter)),
                group.create_task(self._sandboxes.guard_later_links()),
                group.create_task(self.fallback_chain.watch_capture(self._report_capture_end)),
            ]
            pumps = []
            if host_feed is not None:
                pump = pipeline.pump(
                    host_feed.source, self._stop, host_feed.sandboxes, host_feed.name
                )
                pumps.append(group.create_task(pump))
            self._sandboxes.start()
            # A restore is quicker after it, and works before.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PREPARE_SECONDS):
                    await self._sandboxes.wait_until_prepared()
            self._is_ready.set()
            await self._stop.wait()
            await asyncio.gather(*pumps)
            self.counts.given_up = await self._sandboxes.finish()
            for other in others:
                other.cancel()
        await report_dropped_events(store, self.delivery, reporter, time.time_ns())
        await reporter.end_quiet_findings(closing=True)
        await reporter.emit(lifecycle(reporter.context(), activity="stop", time_ns=time.time_ns()))
        self.counts.events = reporter.events

    def _update_handshake(self) -> None:
        self.delivery.set_handshake(handshake(self.sandboxes))

    def _outlets(self, config: Config) -> tuple[Outlet, ...]:
        if self._iterates and not (config.sink or config.output):
            return ()  # standard output belongs to the caller
        return outlets(config.sinks)

    async def _report_capture_end(self, reason: str) -> None:
        event = attribution_degraded(
            self._reporter.context(),
            method=self.fallback_chain.method,
            reason=reason,
            time_ns=time.time_ns(),
        )
        await self._reporter.emit(event)
