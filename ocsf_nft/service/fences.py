"""Installation and inspection of a running service's fences, and their first events."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import AbsentError, FenceError, OcsfNftError, UsageError
from ocsf_nft.fence import installer, kernel_log_sysctl, listing, pinned_survey, verification
from ocsf_nft.netns import Namespace
from ocsf_nft.ocsf.fence_state_events import FenceState, Tampering
from ocsf_nft.service import fence_facts

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.fence.listing import RulesetVersion
    from ocsf_nft.fence.spec import FenceSpec, LogTransport
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.fence.verification import Verification
    from ocsf_nft.ocsf.context import Host
    from ocsf_nft.ocsf.events import DeviceConfigStateChange
    from ocsf_nft.ocsf.fence_state_events import PolicyChange


#: Most names of interfaces in a text.
_MOST_NAMES: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """State of a sandbox's fence at the start of the service, or after an inspection."""

    #: Record of the fence in the state directory.
    installed: InstalledFence
    state: FenceState
    #: Whether this service installed the fence where there was none, and removes it at the end.
    is_ours: bool
    #: Last known state before the start of the service. Used only at the start, and only for a
    #: fence that is not ours: ours was absent before.
    before: FenceState = FenceState.ACTIVE
    #: Explanation of a degraded or altered state, else None.
    reason: str | None = None
    #: Limitation of the guard on the host, else empty.
    guard_note: str = ""
    #: Change by another process, which the service has undone.
    tampering: Tampering | None = None
    #: Version of a ruleset that was found as installed; None if it is not known.
    version: RulesetVersion | None = None


def activate(
    sandbox: SandboxConfig,
    state: StateDirectory,
    group: int | None = None,
    *,
    namespace: Namespace | None = None,
    keeps_uplinks: bool = True,
) -> Fence:
    """Install a sandbox's fence if ``sandbox.install`` is true, otherwise find the installed fence.

    A new installation keeps the uplinks of the recorded fence: what runs in the sandbox may have
    changed routes since then. Without ``keeps_uplinks``, the present routes decide.
    With ``sandbox.self_heal``, a changed or deleted fence is restored. ``group`` is an NFLOG group
    in place of the fence's own one, which another program holds. ``namespace`` is the configured
    one, pinned; None uses that which has its path now. The call blocks. Raises
    UsageError if a new fence would enclose the whole machine without ``sandbox.whole_machine``,
    AbsentError if no fence is found, and FenceError if a found fence has no record in the directory
    ``state``. Also raises the errors of :func:`installer.install`.
    """
    fence = _activate(sandbox, namespace or sandbox.namespace, state, keeps_uplinks=keeps_uplinks)
    # Changes by other processes are found with the former group.
    if group is None or fence.state in {FenceState.ALTERED, FenceState.ABSENT}:
        return fence
    was = fence.installed
    spec = dataclasses.replace(was.spec, group=group)
    transport = was.transport if was.degraded is None else requested_transport(sandbox)
    installed = installer.install(spec, was.namespace, state, transport, keeps_uplinks=True)
    return dataclasses.replace(fence, installed=installed, version=_version(installed))


def _activate(
    sandbox: SandboxConfig,
    configured: Namespace | None,
    state: StateDirectory,
    *,
    keeps_uplinks: bool,
) -> Fence:
    if sandbox.install:
        namespace = (configured or Namespace()).pinned()
        was_active = verification.is_installed(namespace, sandbox.device)
        if not was_active:
            _refuse_whole_machine(sandbox, namespace)
        before = _recorded_state(sandbox.name, state)
        found = _verified(sandbox.name, state)
        installed = installer.install(
            _spec(sandbox, state),
            namespace,
            state,
            requested_transport(sandbox),
            keeps_uplinks=keeps_uplinks,
        )
        return Fence(
            installed=installed,
            state=fence_facts.state_of(installed),
            is_ours=not was_active,
            before=before,
            reason=installed.degraded,
            tampering=_tampering(found, installed),
            version=_version(installed),
        )
    found = verification.verify(sandbox.name, state, configured, sandbox.device)
    if sandbox.self_heal and (restored := _restore(sandbox, configured, found, state)) is not None:
        return restored
    if found.verdict == "absent":
        raise AbsentError(
            f"sandbox {sandbox.name} has no active fence: install one with `ocsf-nft install`, "
            "or use run --install"
        )
    if found.installed is None:
        raise FenceError(f"{found.difference}: install it again, or name the right --state-dir")
    if found.verdict == "differs":
        return _altered(found.installed, found.difference)
    return dataclasses.replace(_as_installed(found.installed), version=found.version)


