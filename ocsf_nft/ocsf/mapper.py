"""A record becomes an OCSF Network Activity event (class 4001)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf import attack, community_id, identity, protocols, verdict, wording
from ocsf_nft.ocsf.addresses import Place, place
from ocsf_nft.ocsf.caching import CACHED
from ocsf_nft.ocsf.context import Context, Proxy, product
from ocsf_nft.ocsf.enums import (
    Action,
    Boundary,
    Confidence,
    Direction,
    Disposition,
    NetworkActivityId,
    NetworkScope,
    ObservableType,
    ObservationPoint,
    ProtocolVersion,
    Severity,
    Status,
)
from ocsf_nft.ocsf.events import SCHEMA_VERSION, NetworkActivity
from ocsf_nft.ocsf.objects import (
    Actor,
    Attack,
    FirewallRule,
    Group,
    Metadata,
    NetworkConnectionInfo,
    NetworkEndpoint,
    NetworkProxy,
    NetworkTraffic,
    Observable,
    User,
)
from ocsf_nft.ocsf.text import byte_size, encodable, plain, visible
from ocsf_nft.ocsf.verdict import Answer

if TYPE_CHECKING:
    from ocsf_nft.record import Record

_CLASS_UID: Final = 4001
_MAC: Final = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\Z")
_RULE_DESCRIPTIONS: Final = {
    verdict.EGRESS: "what the sandbox sends goes to its proxy, or nowhere",
    verdict.FORWARD: "nothing is forwarded into the sandbox, out of it or through it",
    verdict.INGRESS: "nothing comes into the sandbox but what a proxy answers",
    verdict.LINK: "no frame that did not come from the IP stack leaves the sandbox",
    verdict.GUARD: "the host's end of the link takes nothing but traffic to the proxy",
}
_UNKNOWN_ENDPOINT: Final = NetworkEndpoint(name="unknown")


class Mapper:
    """Maps records with one context; made once, and safe to share between threads.

    The same record gives the same event, apart from ``metadata.processed_time``. No record is
    too poor: what it lacks is left out.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._device = None if context.host is None else context.host.device().keep_json()
        self._device_observables = (
            ()
            if self._device is None or self._device.hostname is None
            else (_observable("device.hostname", ObservableType.HOSTNAME, self._device.hostname),)
        )
        self._proxies: dict[int, tuple[Proxy, NetworkProxy]] = {}
        for proxy in context.proxies:
            endpoint = NetworkProxy(ip=str(proxy.address), port=proxy.port).keep_json()
            self._proxies.setdefault(proxy.address.version, (proxy, endpoint))

    def network_activity(self, record: Record, *, processed_ns: int) -> NetworkActivity:
        """The event of one record; ``processed_ns`` is now, in ns since the epoch, UTC.

        The numbers of the record must be in the ranges that Record gives them; its texts may be
        anything.
        """
        way = verdict.direction(record, self._context.uplinks)
        source, destination = place(record.source), place(record.destination)
        answered = verdict.answer(record, way, destination)
        severity = verdict.severity(record, way, destination)
        proxy, proxy_endpoint = self._proxy(record, way)
        left_over = plain(record.details)
        left_over["prefix"] = visible(record.prefix)
        src_endpoint, dst_endpoint = _endpoints(record, way, source, destination, left_over)
        actor = _actor_of(record, left_over)
        if record.ethertype is not None:
            left_over["ethertype"] = record.ethertype
        time = record.time_ns // 1_000_000
        return NetworkActivity(
            activity_id=NetworkActivityId.REFUSE,
            time=time,
            start_time=time,
            end_time=time,
            count=1,
            severity_id=severity,
            status_id=Status.FAILURE,
            status_code=None if answered is None else answered.value,
            status_detail=wording.detail(record, way, answered, proxy, destination),
            message=wording.message(record, way, answered),
            action_id=Action.DENIED,
            disposition_id=(
                Disposition.DROPPED if answered is Answer.NOTHING else Disposition.BLOCKED
            ),
            is_alert=severity >= Severity.MEDIUM,
            confidence_id=None if record.sandbox is None else Confidence.HIGH,
            firewall_rule=self._firewall_rule(record),
            attacks=_attacks(record, way, destination),
            is_src_dst_assignment_known=verdict.is_initiator_known(record),
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
                boundary_id=_boundary(source, destination),
                community_uid=community_id.of_record(record, source, destination),
            ),
            traffic=_traffic(record.length),
            actor=actor,
            device=self._device,
            observables=(
                *_observables_of("dst_endpoint", dst_endpoint),
                *_observables_of("src_endpoint", src_endpoint),
                *_user_observables(actor),
                *self._device_observables,
            )
            or None,
            raw_data=encodable(record.origin.raw),
            raw_data_size=byte_size(record.origin.raw),
            unmapped=left_over,
            metadata=_metadata(record, processed_ns),
        )

    def _proxy(
        self, record: Record, way: Direction
    ) -> tuple[Proxy, NetworkProxy] | tuple[None, None]:
        if record.sandbox is None or record.ip_version is None or way is Direction.INBOUND:
            return None, None
        # A sandbox with one proxy of one family is to use that one for everything.
        other = next(iter(self._proxies.values()), (None, None))
        return self._proxies.get(record.ip_version, other)

    def _firewall_rule(self, record: Record) -> FirewallRule | None:
        if not record.rule:
            return None
        if record.sandbox is None:
            return _foreign_rule(record.rule)
        facts = self._context.rules.get(record.rule)
        if facts is None:
            return _own_rule(record.rule, None, None)
        return _own_rule(record.rule, facts.uid, facts.condition)


