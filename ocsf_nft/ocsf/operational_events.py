"""Events about fences (class 5019) and about ocsf-nft itself (class 6002)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal

from ocsf_nft.ocsf import messages
from ocsf_nft.ocsf.actors import actor_of_process, observables_of, unmapped_of
from ocsf_nft.ocsf.context import device_of, own_metadata, product
from ocsf_nft.ocsf.enums import (
    ConfigActivityId,
    ConfigState,
    DeviceType,
    LifecycleActivityId,
    SecurityLevel,
    Severity,
    Status,
)
from ocsf_nft.ocsf.events import ApplicationLifecycle, DeviceConfigStateChange
from ocsf_nft.ocsf.identifiers import stable_uid
from ocsf_nft.ocsf.objects import Device, Metadata
from ocsf_nft.ocsf.safe_text import shown, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.ocsf.context import Context
    from ocsf_nft.process import Method, Process
    from ocsf_nft.record import Gap


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


#: States of a fence that exists as it was installed.
_AS_INSTALLED: Final = frozenset(set(FenceState) - {FenceState.ABSENT, FenceState.ALTERED})
#: Other states have a name of their own in the event.
_CONFIG_STATES: Final = {
    FenceState.ABSENT: ConfigState.DISABLED,
    FenceState.ACTIVE: ConfigState.ENABLED,
}
#: Severity of a state, and the end of the sentence about it.
_STATES: Final = {
    FenceState.ABSENT: (Severity.MEDIUM, "is removed: nothing restricts the sandbox"),
    FenceState.ACTIVE: (Severity.INFORMATIONAL, "is active, and logs what it blocks"),
    FenceState.PERMISSIVE: (
        Severity.MEDIUM,
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
    is_regular: bool = False,
) -> DeviceConfigStateChange:
    """Return the event about a change of a fence's state, from ``before`` to ``after``.

    ``time_ns`` is the event's time (ns since the epoch). ``transport`` is the log transport, such
    as ``nflog``, or ``none`` for a fence that logs nothing. ``is_regular`` means that a removal was
    requested. Equal arguments give the same event uid.
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
    device, observables = device_of(context)
    actor = None
    if tampering is not None:
        unmapped["changes"] = visible(tampering.changes)
        if tampering.process is not None:
            actor = actor_of_process(tampering.process)
            unmapped |= unmapped_of(tampering.process)
        if after in _AS_INSTALLED and not tampering.given_up:
            sentence += "; another process altered it, and it has been restored"
    change = "" if before is after else f" (before: {before.value.lower()})"
    cause = None if is_regular else reason
    start, end = _span(tampering)
    return DeviceConfigStateChange(
        activity_id=ConfigActivityId.LOG,
        time=time_ns // 1_000_000,
        start_time=start,
        end_time=end,
        severity_id=_severity(after, cause, tampering),
        status_id=_status(after, cause, tampering),
        status_detail=shown(reason),
        message=f"{sentence}{change}.",
        actor=actor,
        state_id=state,
        state=after.value if state is ConfigState.OTHER else state.caption,
        security_level_id=_security_level(after),
        prev_security_level_id=_security_level(before),
        device=device or Device(name="unknown", type_id=DeviceType.UNKNOWN),
        observables=(*observables, *observables_of(actor)) or None,
        unmapped=unmapped,
        metadata=own_metadata(
            stable_uid("fence", sandbox, before.value, after.value, time_ns, reason), time_ns
        ),
    )


def lifecycle(
    context: Context, *, activity: Literal["start", "stop"], time_ns: int
) -> ApplicationLifecycle:
    """Return the event about a start or stop of ocsf-nft at ``time_ns`` (ns since the epoch)."""
    started = activity == "start"
    device, observables = device_of(context)
    return ApplicationLifecycle(
        activity_id=LifecycleActivityId.START if started else LifecycleActivityId.STOP,
        time=time_ns // 1_000_000,
        severity_id=Severity.INFORMATIONAL,
        status_id=Status.SUCCESS,
        message=f"ocsf-nft {product().version} {'started' if started else 'stopped'}.",
        app=product(),
        device=device,
        observables=observables or None,
        metadata=own_metadata(stable_uid("lifecycle", activity, time_ns), time_ns),
    )


