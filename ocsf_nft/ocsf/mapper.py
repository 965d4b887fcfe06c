"""Conversion of refused packets to OCSF events: Network Activity and Detection Finding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf import dns_queries, packet_outcome, severity
from ocsf_nft.ocsf.activity import Activities, derive
from ocsf_nft.ocsf.addresses import address_kind
from ocsf_nft.ocsf.context import event_labels, event_tenant
from ocsf_nft.ocsf.enums import Direction, Severity
from ocsf_nft.ocsf.event_slots import Surroundings
from ocsf_nft.ocsf.model import CACHED
from ocsf_nft.ocsf.templates import Templates
from ocsf_nft.ocsf.versions import STORED, line_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.attempt import IncidentEnd
    from ocsf_nft.ocsf.activity import Derived
    from ocsf_nft.ocsf.context import Context
    from ocsf_nft.ocsf.dns_tunnel import Tunnel
    from ocsf_nft.ocsf.events import DetectionFinding, DnsActivity, NetworkActivity
    from ocsf_nft.ocsf.templates import Pieces
    from ocsf_nft.record import DnsQuestion, Record

_DNS_PORT: Final = 53


class Mapper:
    """Converter of attempts (groups of refused packets) to OCSF events, for one sandbox.

    The same attempt always gives the same event, apart from ``metadata.processed_time``. Several
    threads may use a mapper at once.
    """

    def __init__(self, context: Context, templates: Templates | None = None) -> None:
        """Create the converter of a sandbox; mappers of the same host can share ``templates``.

        Raises ValueError if the templates are those of another host than ``context``'s.
        """
        if templates is not None and templates.host != context.host:
            raise ValueError("the templates are those of another host")
        self._context = context
        self._activities = Activities(context)
        self._templates = templates or Templates(context.host)
        self._around: dict[tuple[object, ...], Surroundings] = {}

    def network_activity(self, attempt: Attempt, *, processed_ns: int) -> NetworkActivity:
        """Return the Network Activity event of an attempt: one or more refused packets.

        ``processed_ns`` is the current time (ns since the epoch, UTC). Numbers in
        ``attempt.record`` must be valid, such as ports up to 65535.
        """
        derived = derive(attempt, self._context.severities)
        return self._activities.event(attempt, derived, processed_ns=processed_ns)

    def line(self, attempt: Attempt, *, processed_ns: int, version: str = STORED) -> bytes:
        """Return the Network Activity event of an attempt as one line of JSON, without a line end.

        ``version`` is an OCSF version of ``versions.VERSIONS``. ``processed_ns`` is the current
        time (ns since the epoch, UTC).
        """
        derived = derive(attempt, self._context.severities)
        line = self._templates.line(
            attempt, derived, self.around(attempt), processed_ns=processed_ns, version=version
        )
        if line is None:
            event = self._activities.event(attempt, derived, processed_ns=processed_ns)
            line = line_at(event.to_json(), version)
        return line

    @property
    def has_severities(self) -> bool:
        """Return True if severities are configured."""
        return bool(self._context.severities)

    def derived(self, attempt: Attempt) -> Derived:
        """Return the values that follow from an attempt."""
        return derive(attempt, self._context.severities)

    def pieces(self, attempt: Attempt, version: str) -> Pieces | None:
        """Return the template of an attempt's event in an OCSF version; None if there is none."""
        return self._templates.pieces(attempt, self.derived(attempt), self.around(attempt), version)

    def around(self, attempt: Attempt) -> Surroundings:
        """Return the facts about the sandbox that the event of an attempt has."""
        record, context = attempt.record, self._context
        direction = packet_outcome.direction(record, context.uplinks)
        is_ours = packet_outcome.is_ours(record)
        is_frame = record.ip_version is None and attempt.aggregation is None
        key = direction, is_ours, record.rule if is_ours else "", record.ip_version, is_frame
        found = self._around.get(key)
        if found is None:
            found = Surroundings.of(
                direction,
                self._activities.proxy(attempt, direction)[0],
                context.rules.get(record.rule) if is_ours else None,
                context.container,
                event_labels(context),
                event_tenant(context),
            )
            if len(self._around) >= CACHED:  # a text from a file may have any name
                self._around.clear()
            self._around[key] = found
        return found

    def is_finding(
        self, record: Record, packets: int, questions: tuple[DnsQuestion, ...] = ()
    ) -> bool:
        """Return True if a series of refused packets of one flow must become a Detection Finding.

        By default, the severity must be at least High, or Medium with at least 10 packets. The
        severity is that of ``record``, the latest log record. The DNS ``questions`` of the flow are
        a finding if they are a tunnel.
        """
        settings = self._context.findings
        return settings.is_finding(self._severity(record), packets) or (
            self._tunnel(record, questions) is not None
        )

    def finding(
        self, found: Attempt | IncidentEnd, *, processed_ns: int
    ) -> DetectionFinding | None:
        """Return the Detection Finding of an incident: a series of refused packets of one flow.

        Return None if ``found.incident`` is None or below the threshold for findings.
        ``processed_ns`` is the current time (ns since the epoch, UTC).
        """
        record, incident = found.record, found.incident
        if incident is None or incident.found_at is None:
            return None
        direction = packet_outcome.direction(record, self._context.uplinks)
        whole = Attempt(
            record=record,
            packets=incident.packets,
            bytes=None,
            start_ns=incident.start_ns,
            end_ns=found.end_ns,
            incident=incident,
            attribution=incident.attribution,
            questions=incident.questions,
        )
        from ocsf_nft.ocsf import findings  # noqa: PLC0415 - convert makes no findings

        tunnel = self._tunnel(record, incident.questions)
        level = self._severity(record)
        return findings.of_attempt(
            self._context,
            found,
            incident,
            self.network_activity(whole, processed_ns=processed_ns),
            severity=level if tunnel is None else max(level, Severity.HIGH),
            proxy=self._activities.proxy(whole, direction)[0],
            tunnel=tunnel,
            processed_ns=processed_ns,
        )

    def dns_activities(self, attempt: Attempt, *, processed_ns: int) -> Iterator[DnsActivity]:
        """Yield a DNS Activity event for each question of an attempt.

        ``processed_ns`` is the current time (ns since the epoch, UTC).
        """
        if attempt.questions:
            event = self.network_activity(attempt, processed_ns=processed_ns)
            is_only = len(attempt.questions) == 1
            for question in attempt.questions:
                yield dns_queries.dns_activity(event, question, is_only=is_only)

    def _tunnel(self, record: Record, questions: tuple[DnsQuestion, ...]) -> Tunnel | None:
        direction = packet_outcome.direction(record, self._context.uplinks)
        if record.destination_port != _DNS_PORT or direction is Direction.INBOUND:
            return None
        from ocsf_nft.ocsf.dns_tunnel import find_tunnel  # noqa: PLC0415 - only findings need it

        return find_tunnel(questions, self._context.findings.tunnel)

    def _severity(self, record: Record) -> Severity:
        direction = packet_outcome.direction(record, self._context.uplinks)
        return severity.of_flow(
            record, direction, address_kind(record.destination), self._context.severities
        )
