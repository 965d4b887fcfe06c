"""Start of the watch over one sandbox: its fence first, then its account and its log sources."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ocsf_nft.delivery.name_resolver import require_library
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence import host_end
from ocsf_nft.fence.counters import Counters
from ocsf_nft.netns import HOST
from ocsf_nft.service import fences, log_feeds, log_groups
from ocsf_nft.service.account_loop import AccountLoop
from ocsf_nft.service.bypass_watch import BypassWatch
from ocsf_nft.service.fence_monitor import FenceMonitor
from ocsf_nft.service.sandbox_gate import SandboxGate
from ocsf_nft.service.sandbox_names import SandboxNames
from ocsf_nft.service.shielded import run_in_pool
from ocsf_nft.service.watched_sandbox import WatchedSandbox
from ocsf_nft.sources.nflog import GroupTakenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor

    from ocsf_nft.attribution.fallback_chain import FallbackChain
    from ocsf_nft.attribution.socket_lookups import AttachedNamespace
    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.fence.gate import Gate
    from ocsf_nft.fence.guard_thread import GuardThread
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.namespace_watch import NamespaceWatch
    from ocsf_nft.netns import Namespace
    from ocsf_nft.ocsf.fence_state_events import PolicyChange
    from ocsf_nft.service.accounts import Accounts
    from ocsf_nft.service.event_rendering import Reporter
    from ocsf_nft.service.fences import Fence
    from ocsf_nft.service.log_groups import ReplacedGroup
    from ocsf_nft.service.nflog_feeds import NflogFeed, NflogFeeds
    from ocsf_nft.service.pipeline import Pipeline
    from ocsf_nft.service.shared_names import SharedNames
    from ocsf_nft.state.state_store import StateStore


class _Opened(NamedTuple):
    """NFLOG source that is opened before its fence is active, or the error; ``stack`` closes it."""

    found: NflogFeed | OcsfNftError
    stack: contextlib.AsyncExitStack


#: By namespace and group.
_Feeds: TypeAlias = dict[tuple[str, int], _Opened]


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceParts:
    """Parts of a service for the fences of all its sandboxes."""

    state: StateDirectory
    chain: FallbackChain
    nflog: NflogFeeds
    accounts: Accounts
    pool: Executor


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchParts:
    """Parts of a service to watch all its sandboxes."""

    fences: FenceParts
    store: StateStore
    reporter: Reporter
    pipeline: Pipeline
    guards: GuardThread
    #: None if the system has no last gate.
    gate: Gate | None
    namespaces: NamespaceWatch
    names: SharedNames
    #: Limits of the restores that are prepared, and of the readings in memory, at the same time.
    preparing: asyncio.Semaphore
    slots: asyncio.Semaphore


@dataclass(frozen=True, slots=True, kw_only=True)
class FencedSandbox:
    """Sandbox with an active fence, and without a reader of its log yet."""

    config: SandboxConfig
    fence: Fence
    #: Namespace with the senders to find; None for a VM.
    attached: AttachedNamespace | None
    feeds: tuple[NflogFeed, ...]
    #: NFLOG group that another program held; None normally.
    replaced_group: ReplacedGroup | None
    #: Closes all of it.
    stack: contextlib.AsyncExitStack


async def activate(
    parts: FenceParts,
    sandbox: SandboxConfig,
    on_active: Callable[[Fence], None],
    identity: str | None = None,
) -> FencedSandbox:
    """Activate the fence of a sandbox, after opening all that must not miss its first packet.

    ``on_active`` is called with the active fence, also if an error follows. ``identity`` is that of
    the only configured namespace to fence; None for the present one. Raises the errors of
    :func:`fences.activate`, and an OcsfNftError if a log source can't be opened, or if the library
    to resolve host names is missing.
    """
    async with contextlib.AsyncExitStack() as stack:
        if sandbox.names:
            require_library()
        record = None if sandbox.install else parts.state.read(sandbox.name)
        configured = sandbox.namespace
        if configured is not None:  # all that follows is about the same namespace
            configured = configured.pinned(identity)
        namespace = configured or (HOST if record is None else record.namespace)
        attached = None
        if sandbox.profile != "tap":  # this kernel does not see a VM's processes
            # Before anything is logged, so that the capture sees the call of every record.
            permissive = sandbox.permissive if record is None else record.spec.is_permissive
            attached = await parts.chain.attach(namespace, is_permissive=permissive)
            stack.push_async_callback(parts.chain.detach, attached)
        group = sandbox.group if record is None else record.spec.group
        parts.accounts.expect(sandbox.name)
        stack.callback(parts.accounts.drop, sandbox.name)
        guarded = await run_in_pool(parts.pool, partial(_is_guarded, sandbox, namespace, record))
        places = (namespace, HOST) if guarded else (namespace,)
        early, replaced = await _open_free_group(parts, sandbox, places, group, stack)
        other_group = None if replaced is None else replaced.group
        activate_fence = partial(
            fences.activate, sandbox, parts.state, other_group, namespace=configured
        )
        fence = await run_in_pool(parts.pool, activate_fence)
        on_active(fence)
        feeds = []
        if fence.installed.transport == "nflog":
            namespaces = [fence.installed.namespace]
            if fence.installed.spec.guard_device is not None:
                namespaces.append(HOST)
            for each in namespaces:
                key = each.identity(), fence.installed.spec.group
                found = early[key].found if key in early else None
                if isinstance(found, OcsfNftError):
                    if each is HOST and fence.installed.spec.finds_guard:
                        # The guard was not asked for: its counters have the packets.
                        note = f"the packets of its guard are counted and not logged: {found}"
                        fence = replace(fence, guard_note=note)
                        continue
                    raise found
                if found is None:  # the fence is in another namespace than was configured
                    joined = parts.nflog.joined(sandbox.name, each, key[1])
                    found = await stack.enter_async_context(joined)
                feeds.append(found)
        # The fence has another transport. Or the namespace was replaced by another one meanwhile:
        # a socket would keep it.
        await _close(each for each in early.values() if each.found not in feeds)
        return FencedSandbox(
            config=sandbox,
            fence=fence,
            attached=attached,
            feeds=tuple(feeds),
            replaced_group=replaced,
            stack=stack.pop_all(),
        )


def _is_guarded(
    sandbox: SandboxConfig, namespace: Namespace, record: InstalledFence | None
) -> bool:
    """Return whether the fence of a sandbox has, or will probably have, a guard on the host."""
    if record is not None:
        return record.spec.guard_device is not None
    if not sandbox.finds_guard:
        return sandbox.guard_device is not None
    try:
        return host_end.has_end(namespace)
    except OcsfNftError:  # the installation that follows reports it
        return False


async def _open_free_group(
    parts: FenceParts,
    sandbox: SandboxConfig,
    namespaces: tuple[Namespace, ...],
    group: int,
    stack: contextlib.AsyncExitStack,
) -> tuple[_Feeds, ReplacedGroup | None]:
    """Open the NFLOG sources of a fence as :func:`_open_nflog`, of another group if it is taken.

    If all groups that are tried are taken, the result has the error.
    """
    if fences.requested_transport(sandbox) not in {None, "nflog"}:
        return {}, None
    first = await _open_nflog(parts, sandbox, namespaces, group, stack)
    taken = _first_taken(first)
    if taken is None or not (sandbox.install or sandbox.self_heal):
        return first, None
    process = await asyncio.to_thread(log_groups.holder_of, namespaces[0], taken)
    for _ in range(log_groups.ATTEMPTS):
        other = await asyncio.to_thread(log_groups.other_group, namespaces)
        found = await _open_nflog(parts, sandbox, namespaces, other, stack)
        if _first_taken(found) is None:
            await _close(first.values())
            replaced = log_groups.ReplacedGroup(taken=group, group=other, process=process)
            return found, replaced
        await _close(found.values())
    return first, None


def _first_taken(found: _Feeds) -> GroupTakenError | None:
    errors = (each.found for each in found.values() if isinstance(each.found, GroupTakenError))
    return next(errors, None)


async def _close(opened: Iterable[_Opened]) -> None:
    for each in opened:
        await each.stack.aclose()


async def _open_nflog(
    parts: FenceParts,
    sandbox: SandboxConfig,
    namespaces: tuple[Namespace, ...],
    group: int,
    stack: contextlib.AsyncExitStack,
) -> _Feeds:
    """Open the NFLOG sources of a fence before it is active.

    An error counts only if the fence uses the source.
    """
    found: _Feeds = {}
    for each in namespaces:
        key = each.identity(), group
        own = await stack.enter_async_context(contextlib.AsyncExitStack())
        try:
            joined = parts.nflog.joined(sandbox.name, each, group)
            found[key] = _Opened(await own.enter_async_context(joined), own)
        except OcsfNftError as error:
            found[key] = _Opened(error, own)
    return found


async def watch(
    parts: WatchParts, fenced: FencedSandbox, added: PolicyChange | None = None
) -> WatchedSandbox:
    """Open the account and the log sources of a fenced sandbox, and start its tamper guard.

    ``added`` is the request that has added the sandbox; None if the configuration file has it. Its
    records are read only when the result is watched. The result closes what ``fenced`` has. Raises
    an OcsfNftError if the sandbox can't be watched. Then all is closed, but the fence stays.
    """
    async with fenced.stack as stack:
        config, fence = fenced.config, fenced.fence
        account = await stack.enter_async_context(_account(parts, fenced))
        stack.callback(parts.fences.accounts.drop, config.name, account)
        parts.fences.accounts.set(config.name, account)
        logs = []
        if fence.installed.transport == "kmsg":
            logs.append(log_feeds.of_sandbox(config, account.position))
            await stack.enter_async_context(logs[0].source)
        monitor = FenceMonitor(
            config,
            fence,
            parts.fences.state,
            parts.reporter,
            parts.guards,
            parts.preparing,
            parts.fences.chain.described,
            SandboxGate(config.name, parts.gate, parts.fences.state, parts.fences.pool),
        )
        names = SandboxNames(config.name, parts.names, fence.installed.spec.resolved)
        stack.callback(names.close)
        names.follow(config)
        is_vm = fence.installed.spec.tap is not None
        watched = WatchedSandbox(
            config=config,
            identity=fence.installed.identity,
            monitor=monitor,
            account=account,
            names=names,
            bypass=None
            if is_vm and parts.gate is None
            else BypassWatch(monitor, parts.reporter, parts.fences.pool, compares=not is_vm),
            attached=fenced.attached,
            nflog=fenced.feeds,
            logs=logs,
            parts=parts,
        )
        await monitor.reports.announce(added)
        if fenced.replaced_group is not None:
            await log_groups.report(parts.reporter, config.name, fenced.replaced_group)
        stack.push_async_callback(monitor.stop)
        await monitor.start()
        account.counters.enter_beside(monitor.namespace_socket)
        await account.resume()
        watched.stack = stack.pop_all()
        return watched


def _account(parts: WatchParts, fenced: FencedSandbox) -> AccountLoop:
    config, installed, state = fenced.config, fenced.fence.installed, parts.fences.state
    return AccountLoop(
        config.name,
        Counters(installed),
        parts.store,
        state,
        parts.reporter,
        begun_ns=state.written_ns(config.name) or time.time_ns(),
        fallback_chain=parts.fences.chain,
        attached=fenced.attached,
        pool=parts.fences.pool,
        slots=parts.slots,
        is_logged=installed.transport != "none" and installed.degraded is None,
        source=log_feeds.log_name(config) if installed.transport == "kmsg" else "",
    )