def attribution_degraded(
    context: Context, *, method: Method, reason: str, time_ns: int
) -> ApplicationLifecycle:
    """Return the event which reports that BPF programs no longer find the senders of packets.

    From ``time_ns`` on (ns since the epoch, UTC), senders are found by ``method``, which is less
    exact: ``socket`` or ``user``. ``reason`` is why the BPF programs stopped.
    """
    return _fault_event(
        context,
        "Attribution Degraded",
        own_metadata(stable_uid("attribution degraded", method, reason, time_ns), time_ns),
        severity=Severity.MEDIUM,
        reason=reason,
        message=f"The capture of processes has stopped: {visible(reason)}. {_FALLBACKS[method]}",
        until_ns=time_ns,
        unmapped={"method": method},
    )


_FALLBACKS: Final[dict[Method, str]] = {
    "socket": "Events now name the process that has the socket when the record is read.",
    "user": "Events now name only the user.",
}


def records_dropped(context: Context, gap: Gap, *, processed_ns: int) -> ApplicationLifecycle:
    """Return the event about kernel log records that a source could not read.

    ``gap`` describes the missing records. If ``gap.transport`` is ``counters``, packet counts are
    missing instead. ``processed_ns`` is the present time (ns since the epoch, UTC).
    """
    if gap.transport == "counters":
        loss = "Counts of an unknown number of packets may be missing"
    else:
        number = gap.dropped
        records = "An unknown number of records was" if number is None else _were(number, "record")
        loss = f"{records} dropped on the way from the kernel ({gap.transport})"
    uid = stable_uid("gap", gap.transport, gap.reason, gap.dropped, gap.since_ns, gap.until_ns)
    return _fault_event(
        context,
        "Records Dropped",
        own_metadata(uid, processed_ns),
        severity=Severity.HIGH,
        reason=gap.reason,
        message=f"{loss}: {visible(gap.reason)}.",
        since_ns=gap.since_ns,
        until_ns=gap.until_ns,
        count=gap.dropped,
        unmapped={"transport": gap.transport},
    )


def events_dropped(
    context: Context, *, reason: str, number: int | None, since_ns: int, until_ns: int
) -> ApplicationLifecycle:
    """Return the event about stored events that were removed before all sinks had received them.

    ``number`` is the number of removed events; None if unknown. They were removed between
    ``since_ns`` and ``until_ns``, the present time (both in ns since the epoch, UTC).
    """
    events = "An unknown number of events may have been"
    if number is not None:
        events = _were(number, "event")
    uid = stable_uid("events dropped", reason, number, since_ns, until_ns)
    return _fault_event(
        context,
        "Events Dropped",
        own_metadata(uid, until_ns),
        severity=Severity.HIGH,
        reason=reason,
        message=f"{events} dropped: {visible(reason)}.",
        since_ns=since_ns,
        until_ns=until_ns,
        count=number,
        unmapped={"transport": "store"},
    )


