"""An attempt that matters becomes a Detection Finding (class 2004), and goes on and ends as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.ocsf import wording
from ocsf_nft.ocsf.advice import advice
from ocsf_nft.ocsf.context import own_metadata
from ocsf_nft.ocsf.endpoints import observable
from ocsf_nft.ocsf.enums import (
    AnalyticType,
    Confidence,
    Direction,
    FindingActivityId,
    FindingStatus,
)
from ocsf_nft.ocsf.events import DetectionFinding
from ocsf_nft.ocsf.identity import NETWORK_ACTIVITY, event_uid, stable_uid, streak_uid
from ocsf_nft.ocsf.objects import (
    Analytic,
    Evidences,
    FindingInfo,
    RelatedEvent,
    Remediation,
    ResourceDetails,
)
from ocsf_nft.ocsf.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.attempt import Attempt, Ended, Streak
    from ocsf_nft.ocsf.addresses import Place
    from ocsf_nft.ocsf.context import Proxy
    from ocsf_nft.ocsf.enums import Severity
    from ocsf_nft.ocsf.events import NetworkActivity
    from ocsf_nft.ocsf.objects import Observable
    from ocsf_nft.record import Record


class Stage(NamedTuple):
    """How far a finding has come, in the schema's words and in ours."""

    activity: FindingActivityId
    status: FindingStatus
    words: str


#: By the names of :class:`ocsf_nft.attempt.FanOut`.
STAGES: Final = {
    "begun": Stage(FindingActivityId.CREATE, FindingStatus.NEW, "First seen now."),
    "goes on": Stage(FindingActivityId.UPDATE, FindingStatus.IN_PROGRESS, "It goes on."),
    "ended": Stage(
        FindingActivityId.CLOSE,
        FindingStatus.RESOLVED,
        "Nothing more for a while, or nobody reads any more; nobody has looked into it.",
    ),
}
_ANALYTIC: Final = Analytic(
    uid="ocsf-nft/attempt", name="Attempt", type_id=AnalyticType.RULE
).keep_json()
_TITLES: Final = {
    Direction.OUTBOUND: "Attempt to bypass the egress proxy was refused",
    Direction.INBOUND: "Attempt to get into the sandbox was refused",
    Direction.UNKNOWN: "Attempt to pass through the sandbox was refused",
}
_METADATA: Final = "Attempt to reach the cloud's metadata service was refused"
_METADATA_DESC: Final = (
    "Something in the sandbox asked the service that hands out the machine's own credentials. The "
    "fence let nothing through."
)
_DESCS: Final = {
    Direction.OUTBOUND: (
        "Something in the sandbox tried to reach a destination without the sandbox's proxy. "
        "The fence let nothing through."
    ),
    Direction.INBOUND: "Somebody sent the sandbox what it has not asked for. The fence let "
    "nothing through.",
    Direction.UNKNOWN: "Somebody tried to send packets on through the sandbox. The fence let "
    "nothing through.",
}


def of_attempt(  # noqa: PLR0913 - what is known of an attempt, named at the call
    found: Attempt | Ended,
    streak: Streak,
    event: NetworkActivity,
    stage: Stage,
    *,
    severity: Severity,
    destination: Place | None,
    proxy: Proxy | None,
    processed_ns: int,
) -> DetectionFinding:
    """The finding of an attempt; ``event`` would be its Network Activity event, told as one.

    Its numbers are running totals, of ``streak``. The same attempt gives the same event, apart
    from ``metadata.processed_time``.
    """
    record = found.record
    way = event.connection_info.direction_id
    start, end = streak.start_ns // 1_000_000, max(streak.start_ns, found.end_ns) // 1_000_000
    metadata = own_metadata(
        stable_uid("attempt", streak.identity, int(stage.activity), streak.windows), processed_ns
    ).model_copy(update={"correlation_uid": event.metadata.correlation_uid})
    sandbox = visible(record.sandbox or "")
    title = _title(way, destination)
    return DetectionFinding(
        activity_id=stage.activity,
        time=end,
        start_time=start,
        end_time=end,
        duration=None if start == end else end - start,
        count=streak.packets,
        severity_id=severity,
        status_id=stage.status,
        status_detail=stage.words,
        message=event.message,
        action_id=event.action_id,
        disposition_id=event.disposition_id,
        is_alert=stage.activity is not FindingActivityId.CLOSE,
        confidence_id=Confidence.HIGH,
        finding_info=FindingInfo(
            uid=streak_uid(streak.identity),
            title=title,
            desc=_METADATA_DESC if title == _METADATA else _DESCS[way],
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
                for identity in streak.latest
            ),
            related_events_count=streak.windows,
        ),
        remediation=Remediation(desc=_remedy(record, way, destination, proxy)),
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
        raw_data=event.raw_data,
        unmapped={"sandbox": sandbox},
        metadata=metadata,
    )


def _title(way: Direction, destination: Place | None) -> str:
    if way is Direction.OUTBOUND and destination is not None and destination.is_cloud_metadata:
        return _METADATA
    return _TITLES[way]


def _remedy(record: Record, way: Direction, destination: Place | None, proxy: Proxy | None) -> str:
    if way is not Direction.OUTBOUND:
        return "Find out who sends this, and why."
    where = wording.who(record.sandbox or "", record.uid)
    instead = advice(record, way, proxy, destination)
    return f"Find out what {where} runs, and stop it unless somebody wants it to do this. {instead}"


def _as_evidence(observables: tuple[Observable, ...]) -> Iterator[Observable]:
    """What was at the top of the attempt's event is in the finding's only evidence."""
    for each in observables:
        is_below = each.name.startswith(("src_endpoint.", "dst_endpoint."))
        name = f"evidences[0].{each.name}" if is_below else each.name
        yield observable(name, each.type_id, each.value)
