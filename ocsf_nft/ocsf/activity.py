"""An attempt as an OCSF Network Activity event (class 4001), of what was worked out of it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocsf_nft.ip_text import packed
from ocsf_nft.ocsf import (
    actors,
    attack,
    attribution_enrichment,
    community_id,
    event_uids,
    messages,
    packet_outcome,
    protocols,
    severity,
)
from ocsf_nft.ocsf.addresses import place_of
from ocsf_nft.ocsf.cache_sizes import CACHED
from ocsf_nft.ocsf.context import device_of, product
from ocsf_nft.ocsf.endpoints import boundary, endpoints, observables_of
from ocsf_nft.ocsf.enums import (
    Confidence,
    Direction,
    ObservationPoint,
    ProtocolVersion,
    Severity,
)
from ocsf_nft.ocsf.event_uids import NETWORK_ACTIVITY
from ocsf_nft.ocsf.events import SCHEMA_VERSION, NetworkActivity
from ocsf_nft.ocsf.firewall_rule import firewall_rule
from ocsf_nft.ocsf.objects import (
    Attack,
    Metadata,
    NetworkConnectionInfo,
    NetworkProxy,
    NetworkTraffic,
)
from ocsf_nft.ocsf.safe_text import byte_size, encodable, plain, visible

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.attempt import Aggregation, Attempt
    from ocsf_nft.flow import Flow
    from ocsf_nft.ocsf.addresses import Place
    from ocsf_nft.ocsf.context import Context, Proxy
    from ocsf_nft.ocsf.severity import SeverityRule


class Derived(NamedTuple):
    """What is worked out of an attempt's values, where its event does not just copy them.

    ``source`` and ``destination`` are where the record's addresses are, ``severity`` is what the
    configuration says of it, if it says anything, ``raw_bytes`` the size of the raw record.
    """

    source: Place | None
    destination: Place | None
    severity: Severity | None
    uid: str
    correlation_uid: str
    community_uid: str | None
    raw_bytes: int


def derived(attempt: Attempt, severities: Iterable[SeverityRule]) -> Derived:
    """What follows from an attempt's values; ``severities`` are the configuration's."""
    record = attempt.record
    source, destination = packed(record.source), packed(record.destination)
    return Derived(
        None if source is None else place_of(source),
        None if destination is None else place_of(destination),
        severity.configured(record, severities),
        event_uids.event_uid(NETWORK_ACTIVITY, record.origin.identity),
        _correlation_uid(attempt),
        community_id.of_record(record, source, destination),
        byte_size(record.origin.raw),
    )


def _correlation_uid(attempt: Attempt) -> str:
    record, merged = attempt.record, attempt.aggregation
    if merged is not None:
        return event_uids.merged_uid(record.sandbox, record.rule, record.uid, merged.reason)
    if attempt.streak is not None:
        return event_uids.streak_uid(attempt.streak.identity)
    return event_uids.attempt_uid(record)


class Activities:
    """Makes Network Activity events in one context."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._device, self._device_observables = device_of(context)
        self._container = actors.container_of(context.container)
        self._proxies: dict[int, tuple[Proxy, NetworkProxy]] = {}
        for proxy in context.proxies:
            endpoint = NetworkProxy(ip=str(proxy.address), port=proxy.port).keep_json()
            self._proxies.setdefault(proxy.address.version, (proxy, endpoint))

    def event(self, attempt: Attempt, of_it: Derived, *, processed_ns: int) -> NetworkActivity:
        """The event of one attempt; ``processed_ns`` is now, in ns since the epoch, UTC.

        What it says of addresses, of uids and of sizes is only what ``of_it`` says.
        """
        record, merged = attempt.record, attempt.aggregation
        way = packet_outcome.direction(record, self._context.uplinks)
        source, destination, matters = of_it.source, of_it.destination, of_it.severity
        if matters is None:
            matters = packet_outcome.severity(record, way, destination)
        if merged is None:
            answered = packet_outcome.answer(record, way, destination)
        else:
            answered = packet_outcome.answer_to_all(record.rule, way, record.verdict)
            if of_it.severity is None:
                matters = max(matters, Severity.MEDIUM)
        outcome = packet_outcome.outcome(record, answered)
        proxy, proxy_endpoint = self.proxy(attempt, way)
        left_over = plain(record.details)
        left_over["prefix"] = visible(record.prefix)
        if record.sandbox is not None:
            left_over["sandbox"] = visible(record.sandbox)
        src_endpoint, dst_endpoint = endpoints(
            record, way, source, destination, self._container, left_over
        )
        actor = actors.actor_of(record, attempt.attribution, left_over)
        left_over |= actors.unmapped_of(attempt.process)
        if record.ethertype is not None:
            left_over["ethertype"] = record.ethertype
        if merged is not None:
            left_over["merged"] = _merged(merged)
        start, end = attempt.start_ns // 1_000_000, attempt.end_ns // 1_000_000
        return NetworkActivity(
            activity_id=outcome.activity,
            time=end if attempt.packets > 1 else record.time_ns // 1_000_000,
            start_time=start,
            end_time=end,
            duration=None if start == end else end - start,
            count=attempt.packets,
            severity_id=matters,
            status_id=outcome.status,
            status_code=None if answered is None else answered.value,
            status_detail=messages.detail(attempt, way, answered, proxy, destination),
            message=messages.message(attempt, way, answered),
            action_id=outcome.action,
            disposition_id=outcome.disposition,
            is_alert=matters >= Severity.MEDIUM,
            confidence_id=Confidence.HIGH if packet_outcome.is_ours(record) else None,
            firewall_rule=firewall_rule(
                self._context, record.rule, is_ours=packet_outcome.is_ours(record)
            ),
            attacks=_attacks(attempt, way, destination),
            is_src_dst_assignment_known=packet_outcome.is_initiator_known(record),
            observation_point_id=_OBSERVATION_POINTS.get(way),
            src_endpoint=src_endpoint,
            dst_endpoint=dst_endpoint,
            proxy_endpoint=proxy_endpoint,
            connection_info=NetworkConnectionInfo(
                direction_id=way,
                protocol_num=record.protocol,
                protocol_name=protocols.NAMES.get(
                    -1 if record.protocol is None else record.protocol
                ),
                protocol_ver_id=_VERSIONS.get(record.ip_version),
                tcp_flags=record.tcp_flags,
                boundary_id=boundary(source, destination),
                community_uid=of_it.community_uid,
            ),
            traffic=_traffic(attempt.packets, attempt.bytes),
            actor=actor,
            device=self._device,
            observables=(
                *observables_of("dst_endpoint", dst_endpoint),
                *observables_of("src_endpoint", src_endpoint),
                *actors.observables_of(actor),
                *self._device_observables,
            )
            or None,
            enrichments=attribution_enrichment.enrichments_of(attempt.attribution),
            raw_data=encodable(record.origin.raw),
            raw_data_size=of_it.raw_bytes,
            unmapped=left_over,
            metadata=_metadata(attempt, of_it, processed_ns),
        )

    def proxy(
        self, attempt: Attempt, way: Direction
    ) -> tuple[Proxy, NetworkProxy] | tuple[None, None]:
        """The proxy that should have been used, if one would have helped."""
        version = attempt.record.ip_version
        is_frame = version is None and attempt.aggregation is None
        if not packet_outcome.is_ours(attempt.record) or is_frame or way is Direction.INBOUND:
            return None, None
        # A sandbox with one proxy of one family is to use that one for everything.
        other = next(iter(self._proxies.values()), (None, None))
        return other if version is None else self._proxies.get(version, other)


