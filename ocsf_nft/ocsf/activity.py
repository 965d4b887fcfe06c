"""Conversion of an attempt to a Network Activity event (class 4001).

An attempt consists of the packets of one flow (or of aggregated flows) in one time window.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocsf_nft.ip_text import packed
from ocsf_nft.log_prefixes import firewall_of
from ocsf_nft.ocsf import (
    actors,
    attack,
    dns_queries,
    finding_objects,
    identifiers,
    messages,
    objects,
    packet_outcome,
    protocols,
    severity,
)
from ocsf_nft.ocsf.addresses import packed_address_kind
from ocsf_nft.ocsf.context import (
    cloud_of,
    device_of,
    event_tenant,
    firewall_rule,
    foreign_rule,
    labels_of,
    product,
    tags_of,
)
from ocsf_nft.ocsf.endpoints import boundary, endpoints, observables_of
from ocsf_nft.ocsf.enums import (
    PROTOCOL_VERSIONS,
    Confidence,
    Direction,
    ObservationPoint,
    Severity,
)
from ocsf_nft.ocsf.event_base import SCHEMA_VERSION
from ocsf_nft.ocsf.events import NetworkActivity
from ocsf_nft.ocsf.foreign_log import logging_host, product_of
from ocsf_nft.ocsf.model import CACHED
from ocsf_nft.ocsf.safe_text import byte_size, encodable, plain, shown, visible

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.attempt import Aggregation, Attempt
    from ocsf_nft.flow import Flow
    from ocsf_nft.ocsf.addresses import AddressKind
    from ocsf_nft.ocsf.context import Context, Proxy
    from ocsf_nft.ocsf.event_codes import EventCode
    from ocsf_nft.ocsf.foreign_log import LoggingHost
    from ocsf_nft.ocsf.severity import SeverityRule


class Derived(NamedTuple):
    """Values that :func:`derive` computes from an attempt for its Network Activity event."""

    #: Kind of the packets' source address, for example private; None if unknown.
    source: AddressKind | None
    #: The same for the destination address.
    destination: AddressKind | None
    #: None if no severity rule of the configuration matches.
    severity: Severity | None
    uid: str
    correlation_uid: str
    community_uid: str | None
    #: Size of the log record of the first packet, in bytes.
    raw_bytes: int
    #: Name of the other firewall that logged the packet; None if unknown, or if a fence logged it.
    firewall: str | None
    #: Host that logged the packet, if the log names it.
    host: LoggingHost | None


def derive(attempt: Attempt, severities: Iterable[SeverityRule]) -> Derived:
    """Compute the event values that follow from an attempt and the configured ``severities``."""
    record = attempt.record
    source, destination = packed(record.source), packed(record.destination)
    return Derived(
        None if source is None else packed_address_kind(source),
        None if destination is None else packed_address_kind(destination),
        severity.configured(record, severities),
        identifiers.event_uid(record.origin.identity),
        _correlation_uid(attempt),
        identifiers.community_id(record, source, destination),
        byte_size(record.origin.raw)
        if record.origin.raw_bytes is None
        else record.origin.raw_bytes,
        None if packet_outcome.is_ours(record) else firewall_of(record.prefix),
        None if record.origin.host is None else logging_host(record.origin.host),
    )


def _correlation_uid(attempt: Attempt) -> str:
    record, aggregation = attempt.record, attempt.aggregation
    if aggregation is not None:
        return identifiers.aggregation_uid(
            record.sandbox, record.rule, record.uid, aggregation.reason
        )
    if attempt.incident is not None:
        return identifiers.incident_uid(attempt.incident.identity)
    return identifiers.flow_uid(record)


class Activities:
    """Builder of Network Activity events for one sandbox.

    The ``context`` has the facts that log records lack, such as the host and the proxies.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._device, self._device_observables = device_of(context)
        self._cloud = cloud_of(context)
        self._labels = labels_of(context)
        self._tenant = shown(event_tenant(context))
        self._container = actors.container_of(context.container)
        self._proxies: dict[int, tuple[Proxy, objects.NetworkProxy]] = {}
        for proxy in context.proxies:
            endpoint = objects.NetworkProxy(ip=str(proxy.address), port=proxy.port).cache_json()
            self._proxies.setdefault(proxy.address.version, (proxy, endpoint))

    def event(self, attempt: Attempt, derived: Derived, *, processed_ns: int) -> NetworkActivity:
        """Return the Network Activity event of an attempt.

        ``derived`` is the result of :func:`derive` for the same attempt. ``processed_ns`` is the
        current time (ns since the epoch, UTC).
        """
        record, aggregation = attempt.record, attempt.aggregation
        direction = packet_outcome.direction(record, self._context.uplinks)
        source, destination, level = derived.source, derived.destination, derived.severity
        if level is None:
            level = packet_outcome.severity(record, direction, destination)
        if aggregation is None:
            answer = packet_outcome.answer(record, direction, destination)
        else:
            answer = packet_outcome.answer_to_all(record.rule, direction, record.verdict)
            if derived.severity is None:
                level = max(level, Severity.MEDIUM)
        outcome = packet_outcome.outcome(record, answer)
        proxy, proxy_endpoint = self.proxy(attempt, direction)
        device, device_observables = self._device, self._device_observables
        if device is None and derived.host is not None:
            device, device_observables = derived.host.device, derived.host.observables
        # One object, because an index of so many different values is large and of no use.
        unmapped: dict[str, Any] = {"packet": plain(record.details)} if record.details else {}
        unmapped["prefix"] = visible(record.prefix)
        if record.sandbox is not None:
            unmapped["sandbox"] = visible(record.sandbox)
        src_endpoint, dst_endpoint = endpoints(
            record, direction, source, destination, self._container, unmapped
        )
        actor = actors.actor_of(record, attempt.attribution, unmapped)
        unmapped |= actors.unmapped_of(attempt.process)
        if record.ethertype is not None:
            unmapped["ethertype"] = record.ethertype
        if aggregation is not None:
            # The schema has no attribute for these facts.
            unmapped["aggregation"] = _aggregation(aggregation)
        if attempt.questions:
            unmapped["dns"] = dns_queries.unmapped_of(attempt.questions)
        enrichments = actors.enrichments_of(attempt.attribution) or ()
        start, end = attempt.start_ns // 1_000_000, attempt.end_ns // 1_000_000
        return NetworkActivity(
            activity_id=outcome.activity,
            # A single packet has its own timestamp.
            time=end if attempt.packets > 1 else record.time_ns // 1_000_000,
            start_time=start,
            end_time=end,
            count=attempt.packets,
            severity_id=level,
            status_id=outcome.status,
            status_code=None if answer is None else answer.value,
            status_detail=messages.detail(attempt, direction, answer, proxy, destination),
            message=messages.message(attempt, direction, answer),
            action_id=outcome.action,
            disposition_id=outcome.disposition,
            confidence_id=_confidence(attempt),
            firewall_rule=(
                firewall_rule(self._context, record.rule)
                if packet_outcome.is_ours(record)
                else foreign_rule(record.rule, derived.firewall)
            ),
            attacks=_attacks(attempt, direction, destination),
            is_src_dst_assignment_known=packet_outcome.is_initiator_known(record),
            observation_point_id=_OBSERVATION_POINTS.get(direction),
            src_endpoint=src_endpoint,
            dst_endpoint=dst_endpoint,
            proxy_endpoint=proxy_endpoint,
            connection_info=objects.NetworkConnectionInfo(
                direction_id=direction,
                protocol_num=record.protocol,
                protocol_name=protocols.NAMES.get(
                    -1 if record.protocol is None else record.protocol
                ),
                protocol_ver_id=PROTOCOL_VERSIONS.get(record.ip_version),
                tcp_flags=record.tcp_flags,
                boundary_id=boundary(source, destination),
                community_uid=derived.community_uid,
            ),
            traffic=_traffic(attempt.packets, attempt.bytes),
            actor=actor,
            device=device,
            cloud=self._cloud,
            observables=(
                *observables_of("dst_endpoint", dst_endpoint),
                *observables_of("src_endpoint", src_endpoint),
                *actors.observables_of(actor),
                *device_observables,
                *dns_queries.observables_of(attempt.questions, len(enrichments)),
            )
            or None,
            enrichments=(*enrichments, *dns_queries.enrichments_of(attempt.questions)) or None,
            raw_data=encodable(record.origin.raw),
            raw_data_size=derived.raw_bytes,
            unmapped=unmapped,
            metadata=self._metadata(
                attempt,
                derived,
                packet_outcome.code(attempt, direction, destination),
                processed_ns,
            ),
        )

    def proxy(
        self, attempt: Attempt, direction: Direction
    ) -> tuple[Proxy, objects.NetworkProxy] | tuple[None, None]:
        """Return the proxy that the sender should have used, and the OCSF object of that proxy.

        Both are None if the sandbox has no known proxy. Both are also None for inbound packets,
        frames without IP, and packets logged by other firewalls.
        """
        version = attempt.record.ip_version
        is_frame = version is None and attempt.aggregation is None
        if not packet_outcome.is_ours(attempt.record) or is_frame or direction is Direction.INBOUND:
            return None, None
        # If no proxy has the packet's family, the sandbox uses its first proxy.
        other = next(iter(self._proxies.values()), (None, None))
        return other if version is None else self._proxies.get(version, other)

    def _metadata(
        self, attempt: Attempt, derived: Derived, code: EventCode, processed_ns: int
    ) -> objects.Metadata:
        record, origin = attempt.record, attempt.record.origin
        logged_time = record.received_ns // 1_000_000
        logging_product, loggers = product(), None
        if not packet_outcome.is_ours(record):
            logger = objects.Logger(
                name=logging_product.name, product=logging_product, logged_time=logged_time
            )
            logging_product, loggers = product_of(derived.firewall), (logger,)
        return objects.Metadata(
            version=SCHEMA_VERSION,
            uid=derived.uid,
            event_code=code,
            product=logging_product,
            loggers=loggers,
            tenant_uid=self._tenant,
            log_name="netfilter",
            log_provider="netfilter",
            log_source=visible(origin.log_source),
            log_format=origin.log_format,
            original_time=shown(origin.original_time),
            original_event_uid=visible(origin.identity),
            sequence=origin.sequence,
            correlation_uid=derived.correlation_uid,
            logged_time=logged_time,
            processed_time=processed_ns // 1_000_000,
            labels=self._labels,
            tags=tags_of(record.sandbox),
        )


