"""Events about ourselves: what became of a fence (5019), and of ocsf-nft (6002)."""

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
    """How a fence stands.

    ``PERMISSIVE``: it refuses nothing, as asked for, and tells of what it would refuse.
    ``DEGRADED``: it refuses, and not all of what it refuses is logged; ``PERMISSIVE_DEGRADED``: the
    same of what it would refuse. ``ALTERED``: nobody can say what it refuses, because it is not
    what was installed, or may not be looked at.
    """

    ABSENT = "Absent"
    STANDING = "Standing"
    PERMISSIVE = "Permissive"
    PERMISSIVE_DEGRADED = "Permissive, Degraded"
    DEGRADED = "Degraded"
    ALTERED = "Altered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tampering:
    """What somebody else did to a fence.

    ``changes`` is in words, ``process`` who did it, where that is known. ``since_ns`` is when it
    was noticed (ns since the epoch, UTC), ``lasted_ns`` how long it took to put the fence back;
    None where that is not known, or it was not put back. ``given_up``: nor will it be for a while.
    """

    changes: str
    process: Process | None = None
    since_ns: int | None = None
    lasted_ns: int | None = None
    given_up: bool = False


_CONFIG_STATES: Final = {
    FenceState.ABSENT: ConfigState.DISABLED,
    FenceState.STANDING: ConfigState.ENABLED,
    FenceState.PERMISSIVE: ConfigState.OTHER,
    FenceState.PERMISSIVE_DEGRADED: ConfigState.OTHER,
    FenceState.DEGRADED: ConfigState.OTHER,
    FenceState.ALTERED: ConfigState.OTHER,
}
_SEVERITIES: Final = {
    FenceState.ABSENT: Severity.MEDIUM,
    FenceState.STANDING: Severity.INFORMATIONAL,
    FenceState.PERMISSIVE: Severity.MEDIUM,
    FenceState.PERMISSIVE_DEGRADED: Severity.HIGH,
    FenceState.DEGRADED: Severity.HIGH,
    FenceState.ALTERED: Severity.HIGH,
}
#: How a fence that is there, and as it was installed, can stand.
_WELL: Final = frozenset(set(FenceState) - {FenceState.ABSENT, FenceState.ALTERED})
_SENTENCES: Final = {
    FenceState.ABSENT: "The fence of sandbox {sandbox} is gone: nothing holds the sandbox back",
    FenceState.STANDING: "The fence of sandbox {sandbox} stands, and logs what it refuses",
    FenceState.PERMISSIVE: (
        "The fence of sandbox {sandbox} stands and is permissive: it lets pass what it would "
        "refuse, and tells of it"
    ),
    FenceState.PERMISSIVE_DEGRADED: (
        "The fence of sandbox {sandbox} stands and is permissive: it lets pass what it would "
        "refuse, and does not log all of it"
    ),
    FenceState.DEGRADED: "The fence of sandbox {sandbox} stands, but does not log all it refuses",
    FenceState.ALTERED: (
        "The fence of sandbox {sandbox} is not as it was installed, or can't be looked at: "
        "it may hold nothing back"
    ),
}


