"""Facts that limit a report: gaps, faults and states of fences, from events 5019 and 6002."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf.json_values import at, number, text
from ocsf_nft.ocsf.oneline import sender
from ocsf_nft.report.clipped import clipped
from ocsf_nft.report.tables import MostSevere, Shortlist
from ocsf_nft.utc_text import utc_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.report.findings import Finding

DEVICE_CONFIG_STATE_CHANGE: Final = 5019
APPLICATION_LIFECYCLE: Final = 6002
_SENTENCE: Final = 600
_MOST: Final = 200
_MOST_SANDBOXES: Final = 1000

#: Event codes of what is not known, with a title and the consequence.
LIMITS: Final = {
    "collection-gap": (
        "The fence was not read",
        "Packets of this time are counted, but their times and processes may be unknown.",
    ),
    "records-dropped": (
        "Log records were dropped",
        "Details of some packets are unknown. Counts of a fence with counters are complete.",
    ),
    "events-dropped": (
        "Events were removed before every receiver had them",
        "A receiver, or this report, may lack events.",
    ),
    "attribution-degraded": (
        "The capture of processes stopped",
        "From then on, processes are named less often or less exactly.",
    ),
    "fault": ("Fault of ocsf-nft", "See the message."),
    "counter-mismatch-finding": (
        "Counters do not match",
        "Some packets may be missing, or be counted twice.",
    ),
    "log-group-taken-finding": (
        "Another program held the log group of a fence",
        "Records of this time may be missing. Counts are complete.",
    ),
    "records-not-counted-finding": (
        "Log records were forged",
        "Some events are about packets that the fence did not block, or name a wrong process.",
    ),
    "collection-finding": ("The collection was stopped or blinded", "Events may be missing."),
}
#: The same codes by ``activity_name``, for events without ``event_code``.
_CODES: Final = {
    "Collection Gap": "collection-gap",
    "Records Dropped": "records-dropped",
    "Events Dropped": "events-dropped",
    "Attribution Degraded": "attribution-degraded",
    "Fault": "fault",
    "Fault Cleared": "fault-cleared",
}
#: Values of security_level_id and of severity_id.
_SECURE: Final = 1
_INFORMATIONAL: Final = 1
_STATES: Final = {1: "Disabled", 2: "Enabled"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One thing that is not known, or may be wrong; times are in ms since the epoch."""

    code: str
    message: str
    sandbox: str = ""
    start_ms: int
    end_ms: int
    severity_id: int = 0
    #: Whether a fault has ended.
    is_cleared: bool = False

    @property
    def title(self) -> str:
        """Return the title of this kind of limit."""
        return LIMITS[self.code][0]

    @property
    def consequence(self) -> str:
        """Return the sentence about what is not known."""
        return LIMITS[self.code][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceEvent:
    """Change of a fence, or a start or stop of ocsf-nft; the time is in ms since the epoch."""

    time_ms: int
    severity_id: int
    sandbox: str = ""
    message: str
    detail: str = ""
    #: State of the fence after a change, such as "Enabled"; else empty.
    state: str = ""
    #: Process that made a change; empty if unknown.
    by: str = ""
    #: Whether the fence then restricts the sandbox as it should; None if unknown, and after the
    #: ordinary end of a sandbox.
    is_secure: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Facts about what is not known."""

    limits: Shortlist[Limit]
    fence_changes: Shortlist[ServiceEvent]
    lifecycle: Shortlist[ServiceEvent]
    #: Latest state of the fence of each sandbox.
    fences: tuple[ServiceEvent, ...]


def own_sandbox(event: Mapping[str, Any]) -> str:
    """Return the sandbox of an event about ocsf-nft or a fence; empty if it has none."""
    return clipped(at(event, "unmapped", "sandbox"), 64)


def valid_time(value: Any) -> int | None:
    """Return a time in ms since the epoch; None if the value is not of the years 1 to 9999."""
    time_ms = number(value)
    return time_ms if utc_text(time_ms) is not None else None


def span_of(event: Mapping[str, Any], time_ms: int) -> tuple[int, int]:
    """Return start and end of what an event is about, in ms since the epoch."""
    start, end = valid_time(event.get("start_time")), valid_time(event.get("end_time"))
    return (time_ms if start is None else start), (time_ms if end is None else end)


class CoverageBuilder:
    """Collector of the facts about what is not known; its size has a bound."""

    def __init__(self) -> None:
        self._limits: MostSevere[Limit] = MostSevere(_MOST)
        self._faults: dict[str, Limit] = {}
        self._changes: MostSevere[ServiceEvent] = MostSevere(_MOST)
        self._lifecycle: MostSevere[ServiceEvent] = MostSevere(_MOST)
        self._fences: dict[str, ServiceEvent] = {}

    def add(self, event: Mapping[str, Any], time_ms: int) -> None:
        """Add an event of class 5019 or 6002."""
        if event.get("class_uid") == DEVICE_CONFIG_STATE_CHANGE:
            self._add_change(event, time_ms)
            return
        code = text(at(event, "metadata", "event_code")) or _CODES.get(
            text(event.get("activity_name")), ""
        )
        if code in {"fault", "fault-cleared"}:
            self._add_fault(event, time_ms, is_cleared=code == "fault-cleared")
        elif code in LIMITS:
            self._add_limit(_limit(event, code, time_ms))
        else:
            self._lifecycle.add(_severity(event), time_ms, _service_event(event, time_ms))

    def add_prior(self, event: Mapping[str, Any], time_ms: int) -> None:
        """Add an event of class 5019 only as the state of a fence before the others."""
        self._set_state(_service_event(event, time_ms))

    def add_finding(self, finding: Finding) -> None:
        """Add a finding if it limits what is known, such as a counter mismatch."""
        if finding.event_code in LIMITS:
            self._add_limit(
                Limit(
                    code=finding.event_code,
                    message=finding.message or finding.title,
                    sandbox=finding.sandbox,
                    start_ms=finding.first_ms,
                    end_ms=finding.last_ms,
                    severity_id=finding.severity_id,
                )
            )

    def coverage(self) -> Coverage:
        """Return all facts."""
        for fault in self._faults.values():
            self._add_limit(fault)
        self._faults = {}
        return Coverage(
            limits=self._limits.shortlist(),
            fence_changes=self._changes.shortlist(),
            lifecycle=self._lifecycle.shortlist(),
            fences=tuple(self._fences[name] for name in sorted(self._fences)),
        )

    def _add_limit(self, limit: Limit) -> None:
        self._limits.add(limit.severity_id, limit.start_ms, limit)

    def _add_fault(self, event: Mapping[str, Any], time_ms: int, *, is_cleared: bool) -> None:
        """Merge the events of a fault: all have the same correlation_uid."""
        fault = replace(_limit(event, "fault", time_ms), is_cleared=is_cleared)
        key = clipped(at(event, "metadata", "correlation_uid")) or str(time_ms)
        before = self._faults.get(key)
        if before is not None:
            latest = fault if fault.end_ms >= before.end_ms else before
            severity = max(before.severity_id, fault.severity_id)
            fault = replace(
                latest, start_ms=min(before.start_ms, fault.start_ms), severity_id=severity
            )
        self._faults[key] = fault
        if len(self._faults) > _MOST:
            self._add_limit(self._faults.pop(next(iter(self._faults))))

    def _add_change(self, event: Mapping[str, Any], time_ms: int) -> None:
        change = _service_event(event, time_ms)
        self._changes.add(change.severity_id, time_ms, change)
        self._set_state(change)

    def _set_state(self, change: ServiceEvent) -> None:
        before = self._fences.get(change.sandbox)
        is_room = before is not None or len(self._fences) < _MOST_SANDBOXES
        if is_room and (before is None or before.time_ms <= change.time_ms):
            self._fences[change.sandbox] = change


def _severity(event: Mapping[str, Any]) -> int:
    return number(event.get("severity_id")) or 0


def _limit(event: Mapping[str, Any], code: str, time_ms: int) -> Limit:
    start, end = span_of(event, time_ms)
    return Limit(
        code=code,
        message=clipped(event.get("message"), _SENTENCE),
        sandbox=own_sandbox(event),
        start_ms=start,
        end_ms=end,
        severity_id=_severity(event),
    )


def _service_event(event: Mapping[str, Any], time_ms: int) -> ServiceEvent:
    state = text(event.get("state")) or _STATES.get(number(event.get("state_id")) or 0, "")
    level = number(event.get("security_level_id"))
    is_ordinary_end = level != _SECURE and _severity(event) == _INFORMATIONAL
    return ServiceEvent(
        time_ms=time_ms,
        severity_id=_severity(event),
        sandbox=own_sandbox(event),
        message=clipped(event.get("message"), _SENTENCE) or clipped(event.get("activity_name")),
        detail=clipped(event.get("status_detail"), _SENTENCE),
        state=clipped(state, 64),
        by=sender(event),
        is_secure=None if level is None or is_ordinary_end else level == _SECURE,
    )
