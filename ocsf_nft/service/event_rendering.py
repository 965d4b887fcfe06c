"""Conversion of blocked packets to OCSF events, and of events to JSON lines."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft.attempt import Attempt, IncidentEnd
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.finding_settings import FindingSettings
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.packet_outcome import is_ours
from ocsf_nft.ocsf.scan_findings import fan_out
from ocsf_nft.ocsf.templates import Templates
from ocsf_nft.service.finding_counts import FindingCounts
from ocsf_nft.service.protection_findings import ProtectionFindings
from ocsf_nft.state.change import Change

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

    from ocsf_nft.attempt import FanOut
    from ocsf_nft.ocsf.context import Host
    from ocsf_nft.ocsf.event_base import Event
    from ocsf_nft.ocsf.severity import SeverityRule
    from ocsf_nft.record import DnsQuestion, Record
    from ocsf_nft.service.finding_counts import FindingCount, FindingKey

_log = structlog.get_logger()

#: Events rendered before other tasks get a turn: 2 ms of work at most.
_SLICE: Final = 16


class Reporter:
    """Converter of blocked packets to stored OCSF events, for all sandboxes.

    ``commit`` stores events, and the changes of the state that belong to them. ``host`` is the
    machine that logged the packets, if known. ``severities`` are the rules for an event's severity.
    ``findings`` has the conditions for Detection Finding events.
    """

    def __init__(
        self,
        commit: Callable[[Change], Awaitable[None]],
        host: Host | None,
        *,
        severities: tuple[SeverityRule, ...] = (),
        findings: FindingSettings | None = None,
    ) -> None:
        self.host = host
        self.events = 0
        #: Whether each name of a DNS query has an event of its own.
        self.has_dns_activity = False
        self._commit = commit
        self._mappers: dict[str | None, Mapper] = {}
        #: Facts about sandboxes, as given, and with those about the host.
        self._given: dict[str, Context] = {}
        self._contexts: dict[str, Context] = {}
        self._host_context = Context(
            host=host, severities=severities, findings=findings or FindingSettings()
        )
        # Events of different sandboxes differ only in copied values.
        self._templates = Templates(host, is_limited=True)
        self._unknown = Mapper(self._host_context, self._templates)
        self._finding_counts = FindingCounts()
        self.findings = ProtectionFindings(self.context, self._finding_counts.add)

    def set_context(self, sandbox: str, context: Context) -> None:
        """Set the facts that later events of a sandbox contain, such as its proxies.

        The host, and the settings of findings, are those of the reporter. Its severity rules come
        after those in ``context``.
        """
        known = self._host_context
        self._given[sandbox] = context
        merged = replace(
            context,
            host=known.host,
            severities=(*context.severities, *known.severities),
            findings=known.findings,
        )
        self._contexts[sandbox] = merged
        self._mappers[sandbox] = Mapper(merged, self._templates)

    @contextlib.contextmanager
    def facts_of_ended(self, sandbox: str, context: Context) -> Iterator[None]:
        """Use these facts in the events of a sandbox that has ended, in the ``with`` block.

        If its name has facts already, they remain, because they may be those of a successor.
        """
        if sandbox in self._given:
            yield
            return
        self.set_context(sandbox, context)
        try:
            yield
        finally:
            self._forget_facts(sandbox)

    def _forget_facts(self, sandbox: str) -> None:
        for facts in (self._given, self._contexts, self._mappers):
            facts.pop(sandbox, None)

    async def drop_context(self, sandbox: str) -> None:
        """Remove the facts about a sandbox that has ended, and end its findings."""
        await self._commit_lines(self.findings.end_sandbox(sandbox, time_ns=time.time_ns()))
        self._forget_facts(sandbox)
        self._drop_expired_counts()

    def finding_counts(self) -> Mapping[FindingKey, FindingCount]:
        """Return the numbers of findings; those of an ended sandbox remain for 15 minutes."""
        self._drop_expired_counts()
        return self._finding_counts.counts()

    def _drop_expired_counts(self) -> None:
        self._finding_counts.drop_expired(self._contexts, time.time_ns() // 1_000_000)

    def set_severity_rules(
        self, severities: tuple[SeverityRule, ...], findings: FindingSettings
    ) -> None:
        """Use new severity rules, and new settings of findings, for all later events."""
        self._host_context = replace(self._host_context, severities=severities, findings=findings)
        self._unknown = Mapper(self._host_context, self._templates)
        for sandbox, context in self._given.items():
            self.set_context(sandbox, context)

    def context(self, sandbox: str | None = None) -> Context:
        """Return the facts about a sandbox, or those about the host if it is None or unknown."""
        return self._contexts.get(sandbox or "", self._host_context)

    async def lines(self, found: Iterable[Attempt | FanOut | IncidentEnd]) -> list[bytes]:
        """Return OCSF events, as JSON lines, about blocked packets and scans."""
        lines: list[bytes] = []
        for number, each in enumerate(found, 1):
            lines.extend(self._events(each))
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        return lines

    async def commit(self, change: Change) -> None:
        """Store events, and the changes of the state that belong to them; raises DeliveryError."""
        if findings := self.findings.take_changes(change.events):
            change = replace(change, findings=findings)
        await self._commit(change)
        self.events += len(change.events)

    async def resume_findings(self, stored: Mapping[str, bytes]) -> None:
        """Continue the findings that were open when the service stopped; delete damaged ones."""
        if damaged := self.findings.resume(stored, now_ns=time.time_ns()):
            _log.warning("stored findings are damaged, and get no further event", findings=damaged)
            await self._commit(Change(findings=dict.fromkeys(damaged)))

    async def end_quiet_findings(self, *, closing: bool = False) -> None:
        """Emit the last event of each finding about the protection that is over.

        With ``closing``, the service stops.
        """
        await self._commit_lines(self.findings.end_quiet(time.time_ns(), closing=closing))

    async def _commit_lines(self, lines: list[bytes]) -> None:
        if lines:
            await self.commit(Change(events=lines))

    async def emit(self, event: Event) -> None:
        """Store one event about this service or a fence; raises DeliveryError."""
        await self.commit(Change(events=[event.to_json()]))

    def is_finding(
        self, record: Record, packets: int, questions: tuple[DnsQuestion, ...] = ()
    ) -> bool:
        """Return true if a flow's attempts are severe or numerous enough for a finding.

        ``record`` is the flow's latest log record, ``packets`` the number in all attempts, and
        ``questions`` are the DNS questions in them.
        """
        return self._mapper(record).is_finding(record, packets, questions)

    def _mapper(self, record: Record) -> Mapper:
        # A sandbox name in another firewall's record is none of the sandboxes here.
        name = record.sandbox if is_ours(record) else None
        return self._mappers.get(name, self._unknown)

    def _events(self, found: Attempt | FanOut | IncidentEnd) -> Iterator[bytes]:
        now_ns = time.time_ns()
        if not isinstance(found, Attempt | IncidentEnd):
            context = self.context(found.sandbox)
            scan = fan_out(context, found, processed_ns=now_ns)
            if found.stage != "ended":
                self._finding_counts.add(scan, found.sandbox)
            yield scan.to_json()
            return
        mapper = self._mapper(found.record)
        if isinstance(found, Attempt):
            yield mapper.line(found, processed_ns=now_ns)
            if self.has_dns_activity:
                for event in mapper.dns_activities(found, processed_ns=now_ns):
                    yield event.to_json()
        finding = mapper.finding(found, processed_ns=now_ns)
        if finding is not None:
            if isinstance(found, Attempt):
                self._finding_counts.add(finding, found.record.sandbox)
            yield finding.to_json()