_VERSIONS: Final[dict[int | None, ProtocolVersion]] = {
    4: ProtocolVersion.IPV4,
    6: ProtocolVersion.IPV6,
}
_OBSERVATION_POINTS: Final = {
    Direction.OUTBOUND: ObservationPoint.SOURCE,
    Direction.INBOUND: ObservationPoint.DESTINATION,
}


@lru_cache(maxsize=256)
def _foreign_rule(name: str) -> FirewallRule:
    return FirewallRule(name=visible(name)).keep_json()


@lru_cache(maxsize=256)
def _own_rule(name: str, uid: str | None, condition: str | None) -> FirewallRule:
    return FirewallRule(
        name=visible(name),
        uid=uid,
        type="nftables",
        desc=_RULE_DESCRIPTIONS.get(name),
        condition=condition,
    ).keep_json()


def _attacks(
    record: Record, way: Direction, destination: Place | None
) -> tuple[Attack, ...] | None:
    foreign = record.sandbox is None
    if foreign or way is not Direction.OUTBOUND or verdict.is_housekeeping(record, destination):
        return None
    return attack.attacks(
        record, is_cloud_metadata=destination is not None and destination.is_cloud_metadata
    )


def _endpoints(
    record: Record,
    way: Direction,
    source: Place | None,
    destination: Place | None,
    left_over: dict[str, Any],
) -> tuple[NetworkEndpoint | None, NetworkEndpoint | None]:
    """Both ends; what fits neither goes to ``left_over``.

    An interface belongs to the end that is on its side: a packet that was passing came in from
    the source and would have gone out to the destination.
    """
    source_link, destination_link = record.in_interface, record.out_interface
    if source_link is None:
        source_link, destination_link = destination_link, None
    elif destination_link is None and way is not Direction.OUTBOUND:
        source_link, destination_link = None, source_link
    src = _endpoint(
        record.sandbox if way is Direction.OUTBOUND else None,
        source,
        record.source_port,
        _mac(record.mac_source, "mac_source", left_over),
        source_link,
    )
    dst = _endpoint(
        record.sandbox if way is Direction.INBOUND else None,
        destination,
        record.destination_port,
        _mac(record.mac_destination, "mac_destination", left_over),
        destination_link,
    )
    if source is None and record.source is not None:
        left_over["source"] = visible(record.source)
    if destination is None and record.destination is not None:
        left_over["destination"] = visible(record.destination)
    if src is None and record.source_port is not None:
        left_over["source_port"] = record.source_port
    if dst is None and record.destination_port is not None:
        left_over["destination_port"] = record.destination_port
    if dst is not None:
        dst.keep_json()
    elif src is None:
        src = _UNKNOWN_ENDPOINT
    return src, dst


