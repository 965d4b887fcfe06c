"""Detection Findings (OCSF class 2004) about incidents and scans.

An incident is a series of blocked attempts of one user to reach one destination. In a scan, one
user tries many destinations or ports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.attempt import IncidentEnd
from ocsf_nft.flow import Flow
from ocsf_nft.ocsf import (
    attack,
    dns_findings,
    dns_queries,
    messages,
    objects,
    packet_outcome,
    protocols,
)
from ocsf_nft.ocsf.actors import unmapped_of, user_actor
from ocsf_nft.ocsf.addresses import address_kind
from ocsf_nft.ocsf.context import device_of, firewall_rule, labels_of, own_metadata
from ocsf_nft.ocsf.endpoints import endpoint, observable
from ocsf_nft.ocsf.enums import (
    PROTOCOL_VERSIONS,
    AnalyticType,
    Confidence,
    Direction,
    FindingActivityId,
    FindingStatus,
    ObservableType,
    Severity,
)
from ocsf_nft.ocsf.events import DetectionFinding
from ocsf_nft.ocsf.identifiers import (
    aggregation_uid,
    event_uid,
    incident_uid,
    stable_uid,
)
from ocsf_nft.ocsf.packet_outcome import Answer
from ocsf_nft.ocsf.remediation import advice, general_advice
from ocsf_nft.ocsf.safe_text import visible
from ocsf_nft.record import VM_RULES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ocsf_nft.attempt import Attempt, FanOut, Incident
    from ocsf_nft.ocsf.addresses import AddressKind
    from ocsf_nft.ocsf.context import Context, Proxy
    from ocsf_nft.ocsf.dns_tunnel import Tunnel
    from ocsf_nft.ocsf.events import NetworkActivity
    from ocsf_nft.ocsf.objects import Observable
    from ocsf_nft.record import Record

#: Activity, status and status detail by the stage in :class:`ocsf_nft.attempt.FanOut`.
_STAGES: Final = {
    "begun": (FindingActivityId.CREATE, FindingStatus.NEW, "New."),
    "goes on": (FindingActivityId.UPDATE, FindingStatus.IN_PROGRESS, "It continues."),
    "ended": (
        FindingActivityId.CLOSE,
        FindingStatus.RESOLVED,
        "No more packets for a while, or ocsf-nft has stopped. No person has reviewed it.",
    ),
}
#: Ends of a title and of a description, by the action of the fence.
_REFUSED: Final = ("was blocked", "The fence blocked all of it.")
_ALLOWED: Final = (
    "was allowed",
    "The fence is permissive and allowed all of it, which it would block otherwise.",
)
_ATTEMPT: Final = objects.Analytic(
    uid="ocsf-nft/attempt", name="Attempt", type_id=AnalyticType.RULE
).cache_json()
_FAN_OUT: Final = objects.Analytic(
    uid="ocsf-nft/fan-out", name="Fan-out", type_id=AnalyticType.RULE
).cache_json()
#: Beginning of the title of an incident, and of its description; the action of the fence follows.
_INCIDENTS: Final = {
    Direction.OUTBOUND: (
        "Attempt to bypass the egress proxy",
        "A program in the sandbox tried to reach a destination without the sandbox's proxy.",
    ),
    Direction.INBOUND: (
        "Attempt to connect to the sandbox",
        "Packets that are not replies of its proxy were sent to the sandbox.",
    ),
    Direction.UNKNOWN: (
        "Attempt to forward packets through the sandbox",
        "Packets were sent to the sandbox so that it forwards them.",
    ),
}
_METADATA: Final = (
    "Attempt to reach the cloud metadata service",
    "A program in the sandbox tried to reach the service that issues the machine's credentials.",
)
#: The same for attempts by or at a VM, by rule.
_OF_VM: Final = {
    packet_outcome.VM_FORWARD: (
        "Attempt of a VM to reach a blocked destination through its host",
        "A program in the VM sent packets that the host does not forward for a VM.",
    ),
    packet_outcome.VM_INPUT: (
        "Attempt of a VM to connect to its host",
        "A program in the VM tried to reach the host on a port that is not the gateway's.",
    ),
    packet_outcome.VM_LINK: (
        "Attempt of a VM to send spoofed or unusual frames",
        "The VM sent frames with a foreign source address, or frames that are not IP or ARP.",
    ),
    packet_outcome.VM_INGRESS: (
        "Attempt to connect to the VM",
        "Packets that are not replies on its own connections were sent to the VM.",
    ),
}
#: Descriptions of a scan.
_SCANS: Final = {
    Direction.OUTBOUND: (
        "One user tried many destinations or ports within a short time, without the sandbox's "
        "proxy."
    ),
    Direction.INBOUND: "Many ports or addresses of the sandbox were tried within a short time.",
    Direction.UNKNOWN: (
        "Many destinations or ports were tried through the sandbox within a short time."
    ),
}
#: Maximum number of addresses among the observables. The evidences have the whole sample.
_OBSERVED: Final = 10


def of_attempt(  # noqa: PLR0913 - facts about an attempt, named at the call
    found: Attempt | IncidentEnd,
    incident: Incident,
    event: NetworkActivity,
    *,
    severity: Severity,
    proxy: Proxy | None,
    tunnel: Tunnel | None = None,
    processed_ns: int,
) -> DetectionFinding:
    """Return the Detection Finding event of an incident: repeated refused packets of one flow.

    ``found`` has the packets of the incident's latest time window, or marks the incident's end.
    ``event`` is the Network Activity event with the incident's totals. ``tunnel`` is not None if
    its DNS queries are a tunnel. ``processed_ns`` is the current time (ns since the epoch).
    """
    stage = "goes on"
    if isinstance(found, IncidentEnd):
        stage = "ended"
    elif incident.found_at == incident.windows:
        stage = "begun"
    activity, status, status_text = _STAGES[stage]
    record = found.record
    destination = address_kind(record.destination)
    direction = event.connection_info.direction_id
    start, end = incident.start_ns // 1_000_000, max(incident.start_ns, found.end_ns) // 1_000_000
    metadata = own_metadata(
        stable_uid("attempt", incident.identity, int(activity), incident.windows),
        processed_ns,
        event.metadata.correlation_uid,
        labels=event.metadata.labels,
    )
    sandbox = visible(record.sandbox or "")
    title, desc = _title_and_desc(record.rule, direction, destination)
    attacks = event.attacks
    if tunnel is not None:
        title, desc = dns_findings.title_and_desc(tunnel)
        attacks = attack.DNS_TUNNEL
    outcome, outcome_desc = _ALLOWED if record.verdict == "permit" else _REFUSED
    return DetectionFinding(
        activity_id=activity,
        time=end,
        start_time=start,
        end_time=end,
        count=incident.packets,
        severity_id=severity,
        status_id=status,
        status_detail=status_text,
        message=event.message,
        action_id=event.action_id,
        disposition_id=event.disposition_id,
        is_alert=activity is not FindingActivityId.CLOSE,
        confidence_id=Confidence.HIGH,
        finding_info=objects.FindingInfo(
            uid=incident_uid(incident.identity),
            title=f"{title} {outcome}",
            desc=f"{desc} {outcome_desc}",
            types=("Policy Violation",),
            analytic=_ATTEMPT if tunnel is None else dns_findings.ANALYTIC,
            data_sources=(visible(record.origin.log_source),),
            attacks=attacks,
            first_seen_time=start,
            last_seen_time=end,
            related_events=tuple(
                objects.RelatedEvent(
                    uid=event_uid(identity),
                    type_uid=event.type_uid,
                    type_name=event.type_name,
                )
                for identity in incident.latest
            ),
            related_events_count=incident.windows,
        ),
        remediation=objects.Remediation(
            desc=_remedy(record, direction, destination, proxy) + dns_findings.advice(tunnel)
        ),
        firewall_rule=event.firewall_rule,
        attacks=attacks,
        evidences=(
            objects.Evidences(
                actor=event.actor,
                process=None if event.actor is None else event.actor.process,
                src_endpoint=event.src_endpoint,
                dst_endpoint=event.dst_endpoint,
                connection_info=event.connection_info,
                query=dns_findings.first_query(incident.questions),
            ),
            *dns_findings.more_evidences(event, incident.questions),
        ),
        resources=(objects.ResourceDetails(name=sandbox, type="sandbox"),),
        actor=event.actor,
        device=event.device,
        observables=tuple(_as_evidence(dns_findings.observables(event, incident.questions)))
        or None,
        enrichments=dns_queries.other_enrichments(event),
        raw_data=event.raw_data,
        unmapped={
            "sandbox": sandbox,
            **unmapped_of(incident.process),
            **dns_findings.unmapped_of(incident.questions, tunnel),
        },
        metadata=metadata,
    )


def _title_and_desc(
    rule: str, direction: Direction, destination: AddressKind | None
) -> tuple[str, str]:
    if (
        direction is Direction.OUTBOUND
        and destination is not None
        and destination.is_cloud_metadata
    ):
        return _METADATA
    return _OF_VM.get(rule) or _INCIDENTS[direction]


def _remedy(
    record: Record, direction: Direction, destination: AddressKind | None, proxy: Proxy | None
) -> str:
    if direction is not Direction.OUTBOUND:
        return "Find out which program sends this, and why."
    where = messages.sender_text(record.sandbox or "", record.uid, rule=record.rule)
    instead = advice(record, direction, proxy, destination)
    return f"Find out what {where} runs, and stop it unless this is intended. {instead}"


def _as_evidence(observables: tuple[Observable, ...]) -> Iterator[Observable]:
    # For example, the path ``dst_endpoint.ip`` becomes ``evidences[0].dst_endpoint.ip``.
    for each in observables:
        is_below = each.name.startswith(("src_endpoint.", "dst_endpoint."))
        name = f"evidences[0].{each.name}" if is_below else each.name
        yield observable(name, each.type_id, each.value)


def fan_out(context: Context, found: FanOut, *, processed_ns: int) -> DetectionFinding:
    """Return the Detection Finding for a stage of a scan: start, growth or end.

    The finding's counts are totals since the start of the scan. Network Activity events count the
    same packets too. ``processed_ns`` is the present time (ns since the epoch).
    """
    activity, status, status_text = _STAGES[found.stage]
    direction = packet_outcome.direction_of_rule(found.rule)
    answer = packet_outcome.answer_to_all(found.rule, direction, found.verdict)
    outcome = packet_outcome.outcome_of(answer)
    outcome_title, outcome_desc = _ALLOWED if answer is Answer.PERMITTED else _REFUSED
    start, end = found.start_ns // 1_000_000, found.end_ns // 1_000_000
    actor = None if found.uid is None else user_actor(found.uid)
    # Without a sample, the sandbox and the user are the only evidence.
    flows = found.sample or (Flow(uid=found.uid, protocol=None),)
    evidences = tuple(_evidence(found, direction, actor, flow) for flow in flows)
    device, observables = device_of(context)
    metadata = own_metadata(
        stable_uid("fan-out", found.identity, found.stage, found.packets, found.flows),
        processed_ns,
        # Network Activity events that combine flows of this user have the same uid.
        aggregation_uid(found.sandbox, found.rule, found.uid, "many"),
        labels=labels_of(context),
    )
    return DetectionFinding(
        activity_id=activity,
        time=end,
        start_time=start,
        end_time=end,
        count=found.packets,
        severity_id=Severity.HIGH,
        status_id=status,
        status_detail=status_text,
        message=_scan_message(found, direction, answer),
        action_id=outcome.action,
        disposition_id=outcome.disposition,
        is_alert=activity is not FindingActivityId.CLOSE,
        confidence_id=Confidence.HIGH,
        finding_info=objects.FindingInfo(
            uid=stable_uid("fan-out", found.identity),  # the same in all findings of the scan
            title=f"Fan-out to many destinations or ports {outcome_title}",
            desc=(
                f"{_SCANS[direction]} This is typical of a scan. {outcome_desc} "
                "The numbers of flows, destinations and ports are lower bounds."
            ),
            types=("Fan-out",),
            analytic=_FAN_OUT,
            attacks=attack.SCAN,
            first_seen_time=start,
            last_seen_time=end,
        ),
        remediation=objects.Remediation(desc=_scan_remedy(context, found, direction)),
        firewall_rule=firewall_rule(context, found.rule, is_ours=True),
        attacks=attack.SCAN,
        evidences=evidences,
        resources=(objects.ResourceDetails(name=visible(found.sandbox), type="sandbox"),),
        actor=actor,
        device=device,
        observables=(*_scan_observables(evidences, found.uid), *observables) or None,
        unmapped={
            "sandbox": visible(found.sandbox),
            "flows": found.flows,
            "destinations": found.destinations,
            "ports": found.ports,
        },
        metadata=metadata,
    )


def _scan_message(found: FanOut, direction: Direction, answer: Answer | None) -> str:
    outcome, end = messages.OUTCOMES[answer]
    packets = messages.counted(found.packets, "packet")
    flows = messages.counted(found.flows, "flow")
    destinations = f"at least {messages.counted(found.destinations, 'destination')}"
    if found.ports:
        destinations = f"{destinations} on {messages.counted(found.ports, 'port')}"
    sandbox = messages.sender_text(found.sandbox, None, rule=found.rule)
    if direction is Direction.OUTBOUND:
        sender = messages.sender_text(found.sandbox, found.uid, rule=found.rule)
        ends = f"from {sender} to {destinations}"
    elif direction is Direction.INBOUND:
        ends = f"to {destinations} in {sandbox}"
    else:
        ends = f"through {sandbox} to {destinations}"
    duration = messages.elapsed(found.start_ns, found.end_ns)
    return f"{outcome} {packets} in {flows} {ends} within {duration}{end}"


def _scan_remedy(context: Context, found: FanOut, direction: Direction) -> str:
    if direction is Direction.INBOUND:
        advice = general_advice(found.rule, direction, None)
        return f"Find out which program sends this, and why. {advice}"
    sender = messages.sender_text(found.sandbox, found.uid, rule=found.rule)
    if found.rule in VM_RULES:
        advice = general_advice(found.rule, direction, None)
    else:
        proxies = context.proxies
        proxy = f"the proxy at {proxies[0].url}" if proxies else "the sandbox's proxy"
        advice = f"Intended traffic must use {proxy}."
    return f"Find out what {sender} runs, and stop it unless this is intended. {advice}"


def _evidence(
    found: FanOut, direction: Direction, actor: objects.Actor | None, flow: Flow
) -> objects.Evidences:
    is_inbound = direction is Direction.INBOUND
    destination = address_kind(flow.destination)
    return objects.Evidences(
        actor=actor,
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


def _scan_observables(
    evidences: Iterable[objects.Evidences], uid: int | None
) -> Iterable[Observable]:
    addresses: dict[str, str] = {}
    for number, evidence in enumerate(evidences):
        ip = None if evidence.dst_endpoint is None else evidence.dst_endpoint.ip
        if ip is not None:
            addresses.setdefault(ip, f"evidences[{number}].dst_endpoint.ip")
    for ip, name in list(addresses.items())[:_OBSERVED]:
        yield observable(name, ObservableType.IP_ADDRESS, ip)
    if uid is not None:
        yield observable("actor.user.uid", ObservableType.USER_UID, str(uid))
