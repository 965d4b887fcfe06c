"""Findings about the protection of sandboxes: created, updated, and inactive at last."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

from ocsf_nft.flows.incidents import LATEST
from ocsf_nft.ocsf.protection_findings import (
    ProtectionSeries,
    protection_finding,
    related_fact,
    subject_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.ocsf.context import Context
    from ocsf_nft.ocsf.enums import Severity
    from ocsf_nft.ocsf.events import DetectionFinding, Event
    from ocsf_nft.ocsf.fence_state_events import Tampering
    from ocsf_nft.ocsf.finding_parts import FindingKind

#: An event so long after the one before begins another finding.
_QUIET_MS: Final = 600_000
#: Shortest time between two updates of a finding. Its events themselves are never delayed.
_PAUSE_MS: Final = 10_000
_Key: TypeAlias = "tuple[str | None, FindingKind]"


class ProtectionFindings:
    """Open findings about the protection of all sandboxes of a service.

    ``context`` returns the facts about a sandbox by its name, and those about the host for None. A
    finding without a sandbox is about all that share the host's log. ``count`` is called for each
    created or updated finding, with its sandbox.
    """

    def __init__(
        self,
        context: Callable[[str | None], Context],
        count: Callable[[DetectionFinding, str | None], None],
    ) -> None:
        self._context = context
        self._count = count
        self._open: dict[_Key, ProtectionSeries] = {}
        #: Times of the latest event of each finding (ms since the epoch, UTC).
        self._reported_ms: dict[_Key, int] = {}

    def lines(
        self,
        event: Event,
        kind: FindingKind,
        sandbox: str | None,
        *,
        severity: Severity,
        tampering: Tampering | None = None,
    ) -> list[bytes]:
        """Return the JSON lines of an event and of the finding that it belongs to.

        The event gets the finding's correlation uid. The finding is created, or updated if its last
        event is some seconds old. ``tampering`` is the change by another process that the event is
        about.
        """
        key = sandbox, kind
        before = self._open.get(key)
        values = event.__dict__
        time_ms = values["time"]
        if before is not None and time_ms - before.end_ms > _QUIET_MS:
            before = None
        fact = related_fact(event)
        process = None if tampering is None else tampering.process
        if before is None:
            series = ProtectionSeries(
                kind=kind,
                sandbox=sandbox,
                identity=fact.uid,
                count=1,
                start_ms=values["start_time"] or time_ms,
                end_ms=time_ms,
                latest=(fact,),
                severity=severity,
                process=process,
                is_tampering=tampering is not None,
            )
        else:
            series = replace(
                before,
                count=before.count + 1,
                end_ms=max(before.end_ms, time_ms),
                latest=(*before.latest, fact)[-LATEST:],
                severity=max(before.severity, severity),
                process=process or before.process,
                is_tampering=before.is_tampering or tampering is not None,
            )
        self._open[key] = series
        lines = [_correlated(event, series.uid).to_json()]
        is_late = time_ms - self._reported_ms.get(key, time_ms) >= _PAUSE_MS
        if before is None or series.severity > before.severity or is_late:
            self._reported_ms[key] = time_ms
            finding = protection_finding(
                self._context(sandbox),
                series,
                stage="begun" if before is None else "goes on",
                message=values["message"],
                detail=values["status_detail"],
                processed_ns=time.time_ns(),
            )
            self._count(finding, sandbox)
            lines.append(finding.to_json())
        return lines

    def end(
        self, kind: FindingKind, sandbox: str | None, reason: str, *, time_ns: int
    ) -> list[bytes]:
        """Return the last event of an open finding as a JSON line: since when it is inactive.

        ``reason`` is why, without an end of the sentence. ``time_ns`` is the time of the end (ns
        since the epoch, UTC). Return an empty list if there is no open finding of this kind.
        """
        key = sandbox, kind
        self._reported_ms.pop(key, None)
        series = self._open.pop(key, None)
        if series is None:
            return []
        ended = replace(series, end_ms=max(series.end_ms, time_ns // 1_000_000))
        finding = protection_finding(
            self._context(sandbox),
            ended,
            stage="ended",
            message=f"{ended.words.title}: {subject_text(sandbox)}: {reason}.",
            detail=None,
            processed_ns=time.time_ns(),
            end_reason=reason,
        )
        return [finding.to_json()]

    def drop(self, sandbox: str) -> None:
        """Forget the findings of a sandbox that has ended."""
        for key in [each for each in self._open if each[0] == sandbox]:
            del self._open[key]
            self._reported_ms.pop(key, None)


def _correlated(event: Event, uid: str) -> Event:
    metadata = event.__dict__["metadata"].model_copy(update={"correlation_uid": uid})
    return event.model_copy(update={"metadata": metadata})