def fault(  # noqa: PLR0913 - each is one fact of the event, named at the call
    context: Context,
    *,
    subject: str,
    cause: str,
    sandbox: str | None,
    since_ns: int,
    now_ns: int,
    is_cleared: bool,
) -> ApplicationLifecycle:
    """Return the event about a fault of ocsf-nft that has lasted from ``since_ns`` to ``now_ns``.

    Times are in ns since the epoch. ``subject`` is what is wrong, and ``cause`` why. All events
    of a fault have the same ``correlation_uid``. ``sandbox`` is None if the fault is about the
    whole service.
    """
    correlation_uid = stable_uid("fault", subject, since_ns)
    since_ns = min(since_ns, now_ns)
    text = f"{visible(subject)}: {visible(cause)}"
    duration = messages.elapsed(since_ns, now_ns)
    severity = Severity.MEDIUM if sandbox is None else Severity.HIGH
    if is_cleared:
        message = f"A fault of ocsf-nft was cleared after {duration}. It was: {text}."
        severity = Severity.INFORMATIONAL
    elif now_ns > since_ns:
        message = f"A fault of ocsf-nft has lasted for {duration}: {text}."
    else:
        message = f"ocsf-nft has a fault: {text}."
    uid = stable_uid("fault", subject, since_ns, now_ns, is_cleared)
    return _fault_event(
        context,
        "Fault Cleared" if is_cleared else "Fault",
        own_metadata(uid, now_ns, correlation_uid),
        severity=severity,
        status=Status.SUCCESS if is_cleared else Status.FAILURE,
        reason=cause,
        message=message,
        since_ns=since_ns,
        until_ns=now_ns,
        unmapped=None if sandbox is None else {"sandbox": visible(sandbox)},
    )


def collection_gap(  # noqa: PLR0913 - each is one fact of the event, named at the call
    context: Context,
    *,
    sandbox: str,
    packets: int,
    allowed: int = 0,
    since_ns: int,
    until_ns: int,
    reason: str,
    processed_ns: int,
) -> ApplicationLifecycle:
    """Return the event about a time in which a fence's counters and log were not read.

    Times are in ns since the epoch. ``packets`` is the number of packets that the fence counted in
    this time. ``allowed`` is how many of these were not blocked. Later events count the same
    packets too.
    """
    outcomes = {"blocked": packets - allowed, "allowed (the fence is permissive)": allowed}
    counts = [
        f"{_were(number, 'packet')} {outcome}" for outcome, number in outcomes.items() if number
    ]
    meanwhile = "there was no packet to block"
    if packets:
        them = "it" if packets == 1 else "them"
        meanwhile = f"{' and '.join(counts)}; later events count {them}"
    # If the event is made again, it has the same uid: ``processed_ns`` is not a part.
    uid = stable_uid("collection gap", sandbox, packets, since_ns, until_ns, reason)
    return _fault_event(
        context,
        "Collection Gap",
        own_metadata(uid, processed_ns),
        severity=Severity.HIGH if packets else Severity.LOW,
        reason=reason,
        message=(
            f"ocsf-nft did not read the fence of sandbox {visible(sandbox)} for "
            f"{messages.elapsed(since_ns, until_ns)}. Meanwhile {meanwhile}."
        ),
        since_ns=since_ns,
        until_ns=until_ns,
        count=packets,
        unmapped={"sandbox": visible(sandbox)},
    )


def _fault_event(  # noqa: PLR0913 - each is one fact of the event, named at the call
    context: Context,
    name: str,
    metadata: Metadata,
    *,
    severity: Severity,
    status: Status = Status.FAILURE,
    reason: str,
    message: str,
    since_ns: int | None = None,
    until_ns: int,
    count: int | None = None,
    unmapped: dict[str, Any] | None,
) -> ApplicationLifecycle:
    device, observables = device_of(context)
    return ApplicationLifecycle(
        activity_id=LifecycleActivityId.OTHER,
        activity_name=name,
        time=until_ns // 1_000_000,
        # The clock may have been set back.
        start_time=None if since_ns is None else min(since_ns, until_ns) // 1_000_000,
        end_time=None if since_ns is None else until_ns // 1_000_000,
        count=count,
        severity_id=severity,
        status_id=status,
        status_detail=visible(reason),
        message=message,
        app=product(),
        device=device,
        observables=observables or None,
        unmapped=unmapped,
        metadata=metadata,
    )


def _were(number: int, noun: str) -> str:
    return f"{messages.counted(number, noun)} {'was' if number == 1 else 'were'}"


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
