"""Events about a change of a fence's state (class 5019)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf.actors import actor_of_process, container_of, observables_of, unmapped_of
from ocsf_nft.ocsf.context import cloud_of, device_of, own_metadata
from ocsf_nft.ocsf.enums import (
    ConfigActivityId,
    ConfigState,
    DeviceType,
    SecurityLevel,
    Severity,
    Status,
)
from ocsf_nft.ocsf.event_codes import EventCode
from ocsf_nft.ocsf.events import DeviceConfigStateChange
from ocsf_nft.ocsf.identifiers import stable_uid
from ocsf_nft.ocsf.objects import Device
from ocsf_nft.ocsf.safe_text import shown, visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ocsf_nft.ocsf.context import Context
    from ocsf_nft.process import Process


class FenceState(Enum):
    """State of a sandbox's fence: whether it blocks packets, and whether it logs them."""

    #: Removed.
    ABSENT = "Absent"
    #: Blocks packets, and logs what it blocks.
    ACTIVE = "Active"
    #: Blocks nothing, as requested, and logs what it would block.
    PERMISSIVE = "Permissive"
    #: Blocks nothing, and does not log all that it would block.
    PERMISSIVE_DEGRADED = "Permissive, Degraded"
    #: Blocks packets, but does not log all of them.
    DEGRADED = "Degraded"
    #: Differs from the installed fence or can't be read, so its effect is unknown.
    ALTERED = "Altered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tampering:
    """Change of a fence by another process, and the restoration of the fence."""

    #: Text about the change.
    changes: str
    #: Process that made the change; None if unknown.
    process: Process | None = None
    #: Time when the change was detected (ns since the epoch, UTC); None if unknown.
    since_ns: int | None = None
    #: Duration in ns from then until the restoration; None if unknown, or not restored.
    lasted_ns: int | None = None
    #: True if restoring is paused after too many restores.
    given_up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChange:
    """Change of a sandbox's policy by a call of the control API, or of the Python API.

    Or the change of the addresses of host names in a policy that stays the same.
    """

    #: Differences, such as "allow: added tcp:192.0.2.1:443". Empty for a new sandbox.
    changes: tuple[str, ...] = ()
    #: Process that called; None if this program called itself.
    process: Process | None = None
    #: Policies, as JSON objects with the keys of ``[[sandbox]]``; None if there was none.
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    #: Whether only the addresses of host names have changed.
    is_resolved: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxEnd:
    """Ordinary end of the watch over a sandbox."""

    #: End of the sentence, such as "has ended with its network namespace".
    description: str
    #: Packets that the fence has refused, and those that it has only logged.
    refused: int
    allowed: int
    #: Process that has released the sandbox; None if none did.
    process: Process | None = None
    #: Whether the end was requested. If not, the network namespace ended.
    is_requested: bool = False


#: States of a fence that exists as it was installed.
_AS_INSTALLED: Final = frozenset(set(FenceState) - {FenceState.ABSENT, FenceState.ALTERED})
#: Other states have a name of their own in the event.
_CONFIG_STATES: Final = {
    FenceState.ABSENT: ConfigState.DISABLED,
    FenceState.ACTIVE: ConfigState.ENABLED,
}
#: Severity of a state, and the end of the sentence about it.
_STATES: Final = {
    FenceState.ABSENT: (Severity.INFORMATIONAL, "is removed: nothing restricts the sandbox"),
    FenceState.ACTIVE: (Severity.INFORMATIONAL, "is active, and logs what it blocks"),
    FenceState.PERMISSIVE: (
        Severity.LOW,
        "is active and permissive: it allows and logs what it would block",
    ),
    FenceState.PERMISSIVE_DEGRADED: (
        Severity.HIGH,
        "is active and permissive, but does not log all that it would block",
    ),
    FenceState.DEGRADED: (Severity.HIGH, "is active, but does not log all it blocks"),
    FenceState.ALTERED: (
        Severity.HIGH,
        "differs from the installed one, or can't be read: it may block nothing",
    ),
}
#: States of a fence that is present.
_PRESENT: Final = frozenset(
    {FenceState.ACTIVE, FenceState.DEGRADED, FenceState.PERMISSIVE, FenceState.PERMISSIVE_DEGRADED}
)
#: Codes of the states without a request and without a restore.
_CODES: Final = {
    FenceState.ACTIVE: EventCode.FENCE_ACTIVE,
    FenceState.PERMISSIVE: EventCode.FENCE_PERMISSIVE,
    FenceState.PERMISSIVE_DEGRADED: EventCode.FENCE_DEGRADED,
    FenceState.DEGRADED: EventCode.FENCE_DEGRADED,
    FenceState.ALTERED: EventCode.FENCE_ALTERED,
}
#: Ends of the sentences about fences without a log transport, if that was requested.
_UNLOGGED: Final = {
    FenceState.ACTIVE: "is active. As requested, it counts what it blocks and logs none of it",
    FenceState.PERMISSIVE: (
        "is active and permissive. As requested, it counts what it would block and logs none of it"
    ),
}


