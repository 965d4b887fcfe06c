"""Findings about the protection of a sandbox, of every kind and stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf import finding_parts
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.fence_state_events import FenceState, Tampering
from ocsf_nft.ocsf.protection_findings import (
    PROCESSES as PROCESSES_OF_A_FINDING,
)
from ocsf_nft.ocsf.protection_findings import (
    ProtectionSeries,
    RelatedFact,
    protection_finding,
)
from ocsf_nft.ocsf.surroundings_events import surroundings_changed
from tests.conformance.attributed import HOSTILE, PROCESSES
from tests.conformance.corpus import NOW_NS, TIME_NS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocsf_nft.ocsf.context import Context
    from ocsf_nft.ocsf.events import DetectionFinding, DeviceConfigStateChange
    from ocsf_nft.ocsf.finding_parts import FindingKind

KINDS: Final = (
    finding_parts.TAMPERING,
    finding_parts.FENCE_REMOVED,
    finding_parts.RESTORE_STOPPED,
    finding_parts.FENCE_BYPASSED,
    finding_parts.COLLECTION,
    finding_parts.COUNTER_MISMATCH,
    finding_parts.LOG_GROUP_TAKEN,
    finding_parts.RECORDS_NOT_COUNTED,
    finding_parts.SURROUNDINGS_CHANGED,
)
SEVERITIES: Final = {
    finding_parts.FENCE_REMOVED: Severity.CRITICAL,
    finding_parts.RESTORE_STOPPED: Severity.CRITICAL,
}
#: Message and detail of the latest event.
_TEXTS: Final = {
    finding_parts.TAMPERING: (
        (
            "The fence of sandbox sb1 is active, and logs what it blocks; another process altered "
            "it, and it has been restored."
        ),
        "table inet ocsf_nft was deleted, by curl (pid 4242); restored 14.2 ms later",
    ),
    finding_parts.FENCE_REMOVED: (
        "The fence of sandbox sb1 is removed: nothing restricts the sandbox (before: active).",
        "table inet ocsf_nft does not exist",
    ),
    finding_parts.RESTORE_STOPPED: (
        (
            "The fence of sandbox sb1 differs from the installed one, or can't be read: it may "
            "block nothing (before: active)."
        ),
        (
            "given up: restored 10 times in 60 s and changed again each time, last by curl (pid "
            "4242): table inet ocsf_nft was deleted; the next restore is in 60 s"
        ),
    ),
    finding_parts.FENCE_BYPASSED: (
        "3 frames (180 bytes) left sandbox sb1 on eth0 by a way that its fence did not see.",
        (
            "The interface has sent more frames than have passed the fence. Only a process with "
            "CAP_NET_ADMIN or CAP_NET_RAW in the network namespace can send such frames"
        ),
    ),
    finding_parts.COLLECTION: (
        (
            "ocsf-nft did not read the fence of sandbox sb1 for 7.0 s. Meanwhile 31 packets were "
            "blocked; later events count them."
        ),
        "ocsf-nft was not running, or was delayed",
    ),
    finding_parts.COUNTER_MISMATCH: (
        (
            "ocsf-nft has a fault: the counts of sandbox sb1 don't match: counted, but in no event "
            "(negative: in more events than counted): +3 packets of rule egress."
        ),
        (
            "counted, but in no event (negative: in more events than counted): +3 packets of rule "
            "egress"
        ),
    ),
    finding_parts.LOG_GROUP_TAKEN: (
        (
            "NFLOG group 4001 of sandbox sb1 is held by curl (pid 4242). Its fence logs to group "
            "40713 now. Packets that it blocked before are counted, but may lack a record."
        ),
        "curl (pid 4242) holds NFLOG group 4001",
    ),
    finding_parts.RECORDS_NOT_COUNTED: (
        (
            "10 log records were not logged by the fence of sandbox sb1 (rule egress 10): another "
            "program makes log records with the prefix of the fence. Events from its records alone "
            "have a Low confidence now."
        ),
        "another program makes log records with the prefix of the fence",
    ),
    finding_parts.SURROUNDINGS_CHANGED: (
        (
            "The surroundings of the fence of sandbox sb1 changed: a tc qdisc clsact was added on "
            "lo, by curl[4242]; undone 2.1 ms later."
        ),
        "undone 2.1 ms later",
    ),
}
_RELATED: Final = RelatedFact(
    "7a1f7c52-0a5e-5f0b-9a35-0c5f7e0d4b61", 501901, "Device Config State Change: Log"
)


def series_of(kind: FindingKind = finding_parts.TAMPERING, **facts: Any) -> ProtectionSeries:
    """Return three events about a sandbox's protection within five seconds."""
    defaults: dict[str, Any] = {
        "sandbox": "sb1",
        "identity": _RELATED.uid,
        "count": 3,
        "start_ms": TIME_NS // 1_000_000,
        "end_ms": TIME_NS // 1_000_000 + 5000,
        "latest": (_RELATED,) * 3,
        "severity": SEVERITIES.get(kind, Severity.HIGH),
    }
    return ProtectionSeries(kind=kind, **defaults | facts)


def finding_of(context: Context, series: ProtectionSeries, **facts: Any) -> DetectionFinding:
    """Return the finding about a series of events."""
    message, detail = _TEXTS[series.kind]
    defaults: dict[str, Any] = {
        "stage": "begun",
        "message": message,
        "detail": detail,
        "processed_ns": NOW_NS,
    }
    return protection_finding(context, series, **defaults | facts)


def surroundings_event(
    context: Context, left: Sequence[str] = (), text: str = "a tc qdisc clsact was added on lo"
) -> DeviceConfigStateChange:
    """Return the event about changed surroundings; ``left`` are changes that are not undone."""
    process = PROCESSES["all of it"]
    return surroundings_changed(
        context,
        sandbox="sb1",
        state=FenceState.ACTIVE,
        changes=(text, *left),
        present=left,
        severity=Severity.HIGH,
        tampering=None if left else Tampering(changes=text, process=process),
        outcome="not undone" if left else "undone 2.1 ms later",
        time_ns=TIME_NS,
    )


def findings(context: Context) -> Iterator[tuple[str, DetectionFinding]]:
    """Yield findings of each kind and stage, with their names."""
    for kind in KINDS:
        yield f"{kind.code}, begun", finding_of(context, series_of(kind))
        ended = {"stage": "ended", "detail": None, "end_reason": "the fault was cleared"}
        yield f"{kind.code}, ended", finding_of(context, series_of(kind), **ended)
        if kind is finding_parts.COLLECTION:  # after a restart of the service
            yield (
                f"{kind.code}, medium",
                finding_of(context, series_of(kind, severity=Severity.MEDIUM)),
            )
        by = series_of(kind, processes=(PROCESSES["all of it"],), is_tampering=True)
        yield f"{kind.code}, by a process", finding_of(context, by, stage="goes on")
        several = tuple(PROCESSES.values())[:PROCESSES_OF_A_FINDING]
        many = series_of(kind, processes=several, unknown=3, is_tampering=True)
        yield f"{kind.code}, by several", finding_of(context, many, stage="goes on")
        hostile = series_of(kind, sandbox=None)
        yield (
            f"{kind.code}, hostile",
            finding_of(
                context,
                hostile,
                message=HOSTILE.encode("ascii", "replace").decode(),
                detail=HOSTILE,
            ),
        )
