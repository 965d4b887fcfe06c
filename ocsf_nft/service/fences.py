"""The fences of a run: stand them up or find them standing, watch over them, take them away."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from ocsf_nft.errors import AbsentError, FenceError, OcsfNftError
from ocsf_nft.fence import facts, installer
from ocsf_nft.fence.watch import LinkWatch
from ocsf_nft.netns import Namespace
from ocsf_nft.ocsf.context import Context, Host, Proxy, RuleFacts
from ocsf_nft.ocsf.notices import FenceState, fence_state

if TYPE_CHECKING:
    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.fence.spec import LogTransport
    from ocsf_nft.fence.state import Installed, StateDirectory
    from ocsf_nft.ocsf.events import DeviceConfigStateChange
    from ocsf_nft.service.pipeline import Pipeline

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
        stood = installer.verify(sandbox.name, state, namespace).verdict != "absent"
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
    if sandbox.source in {"kmsg", "journal"} and sandbox.log_transport is None:
        return "kmsg"
    return sandbox.log_transport


def take_away(fence: Fence, state: StateDirectory) -> None:
    """Remove a fence that this run installed; raises what :func:`installer.remove` does."""
    installer.remove(fence.installed.spec.sandbox, state, fence.installed.namespace)


def context(installed: Installed, host: Host) -> Context:
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


def gone_event(fence: Fence, host: Host) -> DeviceConfigStateChange:
    """The event of a fence that was removed, now."""
    return state_event(replace(fence, before=fence.state), host, after=FenceState.ABSENT)


def state_event(
    fence: Fence, host: Host, *, after: FenceState, reason: str | None = None
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


async def watch_links(
    sandbox: SandboxConfig, fence: Fence, state: StateDirectory, pipeline: Pipeline
) -> None:
    """Cover interfaces that appear later, for as long as this runs.

    With ``install`` the fence is replaced by one that covers them; without, it is reported that
    it doesn't. A failure is reported, and the watch goes on.
    """
    async with LinkWatch(fence.installed.namespace) as watch:
        async for _ in watch.changes():
            try:
                now = await asyncio.to_thread(stand, sandbox, state)
            except OcsfNftError as error:
                _log.error("fence not renewed", sandbox=sandbox.name, error=str(error))
                await pipeline.emit(
                    state_event(fence, pipeline.host, after=FenceState.DEGRADED, reason=str(error))
                )
                continue
            if now.installed == fence.installed and now.reason == fence.reason:
                continue
            links = ", ".join(now.installed.around.links)
            reason = now.reason or f"its links changed; fenced are: {links}"
            _log.warning("fence changed", sandbox=sandbox.name, reason=reason)
            await pipeline.emit(state_event(now, pipeline.host, after=now.state, reason=reason))
            pipeline.know(sandbox.name, context(now.installed, pipeline.host))
            fence = now
