"""Detection Findings (OCSF class 2004) about scans.

In a scan, one user tries many destinations or ports within a short time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.flow import Flow
from ocsf_nft.ocsf import (
    attack,
    finding_objects,
    finding_parts,
    finding_text,
    messages,
    objects,
    packet_outcome,
    protocols,
)
from ocsf_nft.ocsf.actors import actor_of_process, observables_of, unmapped_of, user_actor
from ocsf_nft.ocsf.addresses import address_kind
from ocsf_nft.ocsf.context import cloud_of, device_of, firewall_rule, own_metadata
from ocsf_nft.ocsf.endpoints import endpoint, observable
from ocsf_nft.ocsf.enums import (
    PROTOCOL_VERSIONS,
    Confidence,
    Direction,
    ObservableType,
    Severity,
)
from ocsf_nft.ocsf.events import DetectionFinding
from ocsf_nft.ocsf.identifiers import NETWORK_ACTIVITY, aggregation_uid, event_uid, stable_uid
from ocsf_nft.ocsf.resources import resources_of
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ocsf_nft.attempt import FanOut
    from ocsf_nft.ocsf.context import Context
    from ocsf_nft.ocsf.objects import Observable
    from ocsf_nft.ocsf.packet_outcome import Answer
    from ocsf_nft.process import Process

#: Maximum number of addresses among the observables. The evidences have the whole sample.
_OBSERVED: Final = 10
#: Maximum number of bytes of all processes in evidences. A program chooses its path and arguments.
#: The finding must not be too large for a receiver.
_PROCESS_BYTES: Final = 40 << 10
_LONG_ATTRIBUTES: Final = (
    "path", "cmd_line", "working_directory", "file", "parent_process", "ancestry",
)  # fmt: skip


def fan_out(context: Context, found: FanOut, *, processed_ns: int) -> DetectionFinding:
    """Return the Detection Finding for a stage of a scan: start, growth or end.

    The finding's counts are totals since the start of the scan. Network Activity events count the
    same packets too. ``processed_ns`` is the present time (ns since the epoch).
    """
    kind, settings = finding_parts.SCAN, context.findings
    direction = packet_outcome.direction_of_rule(found.rule)
    answer = packet_outcome.answer_to_all(found.rule, direction, found.verdict)
    outcome = packet_outcome.outcome_of(answer)
    start, end = found.start_ns // 1_000_000, found.end_ns // 1_000_000
    stage = finding_parts.stage_of(
        found.stage,
        settings,
        end_ms=end,
        total=f"{messages.counted(found.packets, 'packet')} in "
        f"{messages.counted(found.flows, 'flow')}",
        is_stopped=found.is_stopped,
    )
    sole = found.sole_sender
    actor = _actor(found.uid, sole)
    evidences = tuple(_evidences(found, direction, actor))
    device, observables = device_of(context)
    message = _message(found, direction, answer)
    activity = outcome.activity
    return DetectionFinding(
        activity_id=stage.activity,
        time=end,
        start_time=start,
        end_time=end,
        count=found.packets,
        severity_id=Severity.HIGH,
        status_id=stage.status,
        status_detail=stage.detail,
        message=message,
        action_id=outcome.action,
        disposition_id=outcome.disposition,
        is_alert=settings.alert_severity <= Severity.HIGH,
        confidence_id=Confidence.HIGH,
        finding_info=finding_objects.FindingInfo(
            uid=stable_uid("fan-out", found.identity),  # the same in all findings of the scan
            title=finding_text.scan_title(found, direction),
            desc=finding_text.scan_description(found, context, direction, message),
            types=(kind.type,),
            analytic=kind.analytic,
            attacks=attack.SCAN,
            first_seen_time=start,
            last_seen_time=end,
            related_events=finding_parts.related(
                (
                    event_uid(identity),
                    NETWORK_ACTIVITY * 100 + activity,
                    f"Network Activity: {activity.caption}",
                )
                for identity in found.latest
            ),
            related_events_count=found.windows or None,
            src_url=finding_parts.runbook_link(kind, settings),
        ),
        remediation=finding_parts.remediation(
            kind, settings, finding_text.scan_advice(found, context, direction)
        ),
        firewall_rule=firewall_rule(context, found.rule),
        attacks=attack.SCAN,
        evidences=evidences,
        resources=resources_of(context, found.sandbox),
        actor=actor,
        device=device,
        cloud=cloud_of(context),
        observables=(*_observables(evidences), *observables_of(actor), *observables) or None,
        unmapped={
            "sandbox": visible(found.sandbox),
            "flows": found.flows,
            "destinations": found.destinations,
            "ports": found.ports,
            **({"processes": len(found.senders) + found.unnamed} if found.senders else {}),
            **unmapped_of(sole),
        },
        metadata=own_metadata(
            stable_uid(
                "fan-out", found.identity, found.stage, found.packets, found.flows, found.windows
            ),
            processed_ns,
            # Network Activity events that combine flows of this user have the same uid.
            aggregation_uid(found.sandbox, found.rule, found.uid, "many"),
            code=kind.code,
            context=context,
            sandbox=found.sandbox,
        ),
    )


def _actor(uid: int | None, process: Process | None) -> objects.Actor | None:
    user = None if uid is None else user_actor(uid)
    if process is None:
        return user
    of_process = actor_of_process(process)
    return of_process if user is None else of_process.model_copy(update={"user": user.user})


def _message(found: FanOut, direction: Direction, answer: Answer | None) -> str:
    outcome, end = messages.OUTCOMES[answer]
    packets = messages.counted(found.packets, "packet")
    flows = messages.counted(found.flows, "flow")
    destinations = f"at least {messages.counted(found.destinations, 'destination')}"
    if found.ports:
        destinations = f"{destinations} on {messages.counted(found.ports, 'port')}"
    sandbox = messages.sender_text(found.sandbox, None, rule=found.rule)
    if direction is Direction.OUTBOUND:
        ends = f"from {finding_text.scan_sender(found)} to {destinations}"
    elif direction is Direction.INBOUND:
        ends = f"to {destinations} in {sandbox}"
    else:
        ends = f"through {sandbox} to {destinations}"
    duration = messages.elapsed(found.start_ns, found.end_ns)
    return f"{outcome} {packets} in {flows} {ends} within {duration}{end}"


def _evidences(
    found: FanOut, direction: Direction, actor: objects.Actor | None
) -> Iterator[finding_objects.Evidences]:
    """Yield an evidence for each known process, and then for each flow of the sample.

    Processes that are too long together have no long attributes.
    """
    left = _PROCESS_BYTES
    for one, flow in _senders(found, actor):
        process = None if one is None else one.process
        if one is not None and process is not None:
            if (size := len(process.json())) > left:
                short = process.model_copy(update=dict.fromkeys(_LONG_ATTRIBUTES))
                one = one.model_copy(update={"process": short})  # noqa: PLW2901 - the same process
            else:
                left -= size
        yield _evidence(found, direction, one, flow)


def _senders(
    found: FanOut, actor: objects.Actor | None
) -> Iterator[tuple[objects.Actor | None, Flow]]:
    for each in found.senders:
        yield _actor(found.uid, each.process), each.flow
    known = {each.flow for each in found.senders}
    # Without a sample, the sandbox and the user are the only evidence.
    sample = found.sample or (() if found.senders else (Flow(uid=found.uid, protocol=None),))
    for flow in sample:
        if flow not in known:
            yield actor, flow


def _evidence(
    found: FanOut, direction: Direction, actor: objects.Actor | None, flow: Flow
) -> finding_objects.Evidences:
    is_inbound = direction is Direction.INBOUND
    destination = address_kind(flow.destination)
    return finding_objects.Evidences(
        actor=actor,
        process=None if actor is None else actor.process,
        src_endpoint=None if is_inbound else endpoint(found.sandbox),
        dst_endpoint=endpoint(
            found.sandbox if is_inbound else None, flow.destination, destination, flow.port
        ),
        connection_info=objects.NetworkConnectionInfo(
            direction_id=direction,
            protocol_num=flow.protocol,
            protocol_name=None if flow.protocol is None else protocols.NAMES.get(flow.protocol),
            protocol_ver_id=None if destination is None else PROTOCOL_VERSIONS[destination.version],
        ),
    )


def _observables(evidences: Iterable[finding_objects.Evidences]) -> Iterator[Observable]:
    addresses: dict[str, str] = {}
    for number, evidence in enumerate(evidences):
        ip = None if evidence.dst_endpoint is None else evidence.dst_endpoint.ip
        if ip is not None:
            addresses.setdefault(ip, f"evidences[{number}].dst_endpoint.ip")
    for ip, name in list(addresses.items())[:_OBSERVED]:
        yield observable(name, ObservableType.IP_ADDRESS, ip)
