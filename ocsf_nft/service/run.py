"""Run: fence or find fenced, read, map, deliver, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

from ocsf_nft.accounting.book import FILE
from ocsf_nft.errors import FenceError, OcsfNftError
from ocsf_nft.fence.counters import Counters
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.netns import Namespace
from ocsf_nft.ocsf.context import this_host
from ocsf_nft.ocsf.notices import lifecycle
from ocsf_nft.privileges import Capability
from ocsf_nft.service import fences
from ocsf_nft.service.accounts import Account
from ocsf_nft.service.pipeline import JOURNAL_QUIET_SECONDS, QUIET_SECONDS, Counts, Pipeline
from ocsf_nft.service.reporter import Reporter
from ocsf_nft.service.watched import Watched
from ocsf_nft.sources.journal import Journal
from ocsf_nft.sources.kmsg import Kmsg
from ocsf_nft.sources.nflog import Nflog
from ocsf_nft.sources.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ocsf_nft.config import Config, SandboxConfig
    from ocsf_nft.delivery.sinks.base import Sink
    from ocsf_nft.fence.state import Installed
    from ocsf_nft.service.fences import Fence
    from ocsf_nft.sources.base import Source

_HOST: Final = Namespace()


async def run(
    config: Config,
    sink: Sink,
    stop: asyncio.Event,
    *,
    ready: Callable[[], None] = lambda: None,
) -> Counts:
    """Watch the sandboxes of a configuration and deliver what they try, until ``stop``.

    ``ready`` is called when every fence stands and every source is read. When ``stop`` is set,
    what the kernel has logged by then is still delivered, and the fences that this run installed
    are removed.

    A fence that others alter is put back, if that is not switched off; ``fallen`` of the result are
    those that were altered too often, and don't stand.

    Raises an OcsfNftError when a fence can't stand, a source can't be read or the sink fails.
    The fences are left standing then: who is fenced stays fenced.
    """
    state = StateDirectory(config.state_dir)
    async with contextlib.AsyncExitStack() as stack:
        for sandbox in config.sandbox:
            stack.enter_context(state.watching(sandbox.name))
        early = _Early()
        for sandbox in config.sandbox:
            await early.open(sandbox, state, stack)
        standing = [await asyncio.to_thread(fences.stand, each, state) for each in config.sandbox]
        reporter = Reporter(
            await stack.enter_async_context(sink),
            this_host(),
            severities=config.severities,
            threshold=config.finding.as_threshold(),
        )
        sources = await _sources(config, standing, early, stack)
        await reporter.emit(lifecycle(reporter.context(), activity="start", time_ns=time.time_ns()))
        watched = [
            Watched(sandbox, fence, state, reporter)
            for sandbox, fence in zip(config.sandbox, standing, strict=True)
        ]
        for each in watched:
            await each.announce()
            stack.push_async_callback(each.withdraw)
            await each.post()
        accounts = {
            fence.installed.spec.sandbox: await stack.enter_async_context(
                _account(fence.installed, state, reporter, is_journal=sandbox.source == "journal")
            )
            for sandbox, fence in zip(config.sandbox, standing, strict=True)
        }
        pipeline = Pipeline(reporter, accounts, config.prefixes)
        ready()
        with _first_error():
            async with asyncio.TaskGroup() as group:
                watches = [group.create_task(each.watch()) for each in watched]
                watches += [group.create_task(each.keep()) for each in accounts.values()]
                pumps = [
                    group.create_task(
                        pipeline.pump(
                            source, stop, frozenset(sandboxes), quiet_seconds=_quiet_seconds(source)
                        )
                    )
                    for source, sandboxes in sources.items()
                ]
                # A fence that can't log leaves nothing to read, and still has to be watched.
                await stop.wait()
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
        await reporter.emit(lifecycle(reporter.context(), activity="stop", time_ns=time.time_ns()))
        pipeline.counts.events = reporter.events
        return pipeline.counts


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


async def replay(paths: Sequence[Path], sink: Sink, stop: asyncio.Event) -> Counts:
    """Deliver what files hold; no fence is looked at. Raises an OcsfNftError.

    Nobody knows which machine wrote them, so the events name no device.
    """
    async with sink as opened, Replay(paths) as source:
        reporter = Reporter(opened, host=None)
        pipeline = Pipeline(reporter, {})
        await pipeline.pump(source, stop)
        pipeline.counts.events = reporter.events
        return pipeline.counts


def _quiet_seconds(source: Source) -> float:
    return JOURNAL_QUIET_SECONDS if isinstance(source, Journal) else QUIET_SECONDS


def _account(
    installed: Installed, state: StateDirectory, reporter: Reporter, *, is_journal: bool
) -> Account:
    sandbox = installed.spec.sandbox
    return Account(
        sandbox,
        Counters(installed),
        state.directory(sandbox) / FILE,
        reporter,
        begun_ns=state.written_ns(sandbox) or time.time_ns(),
        is_journal=is_journal,
    )


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


async def _sources(
    config: Config,
    standing: Sequence[Fence],
    early: _Early,
    stack: contextlib.AsyncExitStack,
) -> dict[Source, set[str | None]]:
    """The sources to read, and the sandboxes whose records each can have (None: no sandbox's)."""
    found: dict[Source, set[str | None]] = {}
    in_kernel_log: dict[str, set[str | None]] = {"kmsg": set(), "journal": set()}
    if config.host_log is not None:
        in_kernel_log[config.host_log].add(None)
    for sandbox, fence in zip(config.sandbox, standing, strict=True):
        installed = fence.installed
        if installed.transport == "nflog":
            places = [installed.namespace]
            if installed.spec.guard_device is not None:
                places.append(_HOST)
            for place in places:
                source = await early.take(place, installed.spec.group, stack)
                found.setdefault(source, set()).add(sandbox.name)
        elif installed.transport == "kmsg":
            in_kernel_log["journal" if sandbox.source == "journal" else "kmsg"].add(sandbox.name)
    for log, names in in_kernel_log.items():
        if names:
            sandboxes = frozenset(name for name in names if name is not None)
            foreign = config.prefixes if None in names else None
            reader = (Journal if log == "journal" else Kmsg)(sandboxes, foreign=foreign)
            found[await stack.enter_async_context(reader)] = names
    return found


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
