"""What is to be told becomes events, and events become lines."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from ocsf_nft.attempt import Attempt, IncidentEnd
from ocsf_nft.ocsf import scan_findings
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.packet_outcome import is_ours
from ocsf_nft.ocsf.severity import Threshold

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ocsf_nft.attempt import FanOut
    from ocsf_nft.ocsf.context import Host
    from ocsf_nft.ocsf.events import Event
    from ocsf_nft.ocsf.severity import SeverityRule
    from ocsf_nft.record import Record

#: Events made before other tasks get a turn: 2 ms of work at most.
_SLICE: Final = 16


class StoreEvents(Protocol):
    """Where events are kept: those of one call all or none, and with them their source's position.

    Raises DeliveryError.
    """

    async def __call__(
        self, lines: Sequence[bytes], *, source: str = "", position: str = ""
    ) -> None:
        """Return when they are kept."""


class Reporter:
    """Maps with what is known of each sandbox, and has the events kept.

    ``host`` is the machine that is told of; None when that is not known, as for a log of another
    machine. ``severities`` and ``threshold`` are as in :class:`Context`, for all sandboxes.
    """

    def __init__(
        self,
        store_events: StoreEvents,
        host: Host | None,
        *,
        severities: tuple[SeverityRule, ...] = (),
        threshold: Threshold | None = None,
    ) -> None:
        self.host = host
        self.events = 0
        self._store_events = store_events
        self._mappers: dict[str | None, Mapper] = {}
        self._contexts: dict[str, Context] = {}
        self._host_context = Context(
            host=host, severities=severities, threshold=threshold or Threshold()
        )
        self._unknown = Mapper(self._host_context)

    def set_context(self, sandbox: str, context: Context) -> None:
        """Tell of a sandbox with what is known about it from now on."""
        merged_context = replace(
            context,
            severities=self._host_context.severities,
            threshold=self._host_context.threshold,
        )
        self._contexts[sandbox] = merged_context
        self._mappers[sandbox] = Mapper(merged_context)

    def set_severity_rules(
        self, severities: tuple[SeverityRule, ...], threshold: Threshold
    ) -> None:
        """Tell how much attempts matter by other rules from now on."""
        self._host_context = replace(self._host_context, severities=severities, threshold=threshold)
        self._unknown = Mapper(self._host_context)
        for sandbox, context in self._contexts.items():
            self.set_context(sandbox, context)

    def context(self, sandbox: str | None = None) -> Context:
        """What is known of a sandbox, or of the host alone."""
        return (
            self._host_context
            if sandbox is None
            else self._contexts.get(sandbox, self._host_context)
        )

    async def lines(self, found: Iterable[Attempt | FanOut | IncidentEnd]) -> list[bytes]:
        """The events of what was found, as JSON; other tasks get their turns meanwhile."""
        lines: list[bytes] = []
        for number, each in enumerate(found, 1):
            lines.extend(self._events(each))
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        return lines

    async def deliver(
        self, lines: Sequence[bytes], *, source: str = "", position: str = ""
    ) -> None:
        """Keep events, and with them where their source is to go on; raises DeliveryError."""
        await self._store_events(lines, source=source, position=position)
        self.events += len(lines)

    async def emit(self, event: Event) -> None:
        """Deliver one event about ourselves; raises DeliveryError."""
        await self.deliver([event.to_json()])

    def is_finding(self, record: Record, packets: int) -> bool:
        """Whether attempts that a record stands for, and that came to so many packets, are one."""
        return self._mapper(record).is_finding(record, packets)

    def _mapper(self, record: Record) -> Mapper:
        # What another firewall calls its sandbox is none that is known here.
        name = record.sandbox if is_ours(record) else None
        return self._mappers.get(name, self._unknown)

    def _events(self, found: Attempt | FanOut | IncidentEnd) -> Iterator[bytes]:
        now_ns = time.time_ns()
        if not isinstance(found, Attempt | IncidentEnd):
            context = self.context(found.sandbox)
            yield scan_findings.fan_out(context, found, processed_ns=now_ns).to_json()
            return
        mapper = self._mapper(found.record)
        if isinstance(found, Attempt):
            yield mapper.line(found, processed_ns=now_ns)
        finding = mapper.finding(found, processed_ns=now_ns)
        if finding is not None:
            yield finding.to_json()
