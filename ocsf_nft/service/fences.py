"""The fences of a run: stand them up or find them standing, watch over them, take them away."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from ocsf_nft.errors import AbsentError, FenceError, OcsfNftError
from ocsf_nft.fence import facts, installer
from ocsf_nft.fence.watch import Watch
from ocsf_nft.netns import Namespace
from ocsf_nft.ocsf.context import Context, Host, Proxy, RuleFacts
from ocsf_nft.ocsf.notices import FenceState, fence_state

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.fence.spec import LogTransport
    from ocsf_nft.fence.state import Installed, StateDirectory
    from ocsf_nft.ocsf.events import DeviceConfigStateChange
    from ocsf_nft.service.pipeline import Pipeline

T = TypeVar("T")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """A fence that stands. ``is_ours``: this run put it where none stood, and takes it away."""

    installed: Installed
    before: FenceState
    is_ours: bool
    reason: str | None = None

    @property
    def state(self) -> FenceState:
        """How it stands."""
        return FenceState.STANDING if self.reason is None else FenceState.DEGRADED


def stand(sandbox: SandboxConfig, state: StateDirectory) -> Fence:
    """Install a sandbox's fence, or find it as it was installed; blocks for milliseconds.

    Raises what :func:`installer.install` does, and AbsentError when there is no fence and
    installing one was not asked for: a run without a fence would watch nothing and say nothing.
    """
    if sandbox.install:
        namespace = sandbox.namespace or Namespace()
        stood = installer.stands(namespace)
        installed = installer.install(sandbox.spec(), namespace, state, wanted_transport(sandbox))
        return Fence(
            installed=installed,
            before=FenceState.STANDING if stood else FenceState.ABSENT,
            is_ours=not stood,
            reason=installed.degraded,
        )
    found = installer.verify(sandbox.name, state, sandbox.namespace)
    on_record = state.read(sandbox.name)
    if found.verdict == "absent":
        raise AbsentError(
            f"no fence of sandbox {sandbox.name} stands: `ocsf-nft install` one, or run --install"
        )
    if on_record is None:
        raise FenceError(f"{found.difference}: install it again, or name the right --state-dir")
    reason = on_record.degraded
    if found.verdict == "differs":
        reason = f"it is not as it was installed: {found.difference}"
    return Fence(installed=on_record, before=FenceState.STANDING, is_ours=False, reason=reason)


def wanted_transport(sandbox: SandboxConfig) -> LogTransport | None:
    """How the fence must log so that the wanted source can read it; None for the best."""
    if sandbox.source == "auto" or sandbox.log_transport is not None:
        return sandbox.log_transport
    return "nflog" if sandbox.source == "nflog" else "kmsg"


def take_away(fence: Fence, state: StateDirectory, host: Host | None) -> DeviceConfigStateChange:
    """Remove a fence that this run installed, and tell of it; blocks for milliseconds.

    Raises what :func:`installer.remove` does, but for a fence that is gone already: that is told.
    """
    spec = fence.installed.spec
    try:
        verdict = installer.verify(spec.sandbox, state, fence.installed.namespace).verdict
        installer.remove(spec.sandbox, state, fence.installed.namespace)
    except AbsentError as error:
        gone = replace(fence, before=FenceState.ABSENT)
        return state_event(gone, host, after=FenceState.ABSENT, reason=str(error))
    before = FenceState.ABSENT if verdict == "absent" else fence.state
    return state_event(replace(fence, before=before), host, after=FenceState.ABSENT)


def context(installed: Installed, host: Host | None) -> Context:
    """What a mapper knows about a sandbox."""
    return Context(
        host=host,
        proxies=tuple(
            Proxy(address=proxy.address, port=proxy.port) for proxy in installed.spec.proxies
        ),
        uplinks=frozenset(installed.around.uplinks),
        rules={
            fact.name: RuleFacts(
                family=fact.family,
                table=fact.table,
                chain=fact.chain,
                handle=fact.handle,
                condition=fact.text,
            )
            for fact in facts.logging_rules(installed.listings.values())
        },
    )


def gone_event(fence: Fence, host: Host | None) -> DeviceConfigStateChange:
    """The event of a fence that was removed, now."""
    return state_event(replace(fence, before=fence.state), host, after=FenceState.ABSENT)


def state_event(
    fence: Fence, host: Host | None, *, after: FenceState, reason: str | None = None
) -> DeviceConfigStateChange:
    """The event of what became of a fence, now."""
    installed = fence.installed
    return fence_state(
        context(installed, host),
        sandbox=installed.spec.sandbox,
        before=fence.before,
        after=after,
        time_ns=time.time_ns(),
        tables=sorted(installed.listings),
        transport=installed.transport,
        reason=reason or fence.reason,
    )


async def watch(
    sandbox: SandboxConfig, fence: Fence, state: StateDirectory, pipeline: Pipeline
) -> None:
    """Keep a fence as it was installed, and cover interfaces that appear later.

    With ``install`` it is renewed; without, it is reported that it is not as it was. A failure is
    reported once, and the watch goes on.
    """
    seen = _Seen(fence, told=fence.reason)
    async with Watch(fence.installed.namespace) as surroundings:
        async for _ in surroundings.changes():
            seen = await _to_its_end(_look(sandbox, seen, state, pipeline))


@dataclass(frozen=True, slots=True)
class _Seen:
    """How a fence was at the last look, and what was told of it."""

    fence: Fence
    told: str | None


async def _look(
    sandbox: SandboxConfig, seen: _Seen, state: StateDirectory, pipeline: Pipeline
) -> _Seen:
    """Look at a fence and tell what became of it since it was last seen."""
    fence = seen.fence
    try:
        now = await asyncio.to_thread(stand, sandbox, state)
    except OcsfNftError as error:
        if seen.told != str(error):
            after = FenceState.ABSENT if isinstance(error, AbsentError) else FenceState.DEGRADED
            await _tell(fence, pipeline, after=after, reason=str(error))
        return _Seen(fence, told=str(error))
    reason = now.reason
    if now.installed.around != fence.installed.around:
        reason = f"its links changed; fenced are: {', '.join(now.installed.around.links)}"
    elif now.installed != fence.installed:
        reason = "it was altered or gone, and has been put back"
    if reason != seen.told or now.installed != fence.installed:
        await _tell(now, pipeline, after=now.state, reason=now.reason or reason)
        pipeline.know(sandbox.name, context(now.installed, pipeline.host))
        return _Seen(now, told=now.reason)
    return _Seen(now, told=seen.told)


async def _to_its_end(look: Coroutine[Any, Any, T]) -> T:
    """Let a look that has begun end, and tell what it saw, before its watch is cancelled.

    Its thread can't be cancelled, and may be putting a fence up that its run, told to stop, is
    about to take away.
    """
    task = asyncio.ensure_future(look)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


async def _tell(fence: Fence, pipeline: Pipeline, *, after: FenceState, reason: str | None) -> None:
    name = fence.installed.spec.sandbox
    _log.warning("fence changed", sandbox=name, state=after.value, reason=reason)
    await pipeline.emit(state_event(fence, pipeline.host, after=after, reason=reason))
