"""The fences of a run: stand them up or find them standing, look at them, tell of them."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocsf_nft.errors import AbsentError, FenceError, OcsfNftError
from ocsf_nft.fence import installer, rule_lookup
from ocsf_nft.netns import Namespace
from ocsf_nft.ocsf.context import Context, Host, Proxy, RuleFacts
from ocsf_nft.ocsf.operational_events import FenceState, Tampering, fence_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.fence.installer import Verification
    from ocsf_nft.fence.spec import LogTransport
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.ocsf.events import DeviceConfigStateChange
    from ocsf_nft.process import Container


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """A fence, how it stands, and why it isn't ``STANDING`` where it isn't.

    ``is_ours``: this run put it where none stood, and takes it away; else ``before`` is how the one
    stood that was there. ``tampering`` is what was found to have been done to the same fence, and
    is put right.
    """

    installed: InstalledFence
    state: FenceState
    is_ours: bool
    before: FenceState = FenceState.STANDING
    reason: str | None = None
    tampering: Tampering | None = None


def activate(sandbox: SandboxConfig, state: StateDirectory) -> Fence:
    """Install a sandbox's fence, or find it as it was installed; blocks for milliseconds.

    One that is on record and was altered or gone is put back, unless the sandbox says otherwise.
    Raises what :func:`installer.install` does, and AbsentError when there is none on record and
    installing one was not asked for: a run without a fence would watch nothing and say nothing.
    """
    if sandbox.install:
        namespace = sandbox.namespace or Namespace()
        was_active = installer.is_installed(namespace, sandbox.device)
        before = _recorded_state(sandbox.name, state)
        found = _verified(sandbox.name, state)
        installed = installer.install(
            sandbox.spec(), namespace, state, requested_transport(sandbox)
        )
        return Fence(
            installed=installed,
            state=state_of(installed),
            is_ours=not was_active,
            before=before,
            reason=installed.degraded,
            tampering=_tampering(found, installed),
        )
    found = installer.verify(sandbox.name, state, sandbox.namespace, sandbox.device)
    if sandbox.self_heal and (restored := _restore(sandbox, found, state)) is not None:
        return restored
    if found.verdict == "absent":
        raise AbsentError(
            f"no fence of sandbox {sandbox.name} stands: `ocsf-nft install` one, or run --install"
        )
    if found.installed is None:
        raise FenceError(f"{found.difference}: install it again, or name the right --state-dir")
    if found.verdict == "differs":
        return _altered(found.installed, found.difference)
    return _as_installed(found.installed)


def _restore(sandbox: SandboxConfig, found: Verification, state: StateDirectory) -> Fence | None:
    """The fence that is on record, where it was altered or gone while nobody watched; else None."""
    was = found.installed
    if was is None or found.verdict == "as installed":
        return None
    try:
        is_there = (sandbox.namespace or was.namespace).identity() == was.identity
    except AbsentError:
        return None
    renewed = installer.renew(sandbox.name, state) if is_there else None
    if renewed is None:
        return None
    before = FenceState.ABSENT if found.verdict == "absent" else FenceState.ALTERED
    return dataclasses.replace(
        _as_installed(renewed), before=before, tampering=_tampering(found, renewed)
    )


def _verified(sandbox: str, state: StateDirectory) -> Verification | None:
    try:
        return installer.verify(sandbox, state)
    except OcsfNftError:  # it is about to be installed anew, which says what is wrong
        return None


def _tampering(found: Verification | None, installed: InstalledFence) -> Tampering | None:
    """What was done to a fence that has been installed once more, as it was on record."""
    if found is None or found.installed is None or found.verdict == "as installed":
        return None
    was = found.installed
    if (was.identity, was.policy) != (installed.identity, installed.policy):
        return None
    return Tampering(changes=found.difference or "it was gone")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """How a fence stands; ``was_renewed``: it was not as installed until now, by ``difference``."""

    fence: Fence
    was_renewed: bool = False
    difference: str = ""


def inspect(
    sandbox: str, state: StateDirectory, renew: Callable[[], InstalledFence | None] | None = None
) -> Inspection | None:
    """How a fence on record stands, which ``renew`` puts back first, if that is given; blocks.

    None where it is on record no longer: it was removed. Raises AbsentError where it is gone and
    not put back, and what :func:`installer.renew` does.
    """
    found = installer.verify(sandbox, state)
    if found.installed is None:
        return None
    if found.verdict == "as installed":
        return Inspection(fence=_as_installed(found.installed))
    if renew is not None:
        renewed = renew()
        if renewed is None:
            return None
        difference = found.difference or "it was gone"
        return Inspection(fence=_as_installed(renewed), was_renewed=True, difference=difference)
    if found.verdict == "absent":
        raise AbsentError(f"no fence of sandbox {sandbox} stands: `ocsf-nft install` one")
    return Inspection(fence=_altered(found.installed, found.difference))


def _as_installed(installed: InstalledFence) -> Fence:
    """A fence that stood as it was installed."""
    state = state_of(installed)
    return Fence(
        installed=installed, state=state, is_ours=False, before=state, reason=installed.degraded
    )


def _altered(installed: InstalledFence, difference: str) -> Fence:
    return Fence(
        installed=installed,
        state=FenceState.ALTERED,
        is_ours=False,
        reason=f"it is not as it was installed: {difference}",
    )


def requested_transport(sandbox: SandboxConfig) -> LogTransport | None:
    """How the fence must log so that the wanted source can read it; None for the best."""
    if sandbox.source == "auto" or sandbox.log_transport is not None:
        return sandbox.log_transport
    return "nflog" if sandbox.source == "nflog" else "kmsg"


def context(
    installed: InstalledFence, host: Host | None, container: Container | None = None
) -> Context:
    """What a mapper knows about a sandbox; ``container`` is what it is, if it is one."""
    is_pod = installed.spec.profile == "sidecar"
    return Context(
        host=host,
        container=container,
        proxies=tuple(
            Proxy(address=proxy.address, port=proxy.port) for proxy in installed.spec.proxies
        ),
        # The proxy in a pod may use any link, so none tells what goes out from what comes in.
        uplinks=frozenset(() if is_pod else installed.around.uplinks),
        rules={
            fact.name: RuleFacts(
                family=fact.family,
                table=fact.table,
                chain=fact.chain,
                handle=fact.handle,
                condition=fact.text,
            )
            for fact in rule_lookup.logging_rules(installed.listings.values())
        },
    )


def state_event(  # noqa: PLR0913 - each is one fact of the event, named at the call
    installed: InstalledFence,
    host: Host | None,
    *,
    before: FenceState,
    after: FenceState,
    reason: str | None = None,
    tampering: Tampering | None = None,
    is_regular: bool = False,
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
        tampering=tampering,
        is_regular=is_regular,
    )


def first_event(fence: Fence, host: Host | None) -> DeviceConfigStateChange:
    """The event of a fence that was put up, or found, now."""
    reason = fence.reason
    if fence.tampering is not None:
        restored = f"it was altered or gone, and has been put back: {fence.tampering.changes}"
        reason = restored if reason is None else f"{restored}; {reason}"
    return state_event(
        fence.installed,
        host,
        before=FenceState.ABSENT if fence.is_ours else fence.before,
        after=fence.state,
        reason=reason,
        tampering=fence.tampering,
    )


def state_of(installed: InstalledFence) -> FenceState:
    """How a fence stands that is as it was installed."""
    is_well = installed.degraded is None
    if installed.spec.is_permissive:
        return FenceState.PERMISSIVE if is_well else FenceState.PERMISSIVE_DEGRADED
    return FenceState.STANDING if is_well else FenceState.DEGRADED


def _recorded_state(sandbox: str, state: StateDirectory) -> FenceState:
    """How a fence stands by its record, if it has one that can be read."""
    try:
        installed = state.read(sandbox)
    except FenceError:  # damaged: it is about to be put on record anew
        installed = None
    return FenceState.STANDING if installed is None else state_of(installed)


def has_other_links(seen: InstalledFence, inspection: Inspection) -> bool:
    """Whether the links of a fence, or the ways to its proxies, are others than they were."""
    return inspection.fence.installed.around != seen.around


def describe_change(
    seen: InstalledFence, inspection: Inspection, *, has_new_links: bool = False
) -> str | None:
    """What is to be told of a fence that stands; None when it is the one that was seen before.

    ``has_new_links``: links came meanwhile, which may be gone again.
    """
    now = inspection.fence.installed
    if now.spec.is_permissive != seen.spec.is_permissive:
        kind = "a permissive" if now.spec.is_permissive else "an enforcing"
        return f"it was installed anew, as {kind} fence"
    if now.spec != seen.spec:
        return "it was installed anew"
    if has_other_links(seen, inspection) or (inspection.was_renewed and has_new_links):
        return f"its links changed; fenced are: {', '.join(now.around.links)}"
    if inspection.was_renewed:
        return f"it was altered or gone, and has been put back: {inspection.difference}"
    return None if now == seen else "it was installed anew"


def read_record(sandbox: str, state: StateDirectory) -> InstalledFence | None:
    """What is on record for a sandbox; None where that can't be read, which the run tells."""
    try:
        return state.read(sandbox)
    except FenceError:
        return None