def _refuse_whole_machine(sandbox: SandboxConfig, namespace: Namespace) -> None:
    """Raise UsageError if a fence would enclose this machine itself, and that was not requested."""
    if sandbox.whole_machine or sandbox.profile == "tap":
        return
    if kernel_log_sysctl.is_initial(namespace):
        raise UsageError(
            f"the fence of sandbox {sandbox.name} would enclose this whole machine, also its SSH "
            "connections: name the sandbox's namespace with --netns or --pid, or confirm with "
            "--whole-machine (key whole_machine)"
        )


def _spec(sandbox: SandboxConfig, state: StateDirectory) -> FenceSpec:
    """Return the specification of a fence, with the recorded addresses of its host names.

    So a restart of the service closes nothing until there are new answers.
    """
    installed = state.read_or_none(sandbox.name)
    known = () if installed is None else installed.spec.resolved
    return sandbox.spec({each.name: each.addresses for each in known})


def _version(installed: InstalledFence) -> RulesetVersion | None:
    """Return the version of the ruleset if it is that of the installation; None if unknown."""
    version = listing.ruleset_version(installed, installed.namespace)
    if version is None or version.generations != installed.generations:
        return None
    return version


def _restore(
    sandbox: SandboxConfig,
    configured: Namespace | None,
    found: Verification,
    state: StateDirectory,
) -> Fence | None:
    """Restore a fence that was changed or deleted while no service monitored it.

    Return the restored fence; None if nothing was restored.
    """
    was = found.installed
    if was is None or found.verdict == "as installed":
        return None
    is_there = (configured or was.namespace).has_identity(was.identity)
    renewed = installer.renew(sandbox.name, state) if is_there else None
    if renewed is None:
        return None
    before = FenceState.ABSENT if found.verdict == "absent" else FenceState.ALTERED
    return dataclasses.replace(
        _as_installed(renewed), before=before, tampering=_tampering(found, renewed)
    )


def _verified(sandbox: str, state: StateDirectory) -> Verification | None:
    try:
        return verification.verify(sandbox, state)
    except OcsfNftError:  # the installation that follows reports the error
        return None


