"""Events about ourselves: what became of a fence (5019), and of ocsf-nft (6002)."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal

from ocsf_nft.ocsf import wording
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
from ocsf_nft.ocsf.identity import stable_uid
from ocsf_nft.ocsf.objects import Device
from ocsf_nft.ocsf.text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.ocsf.context import Context
    from ocsf_nft.record import Gap


class FenceState(Enum):
    """How a fence stands.

    ``DEGRADED``: it refuses, and not all of what it refuses is logged. ``ALTERED``: nobody can say
    what it refuses, because it is not what was installed, or may not be looked at.
    """

    ABSENT = "Absent"
    STANDING = "Standing"
    DEGRADED = "Degraded"
    ALTERED = "Altered"


_CONFIG_STATES: Final = {
    FenceState.ABSENT: ConfigState.DISABLED,
    FenceState.STANDING: ConfigState.ENABLED,
    FenceState.DEGRADED: ConfigState.OTHER,
    FenceState.ALTERED: ConfigState.OTHER,
}
_SEVERITIES: Final = {
    FenceState.ABSENT: Severity.MEDIUM,
    FenceState.STANDING: Severity.INFORMATIONAL,
    FenceState.DEGRADED: Severity.HIGH,
    FenceState.ALTERED: Severity.HIGH,
}
_SENTENCES: Final = {
    FenceState.ABSENT: "The fence of sandbox {sandbox} is gone: nothing holds the sandbox back",
    FenceState.STANDING: "The fence of sandbox {sandbox} stands, and logs what it refuses",
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
) -> DeviceConfigStateChange:
    """What became of a sandbox's fence.

    ``time_ns`` is when, in ns since the epoch, UTC. ``tables`` are named ``family name``;
    ``transport`` is how the fence logs, ``reason`` why it is not as it should be. The same
    arguments give the same event uid.
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
    return DeviceConfigStateChange(
        activity_id=ConfigActivityId.LOG,
        time=time_ns // 1_000_000,
        severity_id=_severity(after, reason),
        status_id=_status(after, reason),
        status_detail=None if reason is None else visible(reason),
        message=f"{sentence} (before: {before.value.lower()}).",
        state_id=state,
        state=after.value if state is ConfigState.OTHER else state.caption,
        security_level_id=_security_level(after),
        prev_security_level_id=_security_level(before),
        device=device or Device(name="unknown", type_id=DeviceType.UNKNOWN),
        observables=observables or None,
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


def gap(context: Context, lost: Gap, *, processed_ns: int) -> ApplicationLifecycle:
    """Records are missing between two moments: how many, where the transport says it.

    ``processed_ns`` is now, in ns since the epoch, UTC.
    """
    if lost.transport == "counters":
        what = "Counts may be lost, nobody knows of how many packets"
    else:
        what = "Records were lost, nobody knows how many"
        if lost.lost is not None:
            what = f"{wording.counted(lost.lost, 'record')} {_were(lost.lost)} lost"
        what = f"{what} on the way from the kernel ({lost.transport})"
    device, observables = device_of(context)
    return ApplicationLifecycle(
        activity_id=LifecycleActivityId.OTHER,
        activity_name="Records Lost",
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


def unread(  # noqa: PLR0913 - each is one fact of the event, named at the call
    context: Context,
    *,
    sandbox: str,
    packets: int,
    since_ns: int,
    until_ns: int,
    reason: str,
    processed_ns: int,
) -> ApplicationLifecycle:
    """Nobody read a fence's counters and log between two moments: stopped, or late.

    ``packets`` were refused meanwhile; events that follow count all of them, so this one's
    ``count`` is not to be added to theirs. Times are in ns since the epoch, UTC, ``processed_ns``
    is now. The moments may be of two runs, between which the clock was set back: the time then
    has no length. The same arguments give the same event uid.
    """
    time_away = wording.elapsed(since_ns, until_ns)
    if packets:
        refused = f"{wording.counted(packets, 'packet')} {_were(packets)} refused meanwhile"
        meanwhile = f"{refused}, and {'is' if packets == 1 else 'are'} counted"
    else:
        meanwhile = "nothing was refused meanwhile"
    device, observables = device_of(context)
    return ApplicationLifecycle(
        activity_id=LifecycleActivityId.OTHER,
        activity_name="Not Reading",
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


def _status(state: FenceState, reason: str | None) -> Status:
    is_well = state is FenceState.STANDING or (state is FenceState.ABSENT and reason is None)
    return Status.SUCCESS if is_well else Status.FAILURE


def _severity(state: FenceState, reason: str | None) -> Severity:
    """A fence that is gone for a reason is not one that was taken away as asked."""
    gone = state is FenceState.ABSENT and reason is not None
    return Severity.CRITICAL if gone else _SEVERITIES[state]


def _security_level(state: FenceState) -> SecurityLevel:
    return SecurityLevel.SECURE if state is FenceState.STANDING else SecurityLevel.AT_RISK
