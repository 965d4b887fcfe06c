"""Detection Findings (OCSF class 2004) about incidents.

An incident is a series of blocked attempts of one user to reach one destination. A finding reports
one of these attempts, or the end of the incident.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.ocsf import messages, packet_outcome
from ocsf_nft.ocsf.actors import unmapped_of
from ocsf_nft.ocsf.context import own_metadata
from ocsf_nft.ocsf.endpoints import observable
from ocsf_nft.ocsf.enums import (
    AnalyticType,
    Confidence,
    Direction,
    FindingActivityId,
    FindingStatus,
)
from ocsf_nft.ocsf.event_uids import NETWORK_ACTIVITY, event_uid, incident_uid, stable_uid
from ocsf_nft.ocsf.events import DetectionFinding
from ocsf_nft.ocsf.objects import (
    Analytic,
    Evidences,
    FindingInfo,
    RelatedEvent,
    Remediation,
    ResourceDetails,
)
from ocsf_nft.ocsf.remediation import advice
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.attempt import Attempt, Incident, IncidentEnd
    from ocsf_nft.ocsf.addresses import AddressKind
    from ocsf_nft.ocsf.context import Proxy
    from ocsf_nft.ocsf.enums import Severity
    from ocsf_nft.ocsf.events import NetworkActivity
    from ocsf_nft.ocsf.objects import Observable
    from ocsf_nft.record import Record


class Stage(NamedTuple):
    """Stage of a finding: new, in progress or ended.

    ``text`` is a sentence that describes the stage to a person.
    """

    activity: FindingActivityId
    status: FindingStatus
    text: str


#: Stages by their names in :class:`ocsf_nft.attempt.FanOut`.
STAGES: Final = {
    "begun": Stage(FindingActivityId.CREATE, FindingStatus.NEW, "New."),
    "goes on": Stage(FindingActivityId.UPDATE, FindingStatus.IN_PROGRESS, "It continues."),
    "ended": Stage(
        FindingActivityId.CLOSE,
        FindingStatus.RESOLVED,
        "No more packets for a while, or ocsf-nft has stopped. No person has reviewed it.",
    ),
}
_ANALYTIC: Final = Analytic(
    uid="ocsf-nft/attempt", name="Attempt", type_id=AnalyticType.RULE
).cache_json()
#: Beginnings of the titles; the action of the fence follows.
_TITLES: Final = {
    Direction.OUTBOUND: "Attempt to bypass the egress proxy",
    Direction.INBOUND: "Attempt to connect to the sandbox",
    Direction.UNKNOWN: "Attempt to forward packets through the sandbox",
}
_METADATA: Final = "Attempt to reach the cloud metadata service"
_METADATA_DESC: Final = (
    "A program in the sandbox tried to reach the service that issues the machine's credentials."
)
_DESCS: Final = {
    Direction.OUTBOUND: (
        "A program in the sandbox tried to reach a destination without the sandbox's proxy."
    ),
    Direction.INBOUND: "Packets that are not replies of its proxy were sent to the sandbox.",
    Direction.UNKNOWN: "Packets were sent to the sandbox so that it forwards them.",
}


#: Title and description of attempts by or at a VM, by rule.
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


class FenceAction(NamedTuple):
    """Words for the fence's action on the packets, such as "was blocked".

    ``title`` is the end of a finding's title, and ``desc`` the end of its description.
    """

    title: str
    desc: str


def fence_action(*, is_permitted: bool) -> FenceAction:
    """Return the words for the fence's action: allowed if ``is_permitted``, else blocked."""
    return _ALLOWED if is_permitted else _REFUSED


_REFUSED: Final = FenceAction("was blocked", "The fence blocked all of it.")
_ALLOWED: Final = FenceAction(
    "was allowed", "The fence is permissive and allowed all of it, which it would block otherwise."
)


