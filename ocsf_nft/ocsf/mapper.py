"""An attempt becomes OCSF events: Network Activity (class 4001), and at times a finding (2004)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.attempt import Attempt, IncidentEnd
from ocsf_nft.ocsf import findings, packet_outcome, severity
from ocsf_nft.ocsf.activity import Activities, derived
from ocsf_nft.ocsf.addresses import place
from ocsf_nft.ocsf.templates import Templates
from ocsf_nft.ocsf.versions import LATEST, line_at

if TYPE_CHECKING:
    from ocsf_nft.ocsf.context import Context
    from ocsf_nft.ocsf.enums import Severity
    from ocsf_nft.ocsf.events import DetectionFinding, NetworkActivity
    from ocsf_nft.record import Record


class Mapper:
    """Maps attempts with one context; made once, and safe to share between threads.

    The same attempt gives the same event, apart from ``metadata.processed_time``. No record is
    too poor: what it lacks is left out.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._activities = Activities(context)
        self._templates = Templates(self._activities)

    def network_activity(self, attempt: Attempt, *, processed_ns: int) -> NetworkActivity:
        """The event of one attempt; ``processed_ns`` is now, in ns since the epoch, UTC.

        ``time`` is the packet's own or, for a window of several packets, the window's end: that
        is when the event is true. What only a packet has (source port, TCP flags, Community ID,
        raw data) is of the one that the attempt's record tells of.

        The numbers of the record must be in the ranges that Record gives them; its texts may be
        anything.
        """
        of_it = derived(attempt, self._context.severities)
        return self._activities.event(attempt, of_it, processed_ns=processed_ns)

    def line(self, attempt: Attempt, *, processed_ns: int, version: str = LATEST) -> bytes:
        """The JSON of the event of one attempt, as :meth:`network_activity` makes it.

        It is told in ``version`` of ``versions.VERSIONS``, and has no line end.
        """
        of_it = derived(attempt, self._context.severities)
        line = self._templates.line(attempt, of_it, processed_ns=processed_ns, version=version)
        if line is None:
            event = self._activities.event(attempt, of_it, processed_ns=processed_ns)
            line = line_at(event.to_json(), version)
        return line

    def is_finding(self, record: Record, packets: int) -> bool:
        """Whether attempts that a record stands for, and that came to so many packets, are one."""
        return self._context.threshold.is_reached(self._matters(record), packets)

    def finding(
        self, found: Attempt | IncidentEnd, *, processed_ns: int
    ) -> DetectionFinding | None:
        """The finding that an attempt is, goes on with, or was the last of; None for most.

        ``processed_ns`` is now, in ns since the epoch, UTC.
        """
        record, streak = found.record, found.streak
        if streak is None or streak.found_at is None:
            return None
        way = packet_outcome.direction(record, self._context.uplinks)
        if isinstance(found, IncidentEnd):
            stage = "ended"
        else:
            stage = "begun" if streak.found_at == streak.windows else "goes on"
        whole = Attempt(
            record=record,
            packets=streak.packets,
            bytes=None,
            start_ns=streak.start_ns,
            end_ns=found.end_ns,
            streak=streak,
            attribution=streak.attribution,
        )
        return findings.of_attempt(
            found,
            streak,
            self.network_activity(whole, processed_ns=processed_ns),
            findings.STAGES[stage],
            severity=self._matters(record),
            destination=place(record.destination),
            proxy=self._activities.proxy(whole, way)[0],
            processed_ns=processed_ns,
        )

    def _matters(self, record: Record) -> Severity:
        way = packet_outcome.direction(record, self._context.uplinks)
        return severity.of_flow(record, way, place(record.destination), self._context.severities)