_OBSERVATION_POINTS: Final = {
    Direction.OUTBOUND: ObservationPoint.SOURCE,
    Direction.INBOUND: ObservationPoint.DESTINATION,
}


def _confidence(attempt: Attempt) -> Confidence | None:
    if not packet_outcome.is_ours(attempt.record):
        return None
    by = attempt.attribution
    return Confidence.LOW if by is not None and by.is_doubted else Confidence.HIGH


def _attacks(
    attempt: Attempt, direction: Direction, destination: AddressKind | None
) -> tuple[finding_objects.Attack, ...] | None:
    record = attempt.record
    if record.sandbox is None or not packet_outcome.is_attempt(record):
        return None
    if direction is not Direction.OUTBOUND or packet_outcome.is_housekeeping(record, destination):
        return None
    if attempt.aggregation is not None:
        # A full set, or a late read, can be caused by other users.
        is_of_one_user = attempt.aggregation.reason == "many" and record.uid is not None
        return attack.SCAN if is_of_one_user else None
    is_metadata = packet_outcome.is_metadata_access(record, direction, destination)
    return attack.attacks(record, is_cloud_metadata=is_metadata)


@lru_cache(maxsize=CACHED)
def _traffic(packets: int, length: int | None) -> objects.NetworkTraffic:
    return objects.NetworkTraffic(packets=packets, bytes=length).cache_json()


def _aggregation(aggregation: Aggregation) -> dict[str, Any]:
    facts: dict[str, Any] = {"reason": aggregation.reason}
    if aggregation.flows is not None:
        facts["flows"] = aggregation.flows
    if aggregation.sample:
        facts["sample"] = [_flow(one) for one in aggregation.sample]
    return facts


def _flow(flow: Flow) -> dict[str, Any]:
    return {name: value for name, value in asdict(flow).items() if value is not None}
