"""Detection Findings (OCSF class 2004), merged: one for each ``finding_info.uid``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf.json_values import at, items, number, text
from ocsf_nft.ocsf.oneline import sandbox_or_host, traffic
from ocsf_nft.report.clipped import clipped
from ocsf_nft.report.coverage import span_of, valid_time
from ocsf_nft.report.processes import ProcessFacts, senders

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ocsf_nft.report.processes import ProcessId

DETECTION_FINDING: Final = 2004
_CLOSE: Final = 3
#: Values of status_id of a finding that a person, or a rule, has closed.
_CLOSED: Final = frozenset({3, 4, 5, 6})  # Suppressed, Resolved, Archived, Deleted
#: Beginning of status_detail of a finding whose attempts have ended.
_INACTIVE: Final = "inactive since"
_SENTENCE: Final = 1000
#: Maximum numbers of items of each kind in a finding.
_PROCESSES: Final = 50
_DESTINATIONS: Final = 50
_EVIDENCES: Final = 200
_RELATED: Final = 20
_FEW: Final = 8
#: Totals of a finding in ``unmapped``.
_TOTALS: Final = ("flows", "destinations", "ports", "names")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Facts of a finding: the latest event wins, and earlier ones add what it lacks.

    Times are in ms since the epoch. Unknown texts are empty.
    """

    uid: str
    correlation_uid: str = ""
    event_code: str = ""
    title: str
    desc: str = ""
    message: str = ""
    severity_id: int
    is_open: bool
    #: Whether the finding is open, and its attempts have ended.
    is_inactive: bool = False
    status_detail: str = ""
    created_ms: int
    updated_ms: int
    first_ms: int
    last_ms: int
    #: Running total of packets or of other things that the finding counts.
    count: int = 0
    #: Whether it counts packets; else it counts events, such as changes of a fence.
    is_of_packets: bool = True
    remediation: str = ""
    #: Address of the page about this kind of finding.
    runbook: str = ""
    sandbox: str = ""
    host: str = ""
    rule: str = ""
    kinds: tuple[str, ...] = ()
    #: ATT&CK techniques.
    techniques: tuple[str, ...] = ()
    totals: tuple[tuple[str, int], ...] = ()
    #: User that sent the packets, if known.
    user: str = ""
    processes: tuple[ProcessFacts, ...] = ()
    destinations: tuple[str, ...] = ()
    #: Values of ``metadata.uid`` of the latest events behind the finding, and their total number.
    related: tuple[str, ...] = ()
    related_count: int = 0
    #: Number of events that were merged.
    events: int = 1

    @property
    def facts(self) -> tuple[str, ...]:
        """Return the message and the description, which often has the message too."""
        message = "" if self.message in self.desc else self.message
        return tuple(filter(None, (message, self.desc)))

    @property
    def urgency(self) -> tuple[bool, int, int]:
        """Return a key that sorts findings: open before closed, severe before mild, new first."""
        return not self.is_open, -self.severity_id, -self.updated_ms


def finding_uid(event: Mapping[str, Any]) -> str:
    """Return the uid that all events of a finding share."""
    for path in (("finding_info", "uid"), ("metadata", "correlation_uid"), ("metadata", "uid")):
        if found := text(at(event, *path)):
            return clipped(found)
    return ""


def read_finding(event: Mapping[str, Any], time_ms: int) -> Finding:
    """Return the facts of one event of a finding, which has the time ``time_ms``."""
    info = event.get("finding_info")
    status, detail = number(event.get("status_id")), clipped(event.get("status_detail"), _SENTENCE)
    is_open = number(event.get("activity_id")) != _CLOSE and status not in _CLOSED
    start, end = span_of(event, time_ms)
    first, last = valid_time(at(info, "first_seen_time")), valid_time(at(info, "last_seen_time"))
    message = clipped(event.get("message"), _SENTENCE)
    related = at(info, "related_events")
    found = senders(event, sandbox_or_host(event))
    return Finding(
        uid=finding_uid(event),
        correlation_uid=clipped(at(event, "metadata", "correlation_uid")),
        event_code=clipped(at(event, "metadata", "event_code"), 64),
        title=clipped(at(info, "title")) or message or "Finding without a title",
        desc=clipped(at(info, "desc"), _SENTENCE),
        message=message,
        severity_id=number(event.get("severity_id")) or 0,
        is_open=is_open,
        is_inactive=is_open and detail.lower().startswith(_INACTIVE),
        status_detail=detail,
        created_ms=time_ms,
        updated_ms=time_ms,
        first_ms=first or start,
        last_ms=last or end,
        count=max(0, number(event.get("count")) or 0),
        is_of_packets=number(event.get("disposition_id")) is not None,
        remediation=clipped(at(event, "remediation", "desc"), _SENTENCE),
        runbook=clipped(at(info, "src_url")),
        sandbox=sandbox_or_host(event),
        host=clipped(at(event, "device", "hostname"), 80),
        rule=clipped(at(event, "firewall_rule", "name"), 64),
        kinds=tuple(clipped(each, 64) for each in items(at(info, "types"), _FEW)),
        techniques=_techniques(at(info, "attacks") or event.get("attacks")),
        totals=tuple(
            (name, total)
            for name in _TOTALS
            if (total := number(at(event, "unmapped", name))) is not None
        ),
        user=found[0].user,
        processes=tuple(each for each in found if each.process is not None)[:_PROCESSES],
        destinations=_destinations(event),
        related=tuple(clipped(at(each, "uid"), 64) for each in items(related, _RELATED)),
        related_count=number(at(info, "related_events_count")) or len(items(related, 10_000)),
    )


def merged(before: Finding, event: Finding) -> Finding:
    """Return a finding after one more of its events, which may be older than the latest one."""
    # The count of a finding only grows: it orders events of the same millisecond.
    is_later = (event.updated_ms, event.count) >= (before.updated_ms, before.count)
    old, new = (before, event) if is_later else (event, before)
    return replace(
        new,
        created_ms=min(old.created_ms, new.created_ms),
        first_ms=min(old.first_ms, new.first_ms),
        last_ms=max(old.last_ms, new.last_ms),
        processes=_joined_processes(new.processes, old.processes),
        destinations=tuple(dict.fromkeys((*new.destinations, *old.destinations)))[:_DESTINATIONS],
        runbook=new.runbook or old.runbook,
        remediation=new.remediation or old.remediation,
        related=new.related or old.related,
        related_count=max(old.related_count, new.related_count),
        events=old.events + new.events,
    )


def _joined_processes(
    new: Iterable[ProcessFacts], old: Iterable[ProcessFacts]
) -> tuple[ProcessFacts, ...]:
    found: dict[ProcessId | None, ProcessFacts] = {}
    for each in (*new, *old):
        found.setdefault(each.process, each)
    return tuple(found.values())[:_PROCESSES]


def _destinations(event: Mapping[str, Any]) -> tuple[str, ...]:
    evidences = items(event.get("evidences"), _EVIDENCES)
    found = dict.fromkeys(filter(None, map(traffic, evidences)))
    return tuple(found)[:_DESTINATIONS]


def _techniques(attacks: Any) -> tuple[str, ...]:
    found = []
    for each in items(attacks, _FEW):
        technique = at(each, "sub_technique") or at(each, "technique")
        words = text(at(technique, "uid")), text(at(technique, "name"))
        found.append(clipped(" ".join(filter(None, words)), 80))
    return tuple(dict.fromkeys(filter(None, found)))
