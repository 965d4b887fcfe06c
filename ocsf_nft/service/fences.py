"""The fences of a run: stand them up or find them standing, watch over them, take them away."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft.errors import AbsentError, FenceError, OcsfNftError, SourceError
from ocsf_nft.fence import facts, installer
from ocsf_nft.fence.watch import Watch
from ocsf_nft.netns import Namespace
from ocsf_nft.ocsf.context import Context, Host, Proxy, RuleFacts
from ocsf_nft.ocsf.notices import FenceState, fence_state
from ocsf_nft.service.to_its_end import to_its_end

if TYPE_CHECKING:
    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.fence.spec import LogTransport
    from ocsf_nft.fence.state import Installed, StateDirectory
    from ocsf_nft.ocsf.events import DeviceConfigStateChange
    from ocsf_nft.process import Container
    from ocsf_nft.service.reporter import Reporter

_log = structlog.get_logger()

_GONE_ALREADY: Final = "somebody else had removed it before this run did"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """A fence, how it stands, and why it isn't ``STANDING`` where it isn't.

    ``is_ours``: this run put it where none stood, and takes it away.
    """

    installed: Installed
    state: FenceState
    is_ours: bool
    reason: str | None = None


def stand(sandbox: SandboxConfig, state: StateDirectory) -> Fence:
    """Install a sandbox's fence, or find it as it was installed; blocks for milliseconds.

    Raises what :func:`installer.install` does, and AbsentError when there is no fence and
    installing one was not asked for: a run without a fence would watch nothing and say nothing.
    """
    if sandbox.install:
        namespace = sandbox.namespace or Namespace()
        stood = installer.stands(namespace, sandbox.device)
        installed = installer.install(sandbox.spec(), namespace, state, wanted_transport(sandbox))
        return Fence(
            installed=installed,
            state=_state(installed),
            is_ours=not stood,
            reason=installed.degraded,
        )
    found = installer.verify(sandbox.name, state, sandbox.namespace, sandbox.device)
    if found.verdict == "absent":
        raise AbsentError(
            f"no fence of sandbox {sandbox.name} stands: `ocsf-nft install` one, or run --install"
        )
    if found.installed is None:
        raise FenceError(f"{found.difference}: install it again, or name the right --state-dir")
    if found.verdict == "differs":
        return Fence(
            installed=found.installed,
            state=FenceState.ALTERED,
            is_ours=False,
            reason=f"it is not as it was installed: {found.difference}",
        )
    return Fence(
        installed=found.installed,
        state=_state(found.installed),
        is_ours=False,
        reason=found.installed.degraded,
    )


def wanted_transport(sandbox: SandboxConfig) -> LogTransport | None:
    """How the fence must log so that the wanted source can read it; None for the best."""
    if sandbox.source == "auto" or sandbox.log_transport is not None:
        return sandbox.log_transport
    return "nflog" if sandbox.source == "nflog" else "kmsg"


def context(installed: Installed, host: Host | None, container: Container | None = None) -> Context:
    """What a mapper knows about a sandbox; ``container`` is what it is, if it is one."""
    return Context(
        host=host,
        container=container,
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


def state_event(
    installed: Installed,
    host: Host | None,
    *,
    before: FenceState,
    after: FenceState,
    reason: str | None = None,
) -> DeviceConfigStateChange:
    """The event of what became of a fence, now. ``before`` is what was last told of it."""
    return fence_state(
        context(installed, host),
        sandbox=installed.spec.sandbox,
        before=before,
        after=after,
        time_ns=time.time_ns(),
        tables=sorted(installed.listings),
        transport=installed.transport,
        reason=reason,
    )


def first_event(fence: Fence, host: Host | None) -> DeviceConfigStateChange:
    """The event of a fence that was put up, or found, now."""
    return state_event(
        fence.installed,
        host,
        before=FenceState.ABSENT if fence.is_ours else FenceState.STANDING,
        after=fence.state,
        reason=fence.reason,
    )


class Watched:
    """A fence under watch, and what was last told of it: each event begins where one ended."""

    def __init__(
        self, sandbox: SandboxConfig, fence: Fence, state: StateDirectory, reporter: Reporter
    ) -> None:
        self._sandbox = sandbox
        self._fence = fence
        self._state = state
        self._reporter = reporter
        self._installed = fence.installed
        self._told = (fence.state, fence.reason)

    async def announce(self) -> None:
        """Tell of a fence that this run put up, or that is not as it should be."""
        fence, name = self._fence, self._sandbox.name
        self._know(fence.installed)
        if fence.is_ours or fence.reason is not None:
            await self._reporter.emit(first_event(fence, self._reporter.host))
        if fence.reason is not None:
            _log.error("fence " + fence.state.value.lower(), sandbox=name, reason=fence.reason)
        elif fence.installed.transport == "none":
            _log.warning("fence without log rules, as asked for", sandbox=name)

    async def watch(self) -> None:
        """Keep the fence as it was installed, and cover interfaces that appear later.

        With ``install`` it is renewed; without, it is reported that it is not as it was. A failure
        is reported once, and the watch goes on. Raises SourceError when the fence stands in another
        namespace by the same name now.
        """
        async with Watch(self._installed.namespace) as surroundings:
            async for _ in surroundings.changes():
                await to_its_end(self._look())

    async def take_away(self) -> bool:
        """Remove the fence if this run put it up, and tell of it; whether it did.

        Raises what :func:`installer.remove` does, but for a fence that is gone already: that is
        told.
        """
        if self._fence.is_ours:
            was_there = await asyncio.to_thread(_remove, self._installed, self._state)
            await self._emit(FenceState.ABSENT, None if was_there else _GONE_ALREADY)
        return self._fence.is_ours

    async def _look(self) -> None:
        """Look at the fence, and tell what became of it since it was last told of."""
        try:
            now = await asyncio.to_thread(stand, self._sandbox, self._state)
        except OcsfNftError as error:
            after = FenceState.ABSENT if isinstance(error, AbsentError) else FenceState.ALTERED
            if self._told != (after, str(error)):
                await self._tell(after, str(error))
                self._told = (after, str(error))
            return
        news = _news(self._installed, now.installed)
        is_elsewhere = now.installed.identity != self._installed.identity
        self._installed = now.installed
        if news is not None or self._told != (now.state, now.reason):
            self._know(now.installed)
            await self._tell(now.state, now.reason or news)
            self._told = (now.state, now.reason)
        if is_elsewhere:
            raise SourceError(
                f"the namespace of sandbox {self._sandbox.name} was made anew, and what is logged "
                "and counted there is not read by this run: start it again"
            )

    def _know(self, installed: Installed) -> None:
        known = context(installed, self._reporter.host, self._sandbox.is_container)
        self._reporter.know(self._sandbox.name, known)

    async def _tell(self, after: FenceState, reason: str | None) -> None:
        # The event first: standard error may be a pipe that nobody reads.
        await self._emit(after, reason)
        _log.warning("fence changed", sandbox=self._sandbox.name, state=after.value, reason=reason)

    async def _emit(self, after: FenceState, reason: str | None) -> None:
        before, _ = self._told
        host = self._reporter.host
        await self._reporter.emit(
            state_event(self._installed, host, before=before, after=after, reason=reason)
        )


def _state(installed: Installed) -> FenceState:
    return FenceState.STANDING if installed.degraded is None else FenceState.DEGRADED


def _news(seen: Installed, now: Installed) -> str | None:
    """What is to be told of a fence that was renewed; None when it was not."""
    if now.around != seen.around:
        return f"its links changed; fenced are: {', '.join(now.around.links)}"
    return None if now == seen else "it was altered or gone, and has been put back"


def _remove(installed: Installed, state: StateDirectory) -> bool:
    """Remove a fence; whether there was one to remove."""
    sandbox, namespace = installed.spec.sandbox, installed.namespace
    try:
        verdict = installer.verify(sandbox, state, namespace).verdict
        installer.remove(sandbox, state, namespace)
    except AbsentError:
        return False
    return verdict != "absent"
