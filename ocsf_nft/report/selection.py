"""Selection of the events of a report: by time and sandbox, or of one incident."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.errors import AbsentError, UsageError
from ocsf_nft.ocsf.json_values import at, items, text
from ocsf_nft.ocsf.oneline import sandbox_or_host
from ocsf_nft.quoted import quoted
from ocsf_nft.report.aggregator import decoded, event_time
from ocsf_nft.report.coverage import (
    APPLICATION_LIFECYCLE,
    DEVICE_CONFIG_STATE_CHANGE,
    own_sandbox,
    span_of,
)
from ocsf_nft.report.findings import DETECTION_FINDING, finding_uid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_OWN: Final = frozenset({DEVICE_CONFIG_STATE_CHANGE, APPLICATION_LIFECYCLE})
#: Events about ocsf-nft up to this time before and after an incident are part of its report.
_MARGIN_MS: Final = 5 * 60 * 1000
#: Maximum number of uids of each kind of an incident, and of uids with the same beginning.
_RELATED: Final = 100_000
_IDS: Final = 1000
_SHOWN_IDS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Events in a time span, and of a sandbox; None is no condition. Times in ms since the epoch.

    Events about the whole service are of every sandbox.
    """

    from_ms: int | None = None
    until_ms: int | None = None
    sandbox: str | None = None

    def __call__(self, event: Mapping[str, Any]) -> bool:
        """Return True if an event is selected."""
        time_ms = event_time(event) or 0
        if self.from_ms is not None and time_ms < self.from_ms:
            return False
        if self.until_ms is not None and time_ms >= self.until_ms:
            return False
        if self.sandbox is None or sandbox_or_host(event) == self.sandbox:
            return True
        return event.get("class_uid") == APPLICATION_LIFECYCLE and not own_sandbox(event)

    def is_prior(self, event: Mapping[str, Any]) -> bool:
        """Return True if an event is about the state of a selected fence before the time span."""
        is_before = self.from_ms is not None and (event_time(event) or 0) < self.from_ms
        return is_before and (self.sandbox is None or own_sandbox(event) == self.sandbox)


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """Events of one incident: its findings, their related events, and events about the fence."""

    uid: str
    findings: frozenset[str]
    correlations: frozenset[str]
    related: frozenset[str]
    sandboxes: frozenset[str]
    first_ms: int
    last_ms: int

    def __call__(self, event: Mapping[str, Any]) -> bool:
        """Return True if an event is selected."""
        kind = event.get("class_uid")
        if kind == DETECTION_FINDING:
            return finding_uid(event) in self.findings
        if kind in _OWN:
            start, end = span_of(event, event_time(event) or 0)
            is_near = start <= self.last_ms + _MARGIN_MS and end >= self.first_ms - _MARGIN_MS
            return is_near and (not own_sandbox(event) or own_sandbox(event) in self.sandboxes)
        metadata = event.get("metadata")
        return (
            text(at(metadata, "correlation_uid")) in self.correlations
            or text(at(metadata, "uid")) in self.related
        )

    def is_prior(self, event: Mapping[str, Any]) -> bool:
        """Return True if an event is about the state of a fence before the incident."""
        is_before = (event_time(event) or 0) < self.first_ms
        return is_before and own_sandbox(event) in self.sandboxes


class SandboxFinder:
    """Search for events about ``sandbox`` at any time, and for the names of other sandboxes."""

    def __init__(self, sandbox: str) -> None:
        self._sandbox = sandbox
        self._is_found = False
        self._others: set[str] = set()

    def read(self, lines: Iterable[bytes]) -> bool:
        """Search the events of lines of JSON; return True."""
        for line in lines:
            event = None if self._is_found else decoded(line)
            if event is not None:
                names = {sandbox_or_host(event), own_sandbox(event)} - {""}
                self._is_found = self._sandbox in names
                if len(self._others) < _IDS:
                    self._others |= names
        return True

    def warning(self) -> str | None:
        """Return a sentence if no event is about the sandbox, else None."""
        if self._is_found:
            return None
        shown = ", ".join(quoted(name[:100]) for name in sorted(self._others)[:_SHOWN_IDS])
        others = f"; the events are about {shown}" if shown else ""
        name = quoted(self._sandbox[:100])
        return f"no event is about the sandbox {name}: check its name{others}"


class IncidentFinder:
    """Search for the incident whose finding uid or correlation uid begins with ``prefix``."""

    def __init__(self, prefix: str) -> None:
        """Create a search; raises UsageError if the prefix is empty."""
        if not prefix:
            raise UsageError("the ID is empty: `ocsf-nft incident` lists the open findings")
        self._prefix = prefix
        self._found: dict[str, _Found] = {}

    def read(self, lines: Iterable[bytes]) -> bool:
        """Search the events of lines of JSON; return True."""
        for line in lines:
            # Most lines have no such text: they are not decoded.
            if self._prefix.encode(errors="surrogateescape") in line:
                event = decoded(line)
                if event is not None and event.get("class_uid") not in _OWN:
                    self._add(event)
        return True

    def incident(self) -> Incident:
        """Return the incident; raises AbsentError if there is none, UsageError if several."""
        if self._prefix in self._found:
            return self._found[self._prefix].incident(self._prefix)
        if not self._found:
            raise AbsentError(
                f"no finding or correlation uid begins with {quoted(self._prefix[:100])}: "
                "`ocsf-nft incident` lists the open findings"
            )
        if len(self._found) > 1:
            shown = ", ".join(sorted(self._found)[:_SHOWN_IDS])
            raise UsageError(
                f"{len(self._found)} uids begin with {quoted(self._prefix[:100])}: give more of "
                f"one, such as {shown}"
            )
        ((uid, found),) = self._found.items()
        return found.incident(uid)

    def _add(self, event: Mapping[str, Any]) -> None:
        correlation = text(at(event, "metadata", "correlation_uid"))
        is_finding = event.get("class_uid") == DETECTION_FINDING
        finding = finding_uid(event) if is_finding else ""
        for uid in {finding, correlation}:
            if uid.startswith(self._prefix) and (uid in self._found or len(self._found) < _IDS):
                self._found.setdefault(uid, _Found()).add(event, finding, correlation)


class _Found:
    """Facts about the events with one uid."""

    def __init__(self) -> None:
        self._findings: set[str] = set()
        self._correlations: set[str] = set()
        self._related: set[str] = set()
        self._sandboxes: set[str] = set()
        self._first_ms: int | None = None
        self._last_ms = 0

    def add(self, event: Mapping[str, Any], finding: str, correlation: str) -> None:
        start, end = span_of(event, event_time(event) or 0)
        if self._first_ms is None:
            self._first_ms, self._last_ms = start, end
        self._first_ms, self._last_ms = min(self._first_ms, start), max(self._last_ms, end)
        _put(self._sandboxes, sandbox_or_host(event))
        _put(self._correlations, correlation)
        _put(self._findings, finding)
        if finding:
            for each in items(at(event, "finding_info", "related_events"), _RELATED):
                _put(self._related, text(at(each, "uid")))

    def incident(self, uid: str) -> Incident:
        return Incident(
            uid=uid,
            findings=frozenset(self._findings),
            correlations=frozenset(self._correlations),
            related=frozenset(self._related),
            sandboxes=frozenset(self._sandboxes),
            first_ms=self._first_ms or 0,
            last_ms=self._last_ms,
        )


def _put(found: set[str], uid: str) -> None:
    if uid and len(found) < _RELATED:
        found.add(uid)
