"""Mapping of a scan (one user tries many destinations or ports) to a Detection Finding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.ocsf import attack, messages, packet_outcome, protocols
from ocsf_nft.ocsf.addresses import address_kind
from ocsf_nft.ocsf.context import device_of, own_metadata
from ocsf_nft.ocsf.endpoints import endpoint, observable
from ocsf_nft.ocsf.enums import (
    AnalyticType,
    Confidence,
    Direction,
    ObservableType,
    ProtocolVersion,
    Severity,
)
from ocsf_nft.ocsf.event_uids import aggregation_uid, stable_uid
from ocsf_nft.ocsf.events import DetectionFinding
from ocsf_nft.ocsf.findings import STAGES, fence_action
from ocsf_nft.ocsf.firewall_rule import firewall_rule
from ocsf_nft.ocsf.objects import (
    Actor,
    Analytic,
    Evidences,
    FindingInfo,
    NetworkConnectionInfo,
    NetworkEndpoint,
    Remediation,
    ResourceDetails,
    User,
)
from ocsf_nft.ocsf.packet_outcome import Answer
from ocsf_nft.ocsf.remediation import general_advice
from ocsf_nft.ocsf.safe_text import visible
from ocsf_nft.record import VM_RULES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.attempt import FanOut
    from ocsf_nft.flow import Flow
    from ocsf_nft.ocsf.context import Context
    from ocsf_nft.ocsf.objects import Observable

_ANALYTIC: Final = Analytic(
    uid="ocsf-nft/fan-out", name="Fan-out", type_id=AnalyticType.RULE
).cache_json()
#: Maximum number of addresses among the observables. The evidences have the whole sample.
_OBSERVED: Final = 10
_DESCS: Final = {
    Direction.OUTBOUND: (
        "One user tried many destinations or ports within a short time, without the sandbox's "
        "proxy."
    ),
    Direction.INBOUND: "Many ports or addresses of the sandbox were tried within a short time.",
    Direction.UNKNOWN: (
        "Many destinations or ports were tried through the sandbox within a short time."
    ),
}
_VERSIONS: Final = {4: ProtocolVersion.IPV4, 6: ProtocolVersion.IPV6}


def fan_out(context: Context, found: FanOut, *, processed_ns: int) -> DetectionFinding:
    """Return the Detection Finding for a stage of a scan: start, growth or end.

    The finding's counts are totals since the start of the scan. Network Activity events count the
    same packets too. ``processed_ns`` is the present time (ns since the epoch).
    """
    stage = STAGES[found.stage]
    direction = packet_outcome.direction_of_rule(found.rule)
    answer = packet_outcome.answer_to_all(found.rule, direction, found.verdict)
    outcome = packet_outcome.outcome_of(answer)
    action = fence_action(is_permitted=answer is Answer.PERMITTED)
    start, end = found.start_ns // 1_000_000, found.end_ns // 1_000_000
    actor = None if found.uid is None else Actor(user=User(uid=str(found.uid))).cache_json()
    evidences = _evidences(found, direction, actor)
    device, observables = device_of(context)
    metadata = own_metadata(
        stable_uid("fan-out", found.identity, found.stage, found.packets, found.flows),
        processed_ns,
        # Network Activity events that combine flows of this user have the same uid.
        aggregation_uid(found.sandbox, found.rule, found.uid, "many"),
    )
    return DetectionFinding(
        activity_id=stage.activity,
        time=end,
        start_time=start,
        end_time=end,
        count=found.packets,
        severity_id=Severity.HIGH,
        status_id=stage.status,
        status_detail=stage.text,
        message=_message(found, direction, answer),
        action_id=outcome.action,
        disposition_id=outcome.disposition,
        is_alert=found.stage != "ended",
        confidence_id=Confidence.HIGH,
        finding_info=FindingInfo(
            uid=stable_uid("fan-out", found.identity),  # the same in all findings of the scan
            title=f"Fan-out to many destinations or ports {action.title}",
            desc=(
                f"{_DESCS[direction]} This is typical of a scan. {action.desc} "
                "The numbers of flows, destinations and ports are lower bounds."
            ),
            types=("Fan-out",),
            analytic=_ANALYTIC,
            attacks=attack.SCAN,
            first_seen_time=start,
            last_seen_time=end,
        ),
        remediation=Remediation(desc=_remedy(context, found, direction)),
        firewall_rule=firewall_rule(context, found.rule, is_ours=True),
        attacks=attack.SCAN,
        evidences=evidences,
        resources=(ResourceDetails(name=visible(found.sandbox), type="sandbox"),),
        actor=actor,
        device=device,
        observables=(*_observables(evidences, found.uid), *observables) or None,
        unmapped={
            "sandbox": visible(found.sandbox),
            "flows": found.flows,
            "destinations": found.destinations,
            "ports": found.ports,
        },
        metadata=metadata,
    )


def _message(found: FanOut, direction: Direction, answer: Answer | None) -> str:
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


def _remedy(context: Context, found: FanOut, direction: Direction) -> str:
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


def _evidences(found: FanOut, direction: Direction, actor: Actor | None) -> tuple[Evidences, ...]:
    source = None if direction is Direction.INBOUND else endpoint(found.sandbox)
    flows: Iterable[Flow | None] = found.sample or (None,)
    return tuple(
        Evidences(
            actor=actor,
            src_endpoint=source,
            dst_endpoint=_destination(found, direction, flow),
            connection_info=_connection(direction, flow),
        )
        for flow in flows
    )


def _destination(found: FanOut, direction: Direction, flow: Flow | None) -> NetworkEndpoint | None:
    return endpoint(
        found.sandbox if direction is Direction.INBOUND else None,
        None if flow is None else flow.destination,
        None if flow is None else address_kind(flow.destination),
        None if flow is None else flow.port,
    )


def _connection(direction: Direction, flow: Flow | None) -> NetworkConnectionInfo:
    if flow is None:
        return NetworkConnectionInfo(direction_id=direction)
    destination = address_kind(flow.destination)
    return NetworkConnectionInfo(
        direction_id=direction,
        protocol_num=flow.protocol,
        protocol_name=None if flow.protocol is None else protocols.NAMES.get(flow.protocol),
        protocol_ver_id=None if destination is None else _VERSIONS[destination.version],
    )


def _observables(evidences: Iterable[Evidences], uid: int | None) -> Iterable[Observable]:
    addresses: dict[str, str] = {}
    for number, evidence in enumerate(evidences):
        ip = None if evidence.dst_endpoint is None else evidence.dst_endpoint.ip
        if ip is not None:
            addresses.setdefault(ip, f"evidences[{number}].dst_endpoint.ip")
    for ip, name in list(addresses.items())[:_OBSERVED]:
        yield observable(name, ObservableType.IP_ADDRESS, ip)
    if uid is not None:
        yield observable("actor.user.uid", ObservableType.USER_UID, str(uid))
