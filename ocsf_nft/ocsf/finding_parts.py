"""Parts that all Detection Findings share: kind, stage, times, links and advice.

A finding stays New: only people review it. Its last event is an Update that states since when it is
inactive, unless the configuration closes findings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from ocsf_nft.ocsf.enums import AnalyticType, FindingActivityId, FindingStatus
from ocsf_nft.ocsf.event_codes import EventCode
from ocsf_nft.ocsf.finding_objects import Analytic, RelatedEvent, Remediation
from ocsf_nft.utc_text import utc_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.ocsf.finding_settings import FindingSettings

#: Folder of the runbook in the documentation.
_RUNBOOK: Final = "docs/how-to/runbook/"
StageName: TypeAlias = Literal["begun", "goes on", "ended"]


class FindingKind(NamedTuple):
    """Situation that a finding reports."""

    #: Its ``metadata.event_code``, and the last part of the uid of its analytic.
    code: EventCode
    #: Type of the finding in ``finding_info.types``.
    type: str
    #: Page of the runbook.
    page: str

    @property
    def analytic(self) -> Analytic:
        """Return the detection that makes findings of this kind."""
        return Analytic(
            uid=f"ocsf-nft/{self.code.removesuffix('-finding')}",
            name=self.type,
            type_id=AnalyticType.RULE,
        )


BYPASS: Final = FindingKind(EventCode.BYPASS_FINDING, "Proxy Bypass", "attempt")
VM_BYPASS: Final = BYPASS._replace(page="vm-attempt")
CLOUD_METADATA: Final = FindingKind(
    EventCode.CLOUD_METADATA_FINDING, "Cloud Metadata Access", "metadata-credentials"
)
INBOUND: Final = FindingKind(EventCode.INBOUND_FINDING, "Inbound Attempt", "inbound")
SCAN: Final = FindingKind(EventCode.SCAN_FINDING, "Network Scan", "scan")
DNS_TUNNEL: Final = FindingKind(EventCode.DNS_TUNNEL_FINDING, "DNS Tunnel", "dns-tunnel")
#: What would be blocked, if a permissive fence did not allow it.
PERMISSIVE: Final = FindingKind(
    EventCode.PERMISSIVE_FINDING, "Traffic Allowed by a Permissive Fence", "policy-permissive"
)
TAMPERING: Final = FindingKind(EventCode.TAMPERING_FINDING, "Fence Tampering", "policy-changed")
FENCE_REMOVED: Final = FindingKind(
    EventCode.FENCE_REMOVED_FINDING, "Fence Removed", "policy-removed"
)
RESTORE_STOPPED: Final = FindingKind(
    EventCode.RESTORE_STOPPED_FINDING, "Restores Stopped", "policy-removed"
)
FENCE_BYPASSED: Final = FindingKind(
    EventCode.FENCE_BYPASSED_FINDING, "Fence Bypassed", "fence-bypassed"
)
COLLECTION: Final = FindingKind(EventCode.COLLECTION_FINDING, "Collection Gap", "collection-gap")
COUNTER_MISMATCH: Final = FindingKind(
    EventCode.COUNTER_MISMATCH_FINDING, "Counter Mismatch", "counter-mismatch"
)
LOG_GROUP_TAKEN: Final = FindingKind(
    EventCode.LOG_GROUP_TAKEN_FINDING, "Log Group Taken", "log-group-taken"
)
RECORDS_NOT_COUNTED: Final = FindingKind(
    EventCode.RECORDS_NOT_COUNTED_FINDING, "Records Not Counted", "records-not-counted"
)
SURROUNDINGS_CHANGED: Final = FindingKind(
    EventCode.SURROUNDINGS_CHANGED_FINDING, "Surroundings Changed", "surroundings-changed"
)


class Stage(NamedTuple):
    """Stage of a finding as OCSF values."""

    activity: FindingActivityId
    status: FindingStatus
    detail: str


def stage_of(  # noqa: PLR0913 - facts about the stage, named at the call
    name: StageName,
    settings: FindingSettings,
    *,
    end_ms: int,
    total: str,
    is_stopped: bool = False,
    end_reason: str | None = None,
) -> Stage:
    """Return the stage ``name`` of a finding as OCSF values.

    ``end_ms`` is the time of the latest fact (ms since the epoch, UTC), and ``total`` their number
    as text, such as "40 packets". ``is_stopped`` means that the sandbox is no longer watched.
    ``end_reason`` is the reason of an end that is not a lack of packets.
    """
    last = utc_text(end_ms)
    if name == "begun":
        return Stage(FindingActivityId.CREATE, FindingStatus.NEW, f"New: {total} so far.")
    if name == "goes on":
        detail = f"Active: {total} so far, the last at {last}."
        return Stage(FindingActivityId.UPDATE, FindingStatus.NEW, detail)
    detail = f"Inactive since {last}: {total}"
    if end_reason is not None:
        detail += f"; {end_reason}."
    elif is_stopped:
        detail += ", and no more until the watch over the sandbox ended."
    else:
        detail += ", and no more since then."
    if settings.auto_close:
        closed = f"{detail} Closed as configured; no person has reviewed it."
        return Stage(FindingActivityId.CLOSE, FindingStatus.RESOLVED, closed)
    return Stage(FindingActivityId.UPDATE, FindingStatus.NEW, detail)


def runbook_link(kind: FindingKind, settings: FindingSettings) -> str | None:
    """Return the web address of the runbook's page about a kind of finding; None without one."""
    base = settings.runbook_url
    return None if base is None else f"{base}{kind.page}.html"


def remediation(kind: FindingKind, settings: FindingSettings, advice: str) -> Remediation:
    """Return ``advice``, with a reference to the page of the runbook."""
    link = runbook_link(kind, settings)
    return Remediation(desc=advice, references=(link or f"{_RUNBOOK}{kind.page}.md",))


def related(
    events: Iterable[tuple[str, int, str]],
) -> tuple[RelatedEvent, ...] | None:
    """Return references to ``events``, each with its uid, type uid and type name."""
    return tuple(RelatedEvent(uid=u, type_uid=t, type_name=n) for u, t, n in events) or None