def fence_state(  # noqa: PLR0913 - each is one fact of the event, named at the call
    context: Context,
    *,
    sandbox: str,
    before: FenceState,
    after: FenceState,
    time_ns: int,
    tables: Sequence[str],
    transport: str | None = None,
    reason: str | None = None,
    tampering: Tampering | None = None,
    is_regular: bool = False,
) -> DeviceConfigStateChange:
    """What became of a sandbox's fence.

    ``time_ns`` is when, in ns since the epoch, UTC. ``tables`` are named ``family name``;
    ``transport`` is how the fence logs, ``reason`` why it is not as it should be or what happened,
    ``tampering`` what somebody did to it; ``is_regular``: it is gone because it was removed by who
    may. The same arguments give the same event uid.
    """
    state = _CONFIG_STATES[after]
    sentence = _SENTENCES[after].format(sandbox=visible(sandbox))
    more: dict[str, Any] = {
        "sandbox": visible(sandbox),
        "previous_state": before.value,
        "tables": [visible(table) for table in tables],
    }
    if transport is not None:
        more["transport"] = visible(transport)
    device, observables = device_of(context)
    actor = None
    if tampering is not None:
        more["changes"] = visible(tampering.changes)
        if tampering.process is not None:
            actor = actor_of_process(tampering.process)
            more |= unmapped_of(tampering.process)
        if after in _WELL and not tampering.given_up:
            sentence += "; it was altered, and has been put back"
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
        message=f"{sentence} (before: {before.value.lower()}).",
        actor=actor,
        state_id=state,
        state=after.value if state is ConfigState.OTHER else state.caption,
        security_level_id=_security_level(after),
        prev_security_level_id=_security_level(before),
        device=device or Device(name="unknown", type_id=DeviceType.UNKNOWN),
        observables=(*observables, *observables_of(actor)) or None,
        unmapped=more,
        metadata=own_metadata(
            stable_uid("fence", sandbox, before.value, after.value, time_ns, reason), time_ns
        ),
    )


def lifecycle(
    context: Context, *, activity: Literal["start", "stop"], time_ns: int, reason: str | None = None
) -> ApplicationLifecycle:
    """ocsf-nft started or stopped at ``time_ns`` (ns since the epoch, UTC), and why."""
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


def attribution_fell(
    context: Context, *, method: Method, reason: str, time_ns: int
) -> ApplicationLifecycle:
    """Processes can't be named any more as well as before, from ``time_ns`` on (epoch, UTC).

    ``method`` is how they are from now on.
    """
    device, observables = device_of(context)
    return ApplicationLifecycle(
        activity_id=LifecycleActivityId.OTHER,
        activity_name="Attribution Degraded",
        time=time_ns // 1_000_000,
        severity_id=Severity.MEDIUM,
        status_id=Status.FAILURE,
        status_detail=visible(reason),
        message=f"Processes are not captured any more: {visible(reason)}. {_NOW_BY[method]}",
        app=product(),
        device=device,
        observables=observables or None,
        unmapped={"method": method},
        metadata=own_metadata(stable_uid("attribution fell", method, reason, time_ns), time_ns),
    )


_NOW_BY: Final[dict[Method, str]] = {
    "socket": "From now on they are those that have the socket when it is looked up.",
    "user": "From now on events name the user alone.",
}


def gap(context: Context, lost: Gap, *, processed_ns: int) -> ApplicationLifecycle:
    """Records are missing between two moments: how many, where the transport says it.

    ``processed_ns`` is now, in ns since the epoch, UTC.
    """
    if lost.transport == "counters":
        what = "Counts may be lost, nobody knows of how many packets"
    else:
        what = "Records were lost, nobody knows how many"
        if lost.lost is not None:
            what = f"{messages.counted(lost.lost, 'record')} {_were(lost.lost)} lost"
        what = f"{what} on the way from the kernel ({lost.transport})"
    device, observables = device_of(context)
    return ApplicationLifecycle(
        activity_id=LifecycleActivityId.OTHER,
        activity_name="Records Dropped",
        time=lost.until_ns // 1_000_000,
        start_time=min(lost.since_ns, lost.until_ns) // 1_000_000,
        end_time=lost.until_ns // 1_000_000,
        duration=_duration(lost.since_ns, lost.until_ns),
        count=lost.lost,
        severity_id=Severity.HIGH,
        status_id=Status.FAILURE,
        status_detail=visible(lost.reason),
        message=f"{what}: {visible(lost.reason)}.",
        app=product(),
        device=device,
        observables=observables or None,
        unmapped={"transport": lost.transport},
        metadata=own_metadata(
            stable_uid("gap", lost.transport, lost.reason, lost.lost, lost.since_ns, lost.until_ns),
            processed_ns,
        ),
    )


