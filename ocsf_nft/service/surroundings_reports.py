"""Events, findings and log lines about changes of a fence's surroundings."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft.fence.surroundings import watcher
from ocsf_nft.fence.surroundings.changes import SurroundingChange
from ocsf_nft.fence.surroundings.news import SurroundingsNews
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.fence_state_events import Tampering
from ocsf_nft.ocsf.finding_parts import SURROUNDINGS_CHANGED
from ocsf_nft.ocsf.messages import counted
from ocsf_nft.ocsf.surroundings_events import joined, surroundings_changed
from ocsf_nft.service import fence_facts
from ocsf_nft.state.change import Change

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.service.event_rendering import Reporter
    from ocsf_nft.service.fence_reports import FenceReports

_log = structlog.get_logger()

_ENDED: Final = "none of the changes is left"


class SurroundingsReports:
    """Reports about the surroundings of one sandbox's fence."""

    def __init__(self, reports: FenceReports, reporter: Reporter) -> None:
        """Create the reports; ``reports`` are those about the fence itself."""
        self._reports = reports
        self._reporter = reporter
        #: Descriptions of the changes that are left.
        self.present: tuple[str, ...] = ()

    async def report(self, news: SurroundingsNews) -> None:
        """Emit an event about changes of the surroundings, and create or update the finding.

        If earlier changes have ended, and others are left, emit nothing.
        """
        self.present = _texts(news.present)
        if news.added:
            await self._report_added(news, self.present)
        elif not news.present:
            await self._commit(self._end())

    async def report_no_comparison(self, reason: str) -> None:
        """Report a change after which sent frames can't be compared with the fence's counters."""
        change = SurroundingChange("comparison", (reason,), reason, is_severe=True)
        news = SurroundingsNews(added=(change,), present=(), arrived_ns=time.time_ns())
        await self._report_added(news, (*self.present, reason))

    async def _report_added(self, news: SurroundingsNews, present: Sequence[str]) -> None:
        reports, sandbox = self._reports, self._reports.sandbox
        process = news.process
        if process is not None:
            process = await reports.described(process, news.arrived_ns)
        changes, outcome = _texts(news.added), _outcome(news)
        is_severe = any(each.is_severe for each in news.added)
        severity = Severity.HIGH if is_severe else Severity.MEDIUM
        tampering = Tampering(
            changes=joined(changes),
            process=process,
            since_ns=news.arrived_ns,
            lasted_ns=news.undone_after_ns,
        )
        event = surroundings_changed(
            fence_facts.context(reports.installed, self._reporter.host, sandbox),
            sandbox=sandbox.name,
            state=reports.state,
            changes=changes,
            present=present,
            severity=severity,
            tampering=tampering,
            outcome=outcome,
            time_ns=time.time_ns(),
        )
        lines = self._reporter.findings.lines(
            event,
            SURROUNDINGS_CHANGED,
            sandbox.name,
            severity=severity,
            tampering=tampering,
            lasts=bool(self.present),
        )
        # The event comes first: standard error may be a pipe without a reader.
        await self._commit(lines)
        _log.warning(
            "surroundings of a fence changed",
            sandbox=sandbox.name,
            changes=joined(changes),
            outcome=outcome,
        )

    def _end(self) -> list[bytes]:
        name = self._reports.sandbox.name
        findings = self._reporter.findings
        return findings.end(SURROUNDINGS_CHANGED, name, _ENDED, time_ns=time.time_ns())

    async def _commit(self, lines: list[bytes]) -> None:
        if lines:
            await self._reporter.commit(Change(events=lines))


def _texts(changes: Sequence[SurroundingChange]) -> tuple[str, ...]:
    return tuple(each.text for each in changes)


def _outcome(news: SurroundingsNews) -> str:
    if news.is_paused:
        return (
            f"not undone: more than {watcher.MOST_UNDOS} changes were made within "
            f"{watcher.WINDOW_SECONDS:.0f} s"
        )
    reason = f": {', '.join(news.failures)}" if news.failures else ""
    if not news.undone:
        return f"not undone{reason}"
    after = "" if news.undone_after_ns is None else f" {news.undone_after_ns / 1e6:.1f} ms later"
    left = len(news.added) - len(news.undone)
    if not left:
        return f"undone{after}"
    return f"{counted(len(news.undone), 'change')} undone{after}, {left} not undone{reason}"
