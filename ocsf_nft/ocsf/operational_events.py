"""Events about ocsf-nft itself (class 6002)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from ocsf_nft.ocsf import messages
from ocsf_nft.ocsf.actors import container_of
from ocsf_nft.ocsf.context import cloud_of, device_of, own_metadata, product
from ocsf_nft.ocsf.enums import LifecycleActivityId, Severity, Status
from ocsf_nft.ocsf.event_codes import EventCode
from ocsf_nft.ocsf.events import ApplicationLifecycle
from ocsf_nft.ocsf.identifiers import stable_uid
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.ocsf.context import Context
    from ocsf_nft.ocsf.objects import Metadata
    from ocsf_nft.process import Method, Process
    from ocsf_nft.record import Gap


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
        cloud=cloud_of(context),
        metadata=own_metadata(
            stable_uid("lifecycle", activity, time_ns),
            time_ns,
            code=EventCode.SERVICE_STARTED if started else EventCode.SERVICE_STOPPED,
            context=context,
        ),
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
        own_metadata(
            stable_uid("attribution degraded", method, reason, time_ns),
            time_ns,
            code=EventCode.ATTRIBUTION_DEGRADED,
            context=context,
        ),
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


def log_group_taken(  # noqa: PLR0913 - each is one fact of the event, named at the call
    context: Context,
    *,
    sandbox: str,
    taken: int,
    group: int,
    process: Process | None,
    time_ns: int,
) -> ApplicationLifecycle:
    """Return the event about an NFLOG group that another program held.

    ``taken`` is that group, and ``group`` the one to which the fence logs from ``time_ns`` on (ns
    since the epoch, UTC). ``process`` holds ``taken``; None if unknown.
    """
    holder = "another program"
    if process is not None:
        holder = f"{visible(process.name or 'a process')} (pid {process.pid})"
    name = visible(sandbox)
    return _fault_event(
        context,
        "Log Group Taken",
        own_metadata(
            stable_uid("log group taken", sandbox, taken, group, time_ns),
            time_ns,
            code=EventCode.LOG_GROUP_TAKEN,
            context=context,
            sandbox=sandbox,
        ),
        severity=Severity.HIGH,
        reason=f"{holder} holds NFLOG group {taken}",
        message=(
            f"NFLOG group {taken} of sandbox {name} is held by {holder}. Its fence logs to group "
            f"{group} now. Packets that it blocked before are counted, but may lack a record."
        ),
        until_ns=time_ns,
        unmapped={"sandbox": name},
    )


def records_not_counted(
    context: Context, *, sandbox: str, rules: Mapping[str, int], since_ns: int, until_ns: int
) -> ApplicationLifecycle:
    """Return the event about log records that the fence of a sandbox did not log.

    ``rules`` has the number of these records by rule. They came between ``since_ns`` and
    ``until_ns``, the present time (both in ns since the epoch, UTC).
    """
    number, name = sum(rules.values()), visible(sandbox)
    by_rule = ", ".join(f"{visible(rule)} {count}" for rule, count in sorted(rules.items()))
    reason = "another program makes log records with the prefix of the fence"
    return _fault_event(
        context,
        "Records Not Counted",
        own_metadata(
            stable_uid("records not counted", sandbox, by_rule, since_ns, until_ns),
            until_ns,
            code=EventCode.RECORDS_NOT_COUNTED,
            context=context,
            sandbox=sandbox,
        ),
        severity=Severity.HIGH,
        reason=reason,
        message=(
            f"{_were(number, 'log record')} not logged by the fence of sandbox {name} "
            f"(rule {by_rule}): {reason}. Events from its records alone have a Low confidence now."
        ),
        since_ns=since_ns,
        until_ns=until_ns,
        count=number,
        unmapped={"sandbox": name},
    )


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
        own_metadata(uid, processed_ns, code=EventCode.RECORDS_DROPPED, context=context),
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
        own_metadata(uid, until_ns, code=EventCode.EVENTS_DROPPED, context=context),
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
        own_metadata(
            uid,
            now_ns,
            correlation_uid,
            code=EventCode.FAULT_CLEARED if is_cleared else EventCode.FAULT,
            context=context,
            sandbox=sandbox,
        ),
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
        own_metadata(
            uid, processed_ns, code=EventCode.COLLECTION_GAP, context=context, sandbox=sandbox
        ),
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
    device, observables = device_of(context, container_of(context.container))
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
        cloud=cloud_of(context),
        observables=observables or None,
        unmapped=unmapped,
        metadata=metadata,
    )


def _were(number: int, noun: str) -> str:
    return f"{messages.counted(number, noun)} {'was' if number == 1 else 'were'}"
