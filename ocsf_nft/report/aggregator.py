"""Aggregation of events to the facts of a report, one event at a time, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson

from ocsf_nft.ocsf.json_values import at, items, number, text
from ocsf_nft.ocsf.oneline import sandbox_or_host, sender, traffic
from ocsf_nft.report.clipped import clipped
from ocsf_nft.report.coverage import (
    APPLICATION_LIFECYCLE,
    DEVICE_CONFIG_STATE_CHANGE,
    CoverageBuilder,
    span_of,
    valid_time,
)
from ocsf_nft.report.findings import DETECTION_FINDING, Finding, merged, read_finding
from ocsf_nft.report.histogram import HistogramBuilder
from ocsf_nft.report.identity import identity
from ocsf_nft.report.processes import senders
from ocsf_nft.report.tables import Counts, TopCounts
from ocsf_nft.report.view import Destination, Flow, Input, Totals, View

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ocsf_nft.report.processes import ProcessFacts

NETWORK_ACTIVITY: Final = 4001
_DNS_ACTIVITY: Final = 4003
#: Type of an observable with the name of a host.
_HOSTNAME: Final = 1
#: Blocked, Dropped.
_REFUSING: Final = frozenset({2, 6})
#: Allowed, Logged.
_ALLOWING: Final = frozenset({1, 17})
_OPEN: Final = 1
#: Last events whose uids are stored, to find repeated ones.
_UIDS: Final = 100_000
#: Maximum numbers of rows that are stored, and of those in the view.
_STORED: Final = 5000
_SHOWN_PROCESSES: Final = 40
_SHOWN: Final = 50
_FINDINGS: Final = 2000
_SHOWN_FINDINGS: Final = 100
_SANDBOXES: Final = 50
_FACTS: Final = 40
_OBSERVABLES: Final = 64


def event_time(event: Mapping[str, Any]) -> int | None:
    """Return an event's time in ms since the epoch; None if it has no valid one."""
    return valid_time(event.get("time"))


def decoded(line: bytes) -> dict[str, Any] | None:
    """Return the event with the JSON ``line``; None if it is no event with a valid time."""
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(event, dict) or number(event.get("class_uid")) is None:
        return None
    return None if event_time(event) is None else event


def packets_of(event: Mapping[str, Any]) -> int:
    """Return the number of packets of a Network Activity event: at least 1."""
    return max(1, number(event.get("count")) or 1)


class Selected(Protocol):
    """Selection of events."""

    def __call__(self, event: Mapping[str, Any]) -> bool:
        """Return True if an event is selected."""
        ...

    def is_prior(self, event: Mapping[str, Any]) -> bool:
        """Return True if an event is about a fence's state before all selected events."""
        ...