def events_lost(
    context: Context, *, reason: str, number: int | None, since_ns: int, until_ns: int
) -> ApplicationLifecycle:
    """Events that were kept will not get where they were to go: how many, where that is known.

    They were given up between two moments, in ns since the epoch, UTC, the second one being now.
    """
    what = "Events may be lost, nobody knows how many"
    if number is not None:
        what = f"{messages.counted(number, 'event')} {_were(number)} lost"
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
        message=f"{what}: {visible(reason)}.",
        app=product(),
        device=device,
        observables=observables or None,
        unmapped={"transport": "store"},
        metadata=own_metadata(
            stable_uid("events lost", reason, number, since_ns, until_ns), until_ns
        ),
    )


def unread(  # noqa: PLR0913 - each is one fact of the event, named at the call
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
    """Nobody read a fence's counters and log between two moments: stopped, or late.

    ``packets`` were refused meanwhile, but for ``allowed`` of them, which a permissive fence let
    pass; events that follow count all of them, so this one's ``count`` is not to be added to
    theirs. Times are in ns since the epoch, UTC, ``processed_ns`` is now. The moments may be of two
    runs, between which the clock was set back: the time then has no length. The same arguments give
    the same event uid.
    """
    time_away = messages.elapsed(since_ns, until_ns)
    became = {"refused": packets - allowed, "let pass (it is permissive)": allowed}
    kinds = [
        f"{messages.counted(number, 'packet')} {_were(number)} {what}"
        for what, number in became.items()
        if number
    ]
    if packets:
        are = "is" if packets == 1 else "are"
        meanwhile = f"{' and '.join(kinds)} meanwhile, and {are} counted"
    else:
        meanwhile = "nothing was refused meanwhile"
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
            f"ocsf-nft did not read the fence of sandbox {visible(sandbox)} for {time_away}; "
            f"{meanwhile}."
        ),
        app=product(),
        device=device,
        observables=observables or None,
        unmapped={"sandbox": visible(sandbox)},
        metadata=own_metadata(
            stable_uid("unread", sandbox, packets, since_ns, until_ns, reason), processed_ns
        ),
    )


def _duration(since_ns: int, until_ns: int) -> int | None:
    """None where there is none, and where a clock was set back."""
    milliseconds = until_ns // 1_000_000 - since_ns // 1_000_000
    return milliseconds if milliseconds > 0 else None


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _span(tampering: Tampering | None) -> tuple[int | None, int | None]:
    """From when to when a fence was altered (ms since the epoch), as far as that is known."""
    if tampering is None or tampering.since_ns is None:
        return None, None
    start = tampering.since_ns // 1_000_000
    if tampering.lasted_ns is None:
        return start, None
    # Less than a millisecond is one: it was not nothing.
    return start, start + max(1, round(tampering.lasted_ns / 1_000_000))


def _status(state: FenceState, reason: str | None, tampering: Tampering | None) -> Status:
    if tampering is not None and tampering.given_up:
        return Status.FAILURE
    is_well = state in {FenceState.STANDING, FenceState.PERMISSIVE} or (
        state is FenceState.ABSENT and reason is None
    )
    return Status.SUCCESS if is_well else Status.FAILURE


def _severity(state: FenceState, reason: str | None, tampering: Tampering | None) -> Severity:
    """A fence that is gone for a reason is not one that was taken away as asked."""
    gone = state is FenceState.ABSENT and reason is not None
    if gone or (tampering is not None and tampering.given_up):
        return Severity.CRITICAL
    if tampering is not None:
        return max(Severity.HIGH, _SEVERITIES[state])
    return _SEVERITIES[state]


def _security_level(state: FenceState) -> SecurityLevel:
    return SecurityLevel.SECURE if state is FenceState.STANDING else SecurityLevel.AT_RISK
