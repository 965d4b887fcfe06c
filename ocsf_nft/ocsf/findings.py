"""Detection Findings (OCSF class 2004) about incidents.

An incident is a series of blocked attempts of one user to reach one destination.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.attempt import IncidentEnd
from ocsf_nft.ocsf import (
    attack,
    dns_findings,
    dns_queries,
    finding_objects,
    finding_parts,
    finding_text,
    packet_outcome,
)
from ocsf_nft.ocsf.actors import unmapped_of
from ocsf_nft.ocsf.addresses import address_kind
from ocsf_nft.ocsf.context import own_metadata
from ocsf_nft.ocsf.endpoints import observable
from ocsf_nft.ocsf.enums import Confidence, Direction, Severity
from ocsf_nft.ocsf.events import DetectionFinding
from ocsf_nft.ocsf.identifiers import event_uid, incident_uid, stable_uid
from ocsf_nft.ocsf.messages import counted
from ocsf_nft.ocsf.resources import resources_of
from ocsf_nft.ocsf.safe_text import visible
from ocsf_nft.record import VM_RULES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.attempt import Attempt, Incident
    from ocsf_nft.ocsf.context import Context, Proxy
    from ocsf_nft.ocsf.dns_tunnel import Tunnel
    from ocsf_nft.ocsf.events import NetworkActivity
    from ocsf_nft.ocsf.finding_parts import FindingKind
    from ocsf_nft.ocsf.objects import Observable
    from ocsf_nft.record import Record


def of_attempt(  # noqa: PLR0913 - facts about an attempt, named at the call
    context: Context,
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
    record, settings = found.record, context.findings
    start, end = incident.start_ns // 1_000_000, max(incident.start_ns, found.end_ns) // 1_000_000
    stage_name: finding_parts.StageName = "goes on"
    is_stopped = False
    if isinstance(found, IncidentEnd):
        stage_name, is_stopped = "ended", found.is_stopped
    elif incident.found_at == incident.windows:
        stage_name = "begun"
    stage = finding_parts.stage_of(
        stage_name,
        settings,
        end_ms=end,
        total=counted(incident.packets, "packet"),
        is_stopped=is_stopped,
    )
    destination = address_kind(record.destination)
    direction = event.connection_info.direction_id
    is_metadata = packet_outcome.is_metadata_access(record, direction, destination)
    words = finding_text.incident_words(record, direction, is_metadata=is_metadata)
    kind, attacks = _kind(record, direction, is_metadata=is_metadata), event.attacks
    if tunnel is not None:
        words = dns_findings.words(tunnel)
        kind, attacks = finding_parts.DNS_TUNNEL, attack.DNS_TUNNEL
    sandbox = visible(record.sandbox or "")
    return DetectionFinding(
        activity_id=stage.activity,
        time=end,
        start_time=start,
        end_time=end,
        count=incident.packets,
        severity_id=severity,
        status_id=stage.status,
        status_detail=stage.detail,
        message=event.message,
        action_id=event.action_id,
        disposition_id=event.disposition_id,
        is_alert=severity >= settings.alert_severity,
        confidence_id=Confidence.HIGH,
        finding_info=finding_objects.FindingInfo(
            uid=incident_uid(incident.identity),
            title=finding_text.incident_title(words[0], record, incident, direction),
            desc=finding_text.incident_description(
                words[1],
                record,
                incident,
                direction=direction,
                context=context,
                message=event.message,
                end_ms=end,
            ),
            types=(kind.type,),
            analytic=kind.analytic,
            data_sources=(visible(record.origin.log_source),),
            attacks=attacks,
            first_seen_time=start,
            last_seen_time=end,
            related_events=finding_parts.related(
                (event_uid(identity), event.type_uid, event.type_name)
                for identity in incident.latest
            ),
            related_events_count=incident.windows,
            src_url=finding_parts.runbook_link(kind, settings),
        ),
        remediation=finding_parts.remediation(
            kind,
            settings,
            finding_text.incident_advice(
                record,
                incident,
                direction=direction,
                destination=destination,
                proxy=proxy,
                more=dns_findings.advice(tunnel),
            ),
        ),
        firewall_rule=event.firewall_rule,
        attacks=attacks,
        evidences=(
            finding_objects.Evidences(
                actor=event.actor,
                process=None if event.actor is None else event.actor.process,
                src_endpoint=event.src_endpoint,
                dst_endpoint=event.dst_endpoint,
                connection_info=event.connection_info,
                query=dns_findings.first_query(incident.questions),
            ),
            *dns_findings.more_evidences(event, incident.questions),
        ),
        resources=resources_of(context, record.sandbox or ""),
        actor=event.actor,
        device=event.device,
        cloud=event.cloud,
        observables=tuple(_as_evidence(dns_findings.observables(event, incident.questions)))
        or None,
        enrichments=dns_queries.other_enrichments(event),
        raw_data=event.raw_data,
        unmapped={
            "sandbox": sandbox,
            **unmapped_of(incident.process),
            **dns_findings.unmapped_of(incident.questions, tunnel),
        },
        metadata=own_metadata(
            stable_uid("attempt", incident.identity, stage_name, incident.windows),
            processed_ns,
            event.metadata.correlation_uid,
            code=kind.code,
            context=context,
            sandbox=record.sandbox,
        ),
    )


def _kind(record: Record, direction: Direction, *, is_metadata: bool) -> FindingKind:
    if is_metadata:
        return finding_parts.CLOUD_METADATA
    if direction is not Direction.OUTBOUND:
        return finding_parts.INBOUND
    if record.verdict == "permit":
        return finding_parts.PERMISSIVE
    return finding_parts.VM_BYPASS if record.rule in VM_RULES else finding_parts.BYPASS


def _as_evidence(observables: tuple[Observable, ...]) -> Iterator[Observable]:
    # For example, the path ``dst_endpoint.ip`` becomes ``evidences[0].dst_endpoint.ip``.
    for each in observables:
        is_below = each.name.startswith(("src_endpoint.", "dst_endpoint."))
        name = f"evidences[0].{each.name}" if is_below else each.name
        yield observable(name, each.type_id, each.value)