class Aggregator:
    """Collector of the facts of the events that ``selected`` selects."""

    def __init__(self, selected: Selected) -> None:
        self._selected = selected
        self._uids: dict[str, None] = {}
        self._lines = self._others = self._repeated = self._events = 0
        self._earliest: int | None = None
        self._first: int | None = None
        self._last: int | None = None
        self._totals = {"blocked": 0, "allowed": 0, "named": 0, "aggregated": 0}
        self._findings: dict[str, Finding] = {}
        self._more_findings = 0
        self._processes: TopCounts[ProcessFacts] = TopCounts(_STORED)
        self._destinations: TopCounts[Destination] = TopCounts(_STORED)
        self._flows: TopCounts[Flow] = TopCounts(_STORED)
        self._names: TopCounts[str] = TopCounts(_STORED)
        self._histogram = HistogramBuilder()
        self._coverage = CoverageBuilder()
        self._identity: dict[str, dict[tuple[str, str], None]] = {}
        self._has_more_sandboxes = False

    def read(self, lines: Iterable[bytes]) -> bool:
        """Add the events of lines of JSON; return True."""
        for line in lines:
            self._lines += 1
            event = decoded(line)
            if event is None:
                self._others += 1
            else:
                self.add(event)
        return True

    def add(self, event: Mapping[str, Any]) -> None:
        """Add an event with a valid time if it is selected and was not added before."""
        time_ms = event_time(event)
        if time_ms is None:
            return
        self._earliest = time_ms if self._earliest is None else min(self._earliest, time_ms)
        kind = event["class_uid"]
        if not self._selected(event):
            if kind == DEVICE_CONFIG_STATE_CHANGE and self._selected.is_prior(event):
                self._coverage.add_prior(event, time_ms)
            return
        if self._is_repeated(event):
            return
        self._events += 1
        if kind == NETWORK_ACTIVITY:
            self._add_activity(event, time_ms)
        elif kind == DETECTION_FINDING:
            finding = read_finding(event, time_ms)
            self._add_times(finding.first_ms, finding.last_ms)
            self._add_finding(finding)
        elif kind in {DEVICE_CONFIG_STATE_CHANGE, APPLICATION_LIFECYCLE}:
            self._coverage.add(event, time_ms)
        if kind in {NETWORK_ACTIVITY, _DNS_ACTIVITY}:
            self._add_names(event, time_ms)
        self._add_identity(event)

    def view(self) -> View:
        """Return the facts of all added events."""
        findings = sorted(self._findings.values(), key=lambda each: each.urgency)
        for finding in findings:
            self._coverage.add_finding(finding)
        shown = tuple(findings[:_SHOWN_FINDINGS])
        return View(
            first_ms=self._first,
            last_ms=self._last,
            totals=Totals(events=self._events, **self._totals),
            read=Input(
                lines=self._lines,
                others=self._others,
                repeated=self._repeated,
                first_ms=self._earliest,
            ),
            findings=shown,
            more_findings=self._more_findings + len(findings) - len(shown),
            processes=self._processes.top(_SHOWN_PROCESSES),
            destinations=self._destinations.top(_SHOWN),
            flows=self._flows.top(_SHOWN),
            names=self._names.top(_SHOWN),
            histogram=self._histogram.histogram(),
            coverage=self._coverage.coverage(),
            identity=tuple((name, tuple(self._identity[name])) for name in sorted(self._identity)),
            has_more_sandboxes=self._has_more_sandboxes,
        )

    def _is_repeated(self, event: Mapping[str, Any]) -> bool:
        uid = text(at(event, "metadata", "uid"))[:100]
        if not uid:
            return False
        if uid in self._uids:
            self._repeated += 1
            return True
        self._uids[uid] = None
        if len(self._uids) > _UIDS:
            del self._uids[next(iter(self._uids))]
        return False

    def _add_activity(self, event: Mapping[str, Any], time_ms: int) -> None:
        packets, is_allowed = packets_of(event), _is_allowed(event)
        blocked, allowed = (0, packets) if is_allowed else (packets, 0)
        start, end = span_of(event, time_ms)
        self._add_times(start, end)
        counts = Counts(1, blocked, allowed, start, end)
        self._totals["blocked"] += blocked
        self._totals["allowed"] += allowed
        self._histogram.add(time_ms, blocked, allowed)
        sandbox = sandbox_or_host(event)
        found = senders(event, sandbox)
        for each in found:
            self._processes.add(each, counts)
        if found[0].process is not None and not found[0].is_possible:
            self._totals["named"] += packets
        to = traffic(event) or "unknown destination"
        self._destinations.add(Destination(sandbox, to), counts)
        severity = number(event.get("severity_id")) or 0
        self._flows.add(
            Flow(sandbox, sender(event) or found[0].name, to, severity, is_allowed), counts
        )
        if at(event, "unmapped", "aggregation") is not None:
            self._totals["aggregated"] += packets

    def _add_times(self, first_ms: int, last_ms: int) -> None:
        self._first = first_ms if self._first is None else min(self._first, first_ms)
        self._last = last_ms if self._last is None else max(self._last, last_ms)

    def _add_finding(self, finding: Finding) -> None:
        before = self._findings.get(finding.uid)
        self._findings[finding.uid] = finding if before is None else merged(before, finding)
        if len(self._findings) > 2 * _FINDINGS:
            urgent = sorted(self._findings.values(), key=lambda each: each.urgency)[:_FINDINGS]
            self._more_findings += len(self._findings) - len(urgent)
            self._findings = {each.uid: each for each in urgent}

    def _add_names(self, event: Mapping[str, Any], time_ms: int) -> None:
        packets = packets_of(event)
        named = at(event, "query", "hostname"), at(event, "dst_endpoint", "hostname")
        found = set(map(clipped, named))
        for each in items(event.get("observables"), _OBSERVABLES):
            is_ours = text(at(each, "name")).startswith("device.")
            if number(at(each, "type_id")) == _HOSTNAME and not is_ours:
                found.add(clipped(at(each, "value")))
        for name in sorted(found - {""}):
            self._names.add(name, Counts(1, packets, 0, time_ms, time_ms))

    def _add_identity(self, event: Mapping[str, Any]) -> None:
        sandbox = sandbox_or_host(event)
        is_of_service = event["class_uid"] == APPLICATION_LIFECYCLE
        if not sandbox or (is_of_service and not at(event, "unmapped", "sandbox")):
            return
        facts = self._identity.get(sandbox)
        if facts is None:
            if len(self._identity) >= _SANDBOXES:
                self._has_more_sandboxes = True
                return
            facts = self._identity[sandbox] = {}
        for pair in identity(event):
            if len(facts) < _FACTS:
                facts[pair] = None


def _is_allowed(event: Mapping[str, Any]) -> bool:
    """Return True if the packets were not blocked: the fence, or another firewall, logged them."""
    disposition = number(event.get("disposition_id"))
    if disposition in _REFUSING or disposition in _ALLOWING:
        return disposition in _ALLOWING
    return number(event.get("activity_id")) == _OPEN