def _tampering(found: Verification | None, installed: InstalledFence) -> Tampering | None:
    """Return the change by another process that the installation of a new fence has undone."""
    if found is None or found.installed is None or found.verdict == "as installed":
        return None
    was = found.installed
    if was.is_ending:  # a run was killed while it removed the fence
        return None
    # A new fence with another policy or namespace does not restore the old one.
    if (was.identity, was.policy) != (installed.identity, installed.policy):
        return None
    return Tampering(changes=found.difference or "it was missing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Result of comparing a sandbox's fence in the kernel with its record in the state directory.

    ``fence`` is the state of the fence now. If the fence differed and was restored, ``was_renewed``
    is true, and ``difference`` describes the difference.
    """

    fence: Fence
    was_renewed: bool = False
    difference: str = ""


def inspect(
    sandbox: str,
    state: StateDirectory,
    renew: Callable[[], InstalledFence | None] | None = None,
    *,
    waits: bool = False,
) -> Inspection | None:
    """Compare a sandbox's fence in the kernel with its record; if they differ, call ``renew``.

    ``renew`` restores the fence and returns its record. With ``waits``, an installation that
    another process has begun is first waited for. Return None if the fence has no record.
    Blocks. Raises AbsentError if a missing fence is not restored, and the errors of ``renew``.
    """
    found = verification.verify(sandbox, state)
    if waits and found.verdict != "as installed":
        with state.fence_locked(sandbox):  # an installation stores its record last
            found = verification.verify(sandbox, state)
    if found.installed is None:
        return None
    if found.verdict == "as installed":
        return Inspection(fence=_as_installed(found.installed))
    if renew is not None:
        renewed = renew()
        if renewed is None:
            return None
        difference = found.difference or "it was missing"
        return Inspection(fence=_as_installed(renewed), was_renewed=True, difference=difference)
    if found.verdict == "absent":
        raise AbsentError(f"sandbox {sandbox} has no active fence: run `ocsf-nft install`")
    return Inspection(fence=_altered(found.installed, found.difference))


def _as_installed(installed: InstalledFence) -> Fence:
    state = fence_facts.state_of(installed)
    return Fence(
        installed=installed, state=state, is_ours=False, before=state, reason=installed.degraded
    )


def _altered(installed: InstalledFence, difference: str) -> Fence:
    return Fence(
        installed=installed,
        state=FenceState.ALTERED,
        is_ours=False,
        before=fence_facts.state_of(installed),
        reason=f"it is not as it was installed: {difference}",
    )


def remove(installed: InstalledFence, state: StateDirectory) -> bool:
    """Remove a fence and its record; return False if the fence was already deleted.

    Blocks. Raises the errors of :func:`installer.remove`.
    """
    try:
        return installer.remove(installed.spec.sandbox, state, installed.namespace)
    except AbsentError:
        return False


def requested_transport(sandbox: SandboxConfig) -> LogTransport | None:
    """Return the log transport that a sandbox's configuration requires, for example ``nflog``.

    Return None if the installer of the fence may choose the log transport.
    """
    if sandbox.source == "auto" or sandbox.log_transport is not None:
        return sandbox.log_transport
    return "nflog" if sandbox.source == "nflog" else "kmsg"


def first_event(
    fence: Fence,
    host: Host | None,
    change: PolicyChange | None = None,
    sandbox: SandboxConfig | None = None,
) -> DeviceConfigStateChange:
    """Return the first event about a fence that was just installed, or found at service start.

    ``change`` is the request that added the sandbox; None if the configuration file has it.
    """
    reason = fence.reason
    if fence.tampering is not None:
        restored = f"it was altered or removed, and was restored: {fence.tampering.changes}"
        reason = restored if reason is None else f"{restored}; {reason}"
    return fence_facts.state_event(
        fence.installed,
        host,
        before=FenceState.ABSENT if fence.is_ours else fence.before,
        after=fence.state,
        reason=reason,
        tampering=fence.tampering,
        change=change,
        sandbox=sandbox,
        guard=fence.guard_note,
    )


def _recorded_state(sandbox: str, state: StateDirectory) -> FenceState:
    # If the record is damaged, the installation that follows writes it again.
    installed = state.read_or_none(sandbox)
    # A fence without a readable record is assumed to have been active.
    return FenceState.ACTIVE if installed is None else fence_facts.state_of(installed)


def _names_text(names: tuple[str, ...]) -> str:
    """Return names for people, at most 20: the owner of a namespace may create any number."""
    others = len(names) - _MOST_NAMES
    more = (f"and {others} more",) if others > 0 else ()
    return ", ".join((*names[:_MOST_NAMES], *more))


def describe_change(
    seen: InstalledFence, inspection: Inspection, *, has_new_links: bool = False
) -> str | None:
    """Return a text about a fence's change since its earlier record ``seen``; None if unchanged.

    ``inspection`` is the latest inspection of the fence. ``has_new_links`` is true if interfaces
    were added since the record ``seen``, even if they were removed again.
    """
    now = inspection.fence.installed
    if now.spec.is_permissive != seen.spec.is_permissive:
        kind = "a permissive" if now.spec.is_permissive else "an enforcing"
        return f"it was installed again, as {kind} fence"
    if now.spec != seen.spec:
        return "it was installed again"
    if now.around != seen.around or (inspection.was_renewed and has_new_links):
        missing = now.around.missing
        more = f"; {pinned_survey.missing_text([*missing])}" if missing else ""
        return f"its interfaces changed; fenced interfaces: {_names_text(now.around.links)}{more}"
    if inspection.was_renewed:
        return f"it was altered or removed, and was restored: {inspection.difference}"
    return None if now == seen else "it was installed again"