_VERSIONS: Final[dict[int | None, ProtocolVersion]] = {
    4: ProtocolVersion.IPV4,
    6: ProtocolVersion.IPV6,
}
_OBSERVATION_POINTS: Final = {
    Direction.OUTBOUND: ObservationPoint.SOURCE,
    Direction.INBOUND: ObservationPoint.DESTINATION,
}


def _attacks(
    attempt: Attempt, way: Direction, destination: Place | None
) -> tuple[Attack, ...] | None:
    record = attempt.record
    if record.sandbox is None or not packet_outcome.is_attempt(record):
        return None
    if way is not Direction.OUTBOUND or packet_outcome.is_housekeeping(record, destination):
        return None
    if attempt.aggregation is not None:
        # That a set was full, or was not read in time, may be others' doing.
        is_of_one_user = attempt.aggregation.reason == "many" and record.uid is not None
        return attack.SCAN if is_of_one_user else None
    return attack.attacks(
        record, is_cloud_metadata=destination is not None and destination.is_cloud_metadata
    )


@lru_cache(maxsize=CACHED)
def _traffic(packets: int, length: int | None) -> NetworkTraffic:
    return NetworkTraffic(packets=packets, bytes=length).keep_json()


def _merged(merged: Aggregation) -> dict[str, Any]:
    """Why packets are told together, and of which flows: the schema has no place for many."""
    told: dict[str, Any] = {"why": merged.reason}
    if merged.flows is not None:
        told["flows"] = merged.flows
    if merged.sample:
        told["sample"] = [_flow(one) for one in merged.sample]
    return told


def _flow(flow: Flow) -> dict[str, Any]:
    facts = {
        "uid": flow.uid,
        "protocol": flow.protocol,
        "destination": flow.destination,
        "port": flow.port,
        "ethertype": flow.ethertype,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _metadata(attempt: Attempt, of_it: Derived, processed_ns: int) -> Metadata:
    record, origin = attempt.record, attempt.record.origin
    return Metadata(
        version=SCHEMA_VERSION,
        uid=of_it.uid,
        product=product(),
        log_name="netfilter",
        log_provider="netfilter",
        log_source=visible(origin.log_source),
        log_format=origin.log_format,
        original_time=None if origin.original_time is None else visible(origin.original_time),
        original_event_uid=visible(origin.identity),
        sequence=origin.sequence,
        correlation_uid=of_it.correlation_uid,
        logged_time=record.received_ns // 1_000_000,
        processed_time=processed_ns // 1_000_000,
    )