def fence_state(  # noqa: PLR0913 - each is one fact of the event, named at the call
    context: Context,
    *,
    sandbox: str,
    before: FenceState,
    after: FenceState,
    time_ns: int,
    tables: Sequence[str],  # for example "inet ocsf_nft"
    transport: str,  # "none" if the fence logs nothing
    reason: str | None = None,  # for example why the fence is altered
    tampering: Tampering | None = None,
    change: PolicyChange | None = None,
    end: SandboxEnd | None = None,
    addresses: Mapping[str, Sequence[str]] | None = None,
    guard: str = "",
    is_regular: bool = False,
) -> DeviceConfigStateChange:
    """Return the event about a change of a fence's state, from ``before`` to ``after``.

    ``time_ns`` is the event's time (ns since the epoch). ``transport`` is the log transport, such
    as ``nflog``, or ``none`` for a fence that logs nothing. ``change`` is the request that led to
    the new state. ``end`` is the sandbox's ordinary end. ``addresses`` are those that the fence
    allows for host names, by name. ``guard`` says why there is no guard on the host, or what it
    does not check. ``is_regular`` means that a removal was requested. Equal
    arguments give the same event uid.
    """
    state = _CONFIG_STATES.get(after, ConfigState.OTHER)
    _, state_text = _STATES[after]
    if transport == "none":
        state_text = _UNLOGGED.get(after, state_text)
    sentence = f"The fence of sandbox {visible(sandbox)} {state_text}"
    unmapped: dict[str, Any] = {
        "sandbox": visible(sandbox),
        "previous_state": before.value,
        "tables": [visible(table) for table in tables],
        "transport": visible(transport),
    }
    device, observables = device_of(context, container_of(context.container))
    actor = None
    if change is not None:
        sentence += _request_text(change)
        actor = None if change.process is None else actor_of_process(change.process)
        policies = {"policy_before": change.before, "policy": change.after}
        known = {name: each for name, each in policies.items() if each is not None}
        unmapped |= _visible(known | {"changes": list(change.changes)})
    if addresses:
        unmapped["addresses"] = {name: list(each) for name, each in addresses.items()}
    if end is not None:
        sentence = f"Sandbox {visible(sandbox)} {end.description}. Its fence {_counts_text(end)}"
        actor = None if end.process is None else actor_of_process(end.process)
        unmapped |= {"refused": end.refused, "allowed": end.allowed}
    if tampering is not None:
        unmapped["changes"] = visible(tampering.changes)
        if tampering.process is not None:
            actor = actor_of_process(tampering.process)
            unmapped |= unmapped_of(tampering.process)
        if after in _AS_INSTALLED and not tampering.given_up:
            sentence += "; another process altered it, and it has been restored"
    if guard and end is None and after in _PRESENT:
        if before is FenceState.ABSENT or (change is not None and change.before is None):
            sentence += f"; {guard}"
        unmapped["guard"] = guard
    earlier = "" if before is after or end else f" (before: {before.value.lower()})"
    cause = None if is_regular or end else reason
    start_time, end_time = _span(tampering)
    return DeviceConfigStateChange(
        activity_id=ConfigActivityId.LOG,
        time=time_ns // 1_000_000,
        start_time=start_time,
        end_time=end_time,
        severity_id=Severity.INFORMATIONAL if end else _severity(after, cause, tampering),
        status_id=_status(after, cause, tampering),
        status_detail=shown(reason),
        message=f"{sentence}{earlier}.",
        actor=actor,
        state_id=state,
        state=after.value if state is ConfigState.OTHER else state.caption,
        security_level_id=_security_level(after),
        prev_security_level_id=_security_level(before),
        device=device or Device(name="unknown", type_id=DeviceType.UNKNOWN),
        cloud=cloud_of(context),
        observables=(*observables, *observables_of(actor)) or None,
        unmapped=unmapped,
        metadata=own_metadata(
            stable_uid("fence", sandbox, before.value, after.value, time_ns, reason),
            time_ns,
            code=_code(after, cause, tampering, change, end),
            context=context,
            sandbox=sandbox,
        ),
    )


