"""Findings about the protection of sandboxes: created, updated, and inactive at last."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from ocsf_nft.flows.incidents import LATEST
from ocsf_nft.flows.report_schedule import Schedule
from ocsf_nft.ocsf.protection_findings import (
    PROCESSES,
    ProtectionSeries,
    protection_finding,
    related_fact,
    subject_text,
)
from ocsf_nft.service import finding_codec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ocsf_nft.ocsf.context import Context
    from ocsf_nft.ocsf.enums import Severity
    from ocsf_nft.ocsf.event_base import Event
    from ocsf_nft.ocsf.events import DetectionFinding
    from ocsf_nft.ocsf.fence_state_events import Tampering
    from ocsf_nft.ocsf.finding_parts import FindingKind
    from ocsf_nft.process import Process

#: An event so long after the one before begins another finding.
_QUIET_MS: Final = 600_000
_STOPPED: Final = "the watch over it ended"
_Key: TypeAlias = "tuple[str | None, FindingKind]"


class _Open(NamedTuple):
    """Open finding, and when its next update is due (by the times of its events)."""

    series: ProtectionSeries
    schedule: Schedule
    #: Until this time (ms) an event continues a fault that lasted when the service stopped.
    awaited_until_ms: int | None = None

    def is_over(self, now_ms: int, *, closing: bool = False) -> bool:
        """Return True if its fault does not last, and no event has come for ten minutes.

        With ``closing``, the service stops, and waits for no further event.
        """
        if self.awaited_until_ms is not None:
            return now_ms > self.awaited_until_ms
        is_quiet = closing or now_ms - self.series.end_ms > _QUIET_MS
        return is_quiet and not self.series.lasts


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
        self._open: dict[_Key, _Open] = {}
        #: Changes of the stored findings, by the lines with which they are committed.
        self._changes: dict[bytes, tuple[str, bytes | None]] = {}

    def resume(self, stored: Mapping[str, bytes], *, now_ns: int) -> tuple[str, ...]:
        """Continue the findings that were open when the service stopped, by their uids.

        A fault that lasted gets ten minutes for its next event. ``now_ns`` is the time (ns since
        the epoch, UTC). Return the uids of the findings that are damaged.
        """
        damaged = []
        for uid, value in stored.items():
            try:
                series = finding_codec.from_bytes(uid, value)
                schedule = Schedule(series.end_ms * 1_000_000, series.count)
                self._last(series, None).to_json()  # it must be possible later
            except finding_codec.DAMAGE:
                damaged.append(uid)
                continue
            key = series.sandbox, series.kind
            if series.uid != uid or key in self._open:
                damaged.append(uid)
                continue
            awaited_ms = now_ns // 1_000_000 + _QUIET_MS if series.lasts else None
            self._open[key] = _Open(series, schedule, awaited_ms)
        return tuple(damaged)

    def take_changes(self, lines: Iterable[bytes]) -> dict[str, bytes | None]:
        """Return the changes of open findings that belong to these lines, by their uids.

        They must be stored with the lines. A change is returned once; None ends a finding.
        """
        if not self._changes:
            return {}
        found = (self._changes.pop(line, None) for line in lines)
        return dict(each for each in found if each is not None)

    def lines(  # noqa: PLR0913 - facts about the event, named at the call
        self,
        event: Event,
        kind: FindingKind,
        sandbox: str | None,
        *,
        severity: Severity,
        tampering: Tampering | None = None,
        lasts: bool | None = None,
    ) -> list[bytes]:
        """Return the JSON lines of an event and of the finding that it belongs to.

        The event gets the finding's correlation uid. The finding is created, or updated if that is
        due. ``tampering`` is the change by another process that the event is about. With ``lasts``,
        the fault lasts until :meth:`end`; None leaves that as it was.
        """
        key = sandbox, kind
        values = event.__dict__
        time_ms = values["time"]
        lines = self._end_if_over(key, time_ms)
        fact = related_fact(event)
        known = self._open.get(key)
        if known is None:
            series = ProtectionSeries(
                kind=kind,
                sandbox=sandbox,
                identity=fact.uid,
                count=1,
                start_ms=values["start_time"] or time_ms,
                end_ms=time_ms,
                latest=(fact,),
                severity=severity,
                processes=_processes((), tampering),
                unknown=_unknown(tampering),
                is_tampering=tampering is not None,
                lasts=bool(lasts),
            )
            schedule = Schedule(time_ms * 1_000_000)
            is_due = True
        else:
            before, schedule, _ = known
            series = replace(
                before,
                count=before.count + 1,
                end_ms=max(before.end_ms, time_ms),
                latest=(*before.latest, fact)[-LATEST:],
                severity=max(before.severity, severity),
                processes=_processes(before.processes, tampering),
                unknown=before.unknown + _unknown(tampering),
                is_tampering=before.is_tampering or tampering is not None,
                lasts=before.lasts if lasts is None else lasts,
            )
            is_due = time_ms * 1_000_000 >= schedule.due_ns or severity > before.severity
            if is_due:
                schedule.mark_reported(time_ms * 1_000_000)
        self._open[key] = _Open(series, schedule)
        line = _correlated(event, series.uid).to_json()
        self._changes[line] = series.uid, finding_codec.to_bytes(series)
        lines.append(line)
        if is_due:
            finding = protection_finding(
                self._context(sandbox),
                series,
                stage="begun" if known is None else "goes on",
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
        return self._end((sandbox, kind), reason, time_ns // 1_000_000)

    def end_quiet(self, now_ns: int, *, closing: bool = False) -> list[bytes]:
        """Return the last events of findings without an event for ten minutes, as JSON lines.

        Faults that last are left open. ``now_ns`` is the time (ns since the epoch, UTC). With
        ``closing``, the service stops, and all others end.
        """
        now_ms = now_ns // 1_000_000
        return [
            line
            for key in list(self._open)
            for line in self._end_if_over(key, now_ms, closing=closing)
        ]

    def end_sandbox(self, sandbox: str, *, time_ns: int) -> list[bytes]:
        """Return the last events of all findings of a sandbox that has ended, as JSON lines."""
        kinds = [kind for name, kind in self._open if name == sandbox]
        return [
            line for kind in kinds for line in self.end(kind, sandbox, _STOPPED, time_ns=time_ns)
        ]

    def _end_if_over(self, key: _Key, now_ms: int, *, closing: bool = False) -> list[bytes]:
        known = self._open.get(key)
        if known is None or not known.is_over(now_ms, closing=closing):
            return []
        return self._end(key, None, known.series.end_ms)

    def _end(self, key: _Key, reason: str | None, end_ms: int) -> list[bytes]:
        known = self._open.pop(key, None)
        if known is None:
            return []
        ended = replace(known.series, end_ms=max(known.series.end_ms, end_ms))
        line = self._last(ended, reason).to_json()
        self._changes[line] = ended.uid, None
        return [line]

    def _last(self, ended: ProtectionSeries, reason: str | None) -> DetectionFinding:
        subject = f"{ended.words.title}: {subject_text(ended.sandbox)}"
        return protection_finding(
            self._context(ended.sandbox),
            ended,
            stage="ended",
            message=f"{subject}: {reason or 'it has not happened again'}.",
            detail=None,
            processed_ns=time.time_ns(),
            end_reason=reason,
        )


def _processes(before: tuple[Process, ...], tampering: Tampering | None) -> tuple[Process, ...]:
    if tampering is None or tampering.process is None:
        return before
    one = tampering.process
    others = (each for each in before if (each.pid, each.path) != (one.pid, one.path))
    return (*others, one)[-PROCESSES:]


def _unknown(tampering: Tampering | None) -> int:
    return int(tampering is not None and tampering.process is None)


def _correlated(event: Event, uid: str) -> Event:
    metadata = event.__dict__["metadata"].model_copy(update={"correlation_uid": uid})
    return event.model_copy(update={"metadata": metadata})
