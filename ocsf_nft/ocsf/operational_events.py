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
from ocsf_nft.ocsf.event_uids import stable_uid
from ocsf_nft.ocsf.events import ApplicationLifecycle, DeviceConfigStateChange
from ocsf_nft.ocsf.objects import Device
from ocsf_nft.ocsf.safe_text import visible

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


_CONFIG_STATES: Final = {
    FenceState.ABSENT: ConfigState.DISABLED,
    FenceState.ACTIVE: ConfigState.ENABLED,
    FenceState.PERMISSIVE: ConfigState.OTHER,
    FenceState.PERMISSIVE_DEGRADED: ConfigState.OTHER,
    FenceState.DEGRADED: ConfigState.OTHER,
    FenceState.ALTERED: ConfigState.OTHER,
}
_SEVERITIES: Final = {
    FenceState.ABSENT: Severity.MEDIUM,
    FenceState.ACTIVE: Severity.INFORMATIONAL,
    FenceState.PERMISSIVE: Severity.MEDIUM,
    FenceState.PERMISSIVE_DEGRADED: Severity.HIGH,
    FenceState.DEGRADED: Severity.HIGH,
    FenceState.ALTERED: Severity.HIGH,
}
#: States of a fence that exists as it was installed.
_AS_INSTALLED: Final = frozenset(set(FenceState) - {FenceState.ABSENT, FenceState.ALTERED})
_SENTENCES: Final = {
    FenceState.ABSENT: "The fence of sandbox {sandbox} is removed: nothing restricts the sandbox",
    FenceState.ACTIVE: "The fence of sandbox {sandbox} is active, and logs what it blocks",
    FenceState.PERMISSIVE: (
        "The fence of sandbox {sandbox} is active and permissive: it allows and logs what it would "
        "block"
    ),
    FenceState.PERMISSIVE_DEGRADED: (
        "The fence of sandbox {sandbox} is active and permissive, but does not log all that it "
        "would block"
    ),
    FenceState.DEGRADED: "The fence of sandbox {sandbox} is active, but does not log all it blocks",
    FenceState.ALTERED: (
        "The fence of sandbox {sandbox} differs from the installed one, or can't be read: it may "
        "block nothing"
    ),
}