def _code(
    after: FenceState,
    cause: str | None,
    tampering: Tampering | None,
    change: PolicyChange | None,
    end: SandboxEnd | None,
) -> EventCode:
    if end is not None:
        return EventCode.SANDBOX_RELEASED if end.is_requested else EventCode.SANDBOX_ENDED
    if tampering is not None and tampering.given_up:
        return EventCode.RESTORE_STOPPED
    if after is FenceState.ABSENT:  # a removal that was requested has no cause
        return EventCode.FENCE_REMOVED if cause is None else EventCode.FENCE_REMOVED_BY_OTHER
    if tampering is not None and after in _AS_INSTALLED:
        return EventCode.FENCE_RESTORED
    # A request does not hide a fault.
    if change is None or after not in {FenceState.ACTIVE, FenceState.PERMISSIVE}:
        return _CODES[after]
    if change.is_resolved:
        return EventCode.NAMES_RESOLVED
    return EventCode.SANDBOX_ADDED if change.before is None else EventCode.POLICY_CHANGED


def _visible(value: Any) -> Any:
    """Return JSON of a request with safe texts."""
    if isinstance(value, dict):
        return {visible(key): _visible(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_visible(each) for each in value]
    return visible(value) if isinstance(value, str) else value


def _request_text(change: PolicyChange) -> str:
    process = change.process
    by = "" if process is None else f" by {visible(process.name or 'a process')}[{process.pid}]"
    if process is not None and process.uid is not None:
        by += f" (uid {process.uid})"
    if change.before is None:
        return f"; the sandbox was added{by}"
    if change.is_resolved:
        return f"; host names in its policy have new addresses: {'; '.join(change.changes)}"
    return f"; its policy was changed{by}: {visible('; '.join(change.changes))}"


def _counts_text(end: SandboxEnd) -> str:
    packets = f"{end.refused} packet{'' if end.refused == 1 else 's'}"
    return f"refused {packets}" + (f", and logged {end.allowed} more" if end.allowed else "")


def _span(tampering: Tampering | None) -> tuple[int | None, int | None]:
    """Return the times of detection and restoration in ms since the epoch; None if unknown."""
    if tampering is None or tampering.since_ns is None:
        return None, None
    start = tampering.since_ns // 1_000_000
    if tampering.lasted_ns is None:
        return start, None
    # A shorter time counts as one millisecond, because a duration of zero would mean no change.
    return start, start + max(1, round(tampering.lasted_ns / 1_000_000))


def _status(state: FenceState, reason: str | None, tampering: Tampering | None) -> Status:
    if tampering is not None and tampering.given_up:
        return Status.FAILURE
    is_good = state in {FenceState.ACTIVE, FenceState.PERMISSIVE} or (
        state is FenceState.ABSENT and reason is None
    )
    return Status.SUCCESS if is_good else Status.FAILURE


def _severity(state: FenceState, reason: str | None, tampering: Tampering | None) -> Severity:
    # A removal that was requested has no reason.
    is_removed = state is FenceState.ABSENT and reason is not None
    if is_removed or (tampering is not None and tampering.given_up):
        return Severity.CRITICAL
    severity, _ = _STATES[state]
    return severity if tampering is None else max(Severity.HIGH, severity)


def _security_level(state: FenceState) -> SecurityLevel:
    return SecurityLevel.SECURE if state is FenceState.ACTIVE else SecurityLevel.AT_RISK