@lru_cache(maxsize=CACHED)
def _endpoint(
    name: str | None, where: Place | None, port: int | None, mac: str | None, link: str | None
) -> NetworkEndpoint | None:
    is_anonymous = name is None and where is None and link is None
    if is_anonymous and mac is None:
        return None
    return NetworkEndpoint(
        name=None if name is None else visible(name),
        # The schema takes no endpoint that has nothing but a MAC address; it is one's name on
        # the link.
        uid=mac if is_anonymous else None,
        ip=None if where is None else where.text,
        port=port,
        mac=mac,
        interface_name=None if link is None else visible(link),
        network_scope_id=None if where is None else where.scope,
    )


def _mac(text: str | None, key: str, left_over: dict[str, Any]) -> str | None:
    if text is None or _MAC.match(text) is not None:
        return text
    left_over[key] = visible(text)
    return None


def _boundary(source: Place | None, destination: Place | None) -> Boundary | None:
    if source is None or destination is None:
        return None
    if source.is_loopback and destination.is_loopback:
        return Boundary.LOCALHOST
    scopes = {source.scope, destination.scope}
    if NetworkScope.EXTERNAL in scopes:
        return Boundary.EXTERNAL
    return Boundary.INTERNAL if scopes == {NetworkScope.INTERNAL} else None


@lru_cache(maxsize=CACHED)
def _traffic(length: int | None) -> NetworkTraffic:
    return NetworkTraffic(packets=1, bytes=length).keep_json()


def _actor_of(record: Record, left_over: dict[str, Any]) -> Actor | None:
    if record.uid is not None:
        return _actor(record.uid, record.gid)
    if record.gid is not None:
        left_over["gid"] = record.gid
    return None


@lru_cache(maxsize=CACHED)
def _actor(uid: int, gid: int | None) -> Actor:
    groups = None if gid is None else (Group(uid=str(gid)),)
    return Actor(user=User(uid=str(uid), groups=groups)).keep_json()


def _observable(name: str, kind: ObservableType, value: str) -> Observable:
    return Observable(name=name, type_id=kind, value=value).keep_json()


def _observables_of(end: str, endpoint: NetworkEndpoint | None) -> tuple[Observable, ...]:
    if endpoint is None:
        return ()
    # The source's port says nothing about anybody: it is a new one each time.
    port = endpoint.port if end == "dst_endpoint" else None
    return _endpoint_observables(end, endpoint.ip, port, endpoint.mac, endpoint.uid)


@lru_cache(maxsize=CACHED)
def _endpoint_observables(
    end: str, ip: str | None, port: int | None, mac: str | None, uid: str | None
) -> tuple[Observable, ...]:
    found = (
        ("ip", ObservableType.IP_ADDRESS, ip),
        ("port", ObservableType.PORT, port),
        ("mac", ObservableType.MAC_ADDRESS, mac),
        ("uid", ObservableType.ENDPOINT_UID, uid),
    )
    return tuple(
        _observable(f"{end}.{name}", kind, str(value))
        for name, kind, value in found
        if value is not None
    )


def _user_observables(actor: Actor | None) -> tuple[Observable, ...]:
    return () if actor is None else _uid_observables(actor.user.uid)


@lru_cache(maxsize=CACHED)
def _uid_observables(uid: str) -> tuple[Observable, ...]:
    return (_observable("actor.user.uid", ObservableType.USER_UID, uid),)


def _metadata(record: Record, processed_ns: int) -> Metadata:
    origin = record.origin
    return Metadata(
        version=SCHEMA_VERSION,
        uid=identity.event_uid(_CLASS_UID, origin.identity),
        product=product(),
        log_name="netfilter",
        log_provider="netfilter",
        log_source=visible(origin.log_source),
        log_format=origin.log_format,
        original_time=None if origin.original_time is None else visible(origin.original_time),
        original_event_uid=visible(origin.identity),
        sequence=origin.sequence,
        correlation_uid=identity.attempt_uid(record),
        logged_time=record.received_ns // 1_000_000,
        processed_time=processed_ns // 1_000_000,
    )