#: Sentences about fences without a log transport, if that was requested.
_UNLOGGED: Final = {
    FenceState.ACTIVE: (
        "The fence of sandbox {sandbox} is active. As requested, it counts what it blocks and logs "
        "none of it"
    ),
    FenceState.PERMISSIVE: (
        "The fence of sandbox {sandbox} is active and permissive. As requested, it counts what it "
        "would block and logs none of it"
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
    transport: str | None = None,  # "none" if the fence logs nothing
    reason: str | None = None,  # for example why the fence is altered
    tampering: Tampering | None = None,
    is_regular: bool = False,
) -> DeviceConfigStateChange:
    """Return the event about a change of a fence's state, from ``before`` to ``after``.

    ``time_ns`` is the event's time (ns since the epoch). ``transport`` is the log transport, such
    as ``nflog``, or ``none`` for a fence that logs nothing. ``is_regular`` means that a removal was
    requested. Equal arguments give the same event uid.
    """
    state = _CONFIG_STATES[after]
    sentences = _SENTENCES | _UNLOGGED if transport == "none" else _SENTENCES
    sentence = sentences[after].format(sandbox=visible(sandbox))
    unmapped: dict[str, Any] = {
        "sandbox": visible(sandbox),
        "previous_state": before.value,
        "tables": [visible(table) for table in tables],
    }
    if transport is not None:
        unmapped["transport"] = visible(transport)
    device, observables = device_of(context)
    actor = None
    if tampering is not None:
        unmapped["changes"] = visible(tampering.changes)
        if tampering.process is not None:
            actor = actor_of_process(tampering.process)
            unmapped |= unmapped_of(tampering.process)
        if after in _AS_INSTALLED and not tampering.given_up:
            sentence += "; another process altered it, and it has been restored"
    cause = None if is_regular else reason
    start, end = _span(tampering)
    return DeviceConfigStateChange(
        activity_id=ConfigActivityId.LOG,
        time=time_ns // 1_000_000,
        start_time=start,
        end_time=end,
        duration=None if start is None or end is None else end - start,
        severity_id=_severity(after, cause, tampering),
        status_id=_status(after, cause, tampering),
        status_detail=None if reason is None else visible(reason),
        message=f"{sentence}."
        if before is after
        else f"{sentence} (before: {before.value.lower()}).",
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
    context: Context, *, activity: Literal["start", "stop"], time_ns: int, reason: str | None = None
) -> ApplicationLifecycle:
    """Return the event about a start or stop of ocsf-nft at ``time_ns`` (ns since the epoch, UTC).

    ``reason`` is a text about the cause; None if there is none.
    """
    started = activity == "start"
    device, observables = device_of(context)
    return ApplicationLifecycle(
        activity_id=LifecycleActivityId.START if started else LifecycleActivityId.STOP,
        time=time_ns // 1_000_000,
        severity_id=Severity.INFORMATIONAL,
        status_id=Status.SUCCESS,
        status_detail=None if reason is None else visible(reason),
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
    device, observables = device_of(context)
    return ApplicationLifecycle(
        activity_id=LifecycleActivityId.OTHER,
        activity_name="Attribution Degraded",
        time=time_ns // 1_000_000,
        severity_id=Severity.MEDIUM,
        status_id=Status.FAILURE,
        status_detail=visible(reason),
        message=f"The capture of processes has stopped: {visible(reason)}. {_FALLBACKS[method]}",
        app=product(),
        device=device,
        observables=observables or None,
        unmapped={"method": method},
        metadata=own_metadata(stable_uid("attribution degraded", method, reason, time_ns), time_ns),
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
        loss = "An unknown number of records was dropped"
        if gap.dropped is not None:
            loss = f"{messages.counted(gap.dropped, 'record')} {_were(gap.dropped)} dropped"
        loss = f"{loss} on the way from the kernel ({gap.transport})"
    device, observables = device_of(context)
    return ApplicationLifecycle(
        activity_id=LifecycleActivityId.OTHER,
        activity_name="Records Dropped",
        time=gap.until_ns // 1_000_000,
        start_time=min(gap.since_ns, gap.until_ns) // 1_000_000,
        end_time=gap.until_ns // 1_000_000,
        duration=_duration(gap.since_ns, gap.until_ns),
        count=gap.dropped,
        severity_id=Severity.HIGH,
        status_id=Status.FAILURE,
        status_detail=visible(gap.reason),
        message=f"{loss}: {visible(gap.reason)}.",
        app=product(),
        device=device,
        observables=observables or None,
        unmapped={"transport": gap.transport},
        metadata=own_metadata(
            stable_uid("gap", gap.transport, gap.reason, gap.dropped, gap.since_ns, gap.until_ns),
            processed_ns,
        ),
    )


def events_dropped(
    context: Context, *, reason: str, number: int | None, since_ns: int, until_ns: int
) -> ApplicationLifecycle:
    """Return the event about stored events that were removed before all sinks had received them.

    ``number`` is the number of removed events; None if unknown. They were removed between
    ``since_ns`` and ``until_ns``, the present time (both in ns since the epoch, UTC).
    """
    loss = "An unknown number of events may have been dropped"
    if number is not None:
        loss = f"{messages.counted(number, 'event')} {_were(number)} dropped"
    device, observables = device_of(context)
    return ApplicationLifecycle(
        activity_id=LifecycleActivityId.OTHER,
        activity_name="Events Dropped",
        time=until_ns // 1_000_000,
        start_time=min(since_ns, until_ns) // 1_000_000,
        end_time=until_ns // 1_000_000,
        duration=_duration(since_ns, until_ns),
        count=number,
        severity_id=Severity.HIGH,
        status_id=Status.FAILURE,
        status_detail=visible(reason),
        message=f"{loss}: {visible(reason)}.",
        app=product(),
        device=device,
        observables=observables or None,
        unmapped={"transport": "store"},
        metadata=own_metadata(
            stable_uid("events dropped", reason, number, since_ns, until_ns), until_ns
        ),
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
    if is_cleared:
        message = f"A fault of ocsf-nft was cleared after {duration}. It was: {text}."
    elif now_ns > since_ns:
        message = f"A fault of ocsf-nft has lasted for {duration}: {text}."
    else:
        message = f"ocsf-nft has a fault: {text}."
    device, observables = device_of(context)
    metadata = own_metadata(stable_uid("fault", subject, since_ns, now_ns, is_cleared), now_ns)
    return ApplicationLifecycle(
        activity_id=LifecycleActivityId.OTHER,
        activity_name="Fault Cleared" if is_cleared else "Fault",
        time=now_ns // 1_000_000,
        start_time=since_ns // 1_000_000,
        end_time=now_ns // 1_000_000,
        duration=_duration(since_ns, now_ns),
        severity_id=_fault_severity(sandbox, is_cleared=is_cleared),
        status_id=Status.SUCCESS if is_cleared else Status.FAILURE,
        status_detail=visible(cause),
        message=message,
        app=product(),
        device=device,
        observables=observables or None,
        unmapped=None if sandbox is None else {"sandbox": visible(sandbox)},
        metadata=metadata.model_copy(update={"correlation_uid": correlation_uid}),
    )


def _fault_severity(sandbox: str | None, *, is_cleared: bool) -> Severity:
    if is_cleared:
        return Severity.INFORMATIONAL
    return Severity.MEDIUM if sandbox is None else Severity.HIGH


_NO_PACKETS: Final = "there was no packet to block"


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
    duration = messages.elapsed(since_ns, until_ns)
    outcomes = {"blocked": packets - allowed, "allowed (the fence is permissive)": allowed}
    counts = [
        f"{messages.counted(number, 'packet')} {_were(number)} {outcome}"
        for outcome, number in outcomes.items()
        if number
    ]
    them = "it" if packets == 1 else "them"
    meanwhile = f"{' and '.join(counts)}; later events count {them}" if packets else _NO_PACKETS
    device, observables = device_of(context)
    return ApplicationLifecycle(
        activity_id=LifecycleActivityId.OTHER,
        activity_name="Collection Gap",
        time=until_ns // 1_000_000,
        start_time=min(since_ns, until_ns) // 1_000_000,
        end_time=until_ns // 1_000_000,
        duration=_duration(since_ns, until_ns),
        count=packets,
        severity_id=Severity.HIGH if packets else Severity.LOW,
        status_id=Status.FAILURE,
        status_detail=visible(reason),
        message=(
            f"ocsf-nft did not read the fence of sandbox {visible(sandbox)} for {duration}. "
            f"Meanwhile {meanwhile}."
        ),
        app=product(),
        device=device,
        observables=observables or None,
        unmapped={"sandbox": visible(sandbox)},
        # If the event is made again, it has the same uid: ``processed_ns`` is not a part.
        metadata=own_metadata(
            stable_uid("collection gap", sandbox, packets, since_ns, until_ns, reason), processed_ns
        ),
    )


def _duration(since_ns: int, until_ns: int) -> int | None:
    milliseconds = until_ns // 1_000_000 - since_ns // 1_000_000
    # Negative if the clock was set back.
    return milliseconds if milliseconds > 0 else None


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _span(tampering: Tampering | None) -> tuple[int | None, int | None]:
    """Return the time at which a fence's change was detected, and the time of the restoration.

    Both are in ms since the epoch. An unknown time is None. Without a restoration, the second time
    is None.
    """
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
    if tampering is not None:
        return max(Severity.HIGH, _SEVERITIES[state])
    return _SEVERITIES[state]


def _security_level(state: FenceState) -> SecurityLevel:
    return SecurityLevel.SECURE if state is FenceState.ACTIVE else SecurityLevel.AT_RISK