def of_attempt(  # noqa: PLR0913 - facts about an attempt, named at the call
    found: Attempt | IncidentEnd,
    incident: Incident,
    event: NetworkActivity,
    stage: Stage,
    *,
    severity: Severity,
    destination: AddressKind | None,
    proxy: Proxy | None,
    processed_ns: int,
) -> DetectionFinding:
    """Return the Detection Finding event of an incident: repeated refused packets of one flow.

    ``found`` has the packets of the incident's latest time window, or marks the incident's end.
    ``event`` is the Network Activity event with the incident's totals. ``processed_ns`` is the
    current time (ns since the epoch).
    """
    record = found.record
    direction = event.connection_info.direction_id
    start, end = incident.start_ns // 1_000_000, max(incident.start_ns, found.end_ns) // 1_000_000
    metadata = own_metadata(
        stable_uid("attempt", incident.identity, int(stage.activity), incident.windows),
        processed_ns,
        event.metadata.correlation_uid,
    )
    sandbox = visible(record.sandbox or "")
    title, desc = _title_and_desc(record.rule, direction, destination)
    action = fence_action(is_permitted=record.verdict == "permit")
    return DetectionFinding(
        activity_id=stage.activity,
        time=end,
        start_time=start,
        end_time=end,
        count=incident.packets,
        severity_id=severity,
        status_id=stage.status,
        status_detail=stage.text,
        message=event.message,
        action_id=event.action_id,
        disposition_id=event.disposition_id,
        is_alert=stage.activity is not FindingActivityId.CLOSE,
        confidence_id=Confidence.HIGH,
        finding_info=FindingInfo(
            uid=incident_uid(incident.identity),
            title=f"{title} {action.title}",
            desc=f"{desc} {action.desc}",
            types=("Policy Violation",),
            analytic=_ANALYTIC,
            data_sources=(visible(record.origin.log_source),),
            attacks=event.attacks,
            first_seen_time=start,
            last_seen_time=end,
            related_events=tuple(
                RelatedEvent(
                    uid=event_uid(NETWORK_ACTIVITY, identity),
                    type_uid=event.type_uid,
                    type_name=event.type_name,
                )
                for identity in incident.latest
            ),
            related_events_count=incident.windows,
        ),
        remediation=Remediation(desc=_remedy(record, direction, destination, proxy)),
        firewall_rule=event.firewall_rule,
        attacks=event.attacks,
        evidences=(
            Evidences(
                actor=event.actor,
                process=None if event.actor is None else event.actor.process,
                src_endpoint=event.src_endpoint,
                dst_endpoint=event.dst_endpoint,
                connection_info=event.connection_info,
            ),
        ),
        resources=(ResourceDetails(name=sandbox, type="sandbox"),),
        actor=event.actor,
        device=event.device,
        observables=tuple(_as_evidence(event.observables or ())) or None,
        enrichments=event.enrichments,
        raw_data=event.raw_data,
        unmapped={"sandbox": sandbox, **unmapped_of(incident.process)},
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
        return _METADATA, _METADATA_DESC
    return _OF_VM.get(rule) or (_TITLES[direction], _DESCS[direction])


def _remedy(
    record: Record, direction: Direction, destination: AddressKind | None, proxy: Proxy | None
) -> str:
    if direction is not Direction.OUTBOUND:
        return "Find out which program sends this, and why."
    where = messages.sender_text(record.sandbox or "", record.uid, rule=record.rule)
    instead = advice(record, direction, proxy, destination)
    return f"Find out what {where} runs, and stop it unless this is intended. {instead}"


def _as_evidence(observables: tuple[Observable, ...]) -> Iterator[Observable]:
    """Yield the observables of a Network Activity event, with the paths that a finding needs.

    For example, the path ``dst_endpoint.ip`` becomes ``evidences[0].dst_endpoint.ip``.
    """
    for each in observables:
        is_below = each.name.startswith(("src_endpoint.", "dst_endpoint."))
        name = f"evidences[0].{each.name}" if is_below else each.name
        yield observable(name, each.type_id, each.value)
