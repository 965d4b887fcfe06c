"""Run: fence or find fenced, read, map, deliver, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ocsf_nft.accounting import book
from ocsf_nft.delivery.patience import Patience
from ocsf_nft.delivery.store import FILE, Store
from ocsf_nft.errors import FenceError, OcsfNftError
from ocsf_nft.fence.counters import Counters
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.netns import Namespace
from ocsf_nft.ocsf.context import this_host
from ocsf_nft.ocsf.notices import lifecycle
from ocsf_nft.privileges import Capability
from ocsf_nft.service import fences
from ocsf_nft.service.accounts import Account
from ocsf_nft.service.outlets import Direct, Outlet, Outlets, outlets
from ocsf_nft.service.pipeline import JOURNAL_QUIET_SECONDS, QUIET_SECONDS, Counts, Pipeline
from ocsf_nft.service.reporter import Reporter
from ocsf_nft.service.upkeep import upkeep
from ocsf_nft.service.watched import Watched
from ocsf_nft.sources.journal import Journal
from ocsf_nft.sources.kmsg import Kmsg
from ocsf_nft.sources.nflog import Nflog
from ocsf_nft.sources.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ocsf_nft.config import Config, SandboxConfig
    from ocsf_nft.fence.state import Installed
    from ocsf_nft.service.fences import Fence
    from ocsf_nft.sources.base import Source

_HOST: Final = Namespace()
LogName: TypeAlias = Literal["kmsg", "journal"]
#: The kernel's log, which has a position, by the name that it is kept under.
_LOGS: Final[dict[LogName, type[Kmsg | Journal]]] = {"kmsg": Kmsg, "journal": Journal}


async def run(
    config: Config,
    stop: asyncio.Event,
    *,
    found: Sequence[Outlet] | None = None,
    ready: Callable[[], None] = lambda: None,
) -> Counts:
    """Watch the sandboxes of a configuration and deliver what they try, until ``stop``.

    ``found`` is where events go, in place of the configuration's sinks. ``ready`` is called when
    every fence stands and every source is read. When ``stop`` is set, what the kernel has logged
    by then is still kept and delivered, and the fences that this run installed are removed; what a
    sink does not take within some seconds waits in the store for the next run.

    A fence that others alter is put back, if that is not switched off; ``fallen`` of the result are
    those that were altered too often, and don't stand.

    Raises an OcsfNftError when a fence can't stand, a source can't be read or events can't be kept.
    The fences are left standing then: who is fenced stays fenced.
    """
    with _first_error():
        async with contextlib.AsyncExitStack() as stack:
            return await _Run(config, stop, stack).run(
                outlets(config.sinks) if found is None else found, ready
            )


class _Run:
    """One run, and what it holds open."""

    def __init__(
        self, config: Config, stop: asyncio.Event, stack: contextlib.AsyncExitStack
    ) -> None:
        self._config = config
        self._stop = stop
        self._stack = stack
        self._state = StateDirectory(config.state_dir)
        self._patience = Patience(stop)

    async def run(self, found: Sequence[Outlet], ready: Callable[[], None]) -> Counts:
        config, stack = self._config, self._stack
        for sandbox in config.sandbox:
            stack.enter_context(self._state.watching(sandbox.name))
        early = _Early()
        for sandbox in config.sandbox:
            await early.open(sandbox, self._state, stack)
        standing = [
            await asyncio.to_thread(fences.stand, each, self._state) for each in config.sandbox
        ]
        kept = await stack.enter_async_context(Outlets(found, self._store(), self._patience))
        reporter = Reporter(
            kept.keep,
            this_host(),
            severities=config.severities,
            threshold=config.finding.as_threshold(),
        )
        accounts = {
            sandbox.name: await stack.enter_async_context(self._account(sandbox, fence, reporter))
            for sandbox, fence in zip(config.sandbox, standing, strict=True)
        }
        feeds = await self._feeds(standing, accounts, kept.store, early)
        await reporter.emit(lifecycle(reporter.context(), activity="start", time_ns=time.time_ns()))
        watched = [
            Watched(sandbox, fence, self._state, reporter)
            for sandbox, fence in zip(config.sandbox, standing, strict=True)
        ]
        for each in watched:
            await each.announce()
            stack.push_async_callback(each.withdraw)
            await each.post()
        for account in accounts.values():
            await account.resume()
        pipeline = Pipeline(reporter, accounts, config.prefixes)
        ready()
        async with asyncio.TaskGroup() as group:
            watches = [group.create_task(each.watch()) for each in watched]
            watches += [group.create_task(each.keep()) for each in accounts.values()]
            watches.append(group.create_task(upkeep(kept, reporter)))
            pumps = [group.create_task(each.pump(pipeline, self._stop)) for each in feeds]
            # A fence that can't log leaves nothing to read, and still has to be watched.
            await self._stop.wait()
            await asyncio.gather(*pumps)
            for watch in watches:
                watch.cancel()
        for each in watched:
            await each.withdraw()
        pipeline.counts.fallen = [each.name for each in watched if each.has_fallen]
        for account in accounts.values():
            await account.close()
        for each, account in zip(watched, accounts.values(), strict=True):
            if await each.take_away():
                await account.forget()
                # Of a sandbox that is gone, nothing stays that nobody needs.
                kept.is_passing = self._store_path().parent == self._state.directory(each.name)
        await reporter.emit(lifecycle(reporter.context(), activity="stop", time_ns=time.time_ns()))
        pipeline.counts.events = reporter.events
        return pipeline.counts

    def _store_path(self) -> Path:
        return self._config.store.path or self._state.path / FILE

    def _store(self) -> Store:
        wanted = self._config.store
        return Store(
            self._store_path(),
            most_bytes=wanted.max_bytes,
            most_seconds=wanted.max_age,
            drops=wanted.when_full == "drop",
        )

    def _account(self, sandbox: SandboxConfig, fence: Fence, reporter: Reporter) -> Account:
        return Account(
            sandbox.name,
            Counters(fence.installed),
            self._state.directory(sandbox.name) / book.FILE,
            reporter,
            begun_ns=self._state.written_ns(sandbox.name) or time.time_ns(),
            patience=self._patience,
            source=_log_of(sandbox) if fence.installed.transport == "kmsg" else "",
        )

    async def _feeds(
        self,
        standing: Sequence[Fence],
        accounts: Mapping[str, Account],
        store: Store,
        early: _Early,
    ) -> list[_Feed]:
        """What is read, and for whom."""
        config, stack = self._config, self._stack
        feeds: list[_Feed] = []
        by_nflog: dict[Nflog, set[str | None]] = {}
        for sandbox, fence in zip(config.sandbox, standing, strict=True):
            installed = fence.installed
            if installed.transport == "nflog":
                places = [installed.namespace]
                if installed.spec.guard_device is not None:
                    places.append(_HOST)
                for place in places:
                    source = await early.take(place, installed.spec.group, stack)
                    by_nflog.setdefault(source, set()).add(sandbox.name)
            elif installed.transport == "kmsg":
                # One reader each: each goes on from where its own account was left.
                reader: Source = _LOGS[_log_of(sandbox)](
                    frozenset({sandbox.name}), accounts[sandbox.name].position
                )
                opened = await stack.enter_async_context(reader)
                feeds.append(_Feed(opened, frozenset({sandbox.name})))
        if config.host_log is not None:
            position = await store.position(config.host_log)
            reader = _LOGS[config.host_log](frozenset(), position, foreign=config.prefixes)
            opened = await stack.enter_async_context(reader)
            feeds.append(_Feed(opened, frozenset({None}), name=config.host_log))
        feeds += [_Feed(source, frozenset(names)) for source, names in by_nflog.items()]
        return feeds


@dataclass(frozen=True, slots=True)
class _Feed:
    """A source, the sandboxes whose records it can have (None: no sandbox's), and its name."""

    source: Source
    sandboxes: frozenset[str | None]
    name: str = ""

    async def pump(self, pipeline: Pipeline, stop: asyncio.Event) -> None:
        is_journal = isinstance(self.source, Journal)
        await pipeline.pump(
            self.source,
            stop,
            self.sandboxes,
            quiet_seconds=JOURNAL_QUIET_SECONDS if is_journal else QUIET_SECONDS,
            name=self.name,
        )


def capabilities(config: Config) -> frozenset[Capability]:
    """What :func:`run` needs for as long as it runs.

    Where a fence stands that a run finds, and how it logs, is on record.
    """
    state = StateDirectory(config.state_dir)
    needed: set[Capability] = set()
    if config.host_log == "kmsg":
        needed.add(Capability.SYSLOG)  # /dev/kmsg where dmesg_restrict=1
    for sandbox in config.sandbox:
        needed.add(Capability.NET_ADMIN)  # binding NFLOG, listing and renewing the fence
        found = None if sandbox.install else _on_record(sandbox.name, state)
        namespace = sandbox.namespace or (found.namespace if found else _HOST)
        if namespace != _HOST:
            needed.add(Capability.SYS_ADMIN)  # setns(2) into another namespace
            # /proc/PID/ns of another user's process: where it is, and how its users are numbered
            needed.add(Capability.SYS_PTRACE)
        transport = found.transport if found else fences.wanted_transport(sandbox)
        if transport != "nflog":
            needed.add(Capability.SYSLOG)
    return frozenset(needed)


def _on_record(sandbox: str, state: StateDirectory) -> Installed | None:
    """What is on record for a sandbox; None where that can't be read, which the run tells."""
    try:
        return state.read(sandbox)
    except FenceError:
        return None


async def replay(paths: Sequence[Path], outlet: Outlet, stop: asyncio.Event) -> Counts:
    """Deliver what files hold; no fence is looked at, nothing is stored. Raises an OcsfNftError.

    Nobody knows which machine wrote them, so the events name no device.
    """
    async with Direct(outlet) as opened, Replay(paths) as source:
        reporter = Reporter(opened.keep, host=None)
        pipeline = Pipeline(reporter, {})
        await pipeline.pump(source, stop)
        pipeline.counts.events = reporter.events
        return pipeline.counts


def _log_of(sandbox: SandboxConfig) -> LogName:
    return "journal" if sandbox.source == "journal" else "kmsg"


class _Early:
    """NFLOG sources that are opened before their fence, so that its first record is not missed.

    One that can't be opened must not keep the fence from standing: its error waits until the
    fence stands and turns out to need it.
    """

    def __init__(self) -> None:
        self._opened: dict[tuple[str, int], Nflog | OcsfNftError] = {}

    async def open(
        self, sandbox: SandboxConfig, state: StateDirectory, stack: contextlib.AsyncExitStack
    ) -> None:
        if fences.wanted_transport(sandbox) not in {None, "nflog"}:
            return
        on_record = None if sandbox.install else state.read(sandbox.name)
        namespace = sandbox.namespace or (on_record.namespace if on_record else _HOST)
        group = on_record.spec.group if on_record else sandbox.group
        await self._open(namespace, group, stack)
        if sandbox.host_guard is not None:
            await self._open(_HOST, group, stack)

    async def take(
        self, namespace: Namespace, group: int, stack: contextlib.AsyncExitStack
    ) -> Nflog:
        await self._open(namespace, group, stack)
        source = self._opened[namespace.identity(), group]
        if isinstance(source, OcsfNftError):
            raise source
        return source

    async def _open(
        self, namespace: Namespace, group: int, stack: contextlib.AsyncExitStack
    ) -> None:
        key = (namespace.identity(), group)
        if key in self._opened:
            return
        try:
            self._opened[key] = await stack.enter_async_context(Nflog(namespace, group))
        except OcsfNftError as error:
            self._opened[key] = error


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
