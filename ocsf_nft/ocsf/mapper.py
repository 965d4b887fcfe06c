"""Mapping of attempts to OCSF events: Network Activity (class 4001) and findings (2004)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.attempt import Attempt, IncidentEnd
from ocsf_nft.ocsf import findings, packet_outcome, severity
from ocsf_nft.ocsf.activity import Activities, derive
from ocsf_nft.ocsf.addresses import address_kind
from ocsf_nft.ocsf.templates import Templates
from ocsf_nft.ocsf.versions import LATEST, line_at

if TYPE_CHECKING:
    from ocsf_nft.ocsf.context import Context
    from ocsf_nft.ocsf.enums import Severity
    from ocsf_nft.ocsf.events import DetectionFinding, NetworkActivity
    from ocsf_nft.record import Record


class Mapper:
    """Mapper of attempts to OCSF events for one sandbox; several threads may use it at once.

    The ``context`` has the facts that log records lack, such as the name of the host. The same
    attempt always gives the same event, apart from ``metadata.processed_time``. A record may lack
    facts: these are left out of the event.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._activities = Activities(context)
        self._templates = Templates(self._activities)

    def network_activity(self, attempt: Attempt, *, processed_ns: int) -> NetworkActivity:
        """Return the Network Activity event of one attempt.

        ``processed_ns`` is the current time (ns since the epoch, UTC). The event's ``time`` is the
        packet's timestamp. If the attempt has several packets, ``time`` is the end of their time
        window, because only then is the count complete. Source port, TCP flags, Community ID and
        raw data are those of the packet in the attempt's record.

        The numbers of the record must be in the ranges that Record documents. Its texts may be
        arbitrary.
        """
        derived = derive(attempt, self._context.severities)
        return self._activities.event(attempt, derived, processed_ns=processed_ns)

    def line(self, attempt: Attempt, *, processed_ns: int, version: str = LATEST) -> bytes:
        """Return the Network Activity event of an attempt as one line of JSON, without line end.

        ``version`` is the version of OCSF, one of ``versions.VERSIONS``. ``processed_ns`` is the
        current time (ns since the epoch, UTC).
        """
        derived = derive(attempt, self._context.severities)
        line = self._templates.line(attempt, derived, processed_ns=processed_ns, version=version)
        if line is None:
            event = self._activities.event(attempt, derived, processed_ns=processed_ns)
            line = line_at(event.to_json(), version)
        return line

    def is_finding(self, record: Record, packets: int) -> bool:
        """Return true if the attempts of a flow must become a Detection Finding.

        The severity and the number of packets decide. ``record`` is the latest log record of the
        flow; it gives the severity. ``packets`` is the number of packets in all attempts of the
        flow.
        """
        return self._context.threshold.is_reached(self._severity(record), packets)

    def finding(
        self, found: Attempt | IncidentEnd, *, processed_ns: int
    ) -> DetectionFinding | None:
        """Return the Detection Finding of an attempt, or of the end of an incident.

        An incident is a series of attempts of one flow without a pause. Most incidents are not
        significant enough for a finding: then the result is None. ``processed_ns`` is the current
        time (ns since the epoch, UTC).
        """
        record, incident = found.record, found.incident
        if incident is None or incident.found_at is None:
            return None
        direction = packet_outcome.direction(record, self._context.uplinks)
        if isinstance(found, IncidentEnd):
            stage = "ended"
        else:
            stage = "begun" if incident.found_at == incident.windows else "goes on"
        whole = Attempt(
            record=record,
            packets=incident.packets,
            bytes=None,
            start_ns=incident.start_ns,
            end_ns=found.end_ns,
            incident=incident,
            attribution=incident.attribution,
        )
        return findings.of_attempt(
            found,
            incident,
            self.network_activity(whole, processed_ns=processed_ns),
            findings.STAGES[stage],
            severity=self._severity(record),
            destination=address_kind(record.destination),
            proxy=self._activities.proxy(whole, direction)[0],
            processed_ns=processed_ns,
        )

    def _severity(self, record: Record) -> Severity:
        direction = packet_outcome.direction(record, self._context.uplinks)
        return severity.of_flow(
            record, direction, address_kind(record.destination), self._context.severities
        )
