"""An attempt becomes OCSF events: Network Activity (class 4001), and at times a finding (2004)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.attempt import Attempt, Ended
from ocsf_nft.ocsf import findings, severity, verdict
from ocsf_nft.ocsf.activity import Activities, derived
from ocsf_nft.ocsf.addresses import place
from ocsf_nft.ocsf.templates import Templates
from ocsf_nft.ocsf.versions import LATEST, line_at

if TYPE_CHECKING:
    from ocsf_nft.ocsf.context import Context
    from ocsf_nft.ocsf.events import DetectionFinding, NetworkActivity


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

    def finding(self, found: Attempt | Ended, *, processed_ns: int) -> DetectionFinding | None:
        """The finding that an attempt is, goes on with, or was the last of; None for most.

        Whether it is one depends on its flow and on what its streak comes to, and on nothing
        that somebody would have to remember: what was begun is ended, whoever tells of it.
        ``processed_ns`` is now, in ns since the epoch, UTC.
        """
        record, streak = found.record, found.streak
        if streak is None or not verdict.is_ours(record):
            return None
        way = verdict.direction(record, self._context.uplinks)
        destination = place(record.destination)
        matters = severity.of_flow(record, way, destination, self._context.severities)
        reached = self._context.threshold.is_reached
        if not reached(matters, streak.packets):
            return None
        if isinstance(found, Ended):
            stage = "ended"
        else:
            stage = "goes on" if reached(matters, streak.packets_before) else "begun"
        whole = Attempt(
            record=record,
            packets=streak.packets,
            bytes=None,
            start_ns=streak.start_ns,
            end_ns=found.end_ns,
            streak=streak,
            process=found.process,
        )
        return findings.of_attempt(
            found,
            self.network_activity(whole, processed_ns=processed_ns),
            findings.STAGES[stage],
            severity=matters,
            destination=destination,
            proxy=self._activities.proxy(whole, way)[0],
            processed_ns=processed_ns,
        )
