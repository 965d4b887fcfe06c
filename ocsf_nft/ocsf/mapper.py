"""An attempt becomes an OCSF Network Activity event (class 4001)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf import attack, community_id, identity, protocols, verdict, wording
from ocsf_nft.ocsf.addresses import Place, place
from ocsf_nft.ocsf.caching import CACHED
from ocsf_nft.ocsf.context import Context, Proxy, device_of, product
from ocsf_nft.ocsf.endpoints import boundary, endpoints, observable, observables_of
from ocsf_nft.ocsf.enums import (
    Action,
    Confidence,
    Direction,
    Disposition,
    NetworkActivityId,
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
    Group,
    Metadata,
    NetworkConnectionInfo,
    NetworkProxy,
    NetworkTraffic,
    Observable,
    User,
)
from ocsf_nft.ocsf.rules import firewall_rule
from ocsf_nft.ocsf.text import byte_size, encodable, plain, visible
from ocsf_nft.ocsf.verdict import Answer

if TYPE_CHECKING:
    from ocsf_nft.attempt import Attempt, Merged
    from ocsf_nft.flow import Flow
    from ocsf_nft.record import Record

_CLASS_UID: Final = 4001


class Mapper:
    """Maps attempts with one context; made once, and safe to share between threads.

    The same attempt gives the same event, apart from ``metadata.processed_time``. No record is
    too poor: what it lacks is left out.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._device, self._device_observables = device_of(context)
        self._proxies: dict[int, tuple[Proxy, NetworkProxy]] = {}
        for proxy in context.proxies:
            endpoint = NetworkProxy(ip=str(proxy.address), port=proxy.port).keep_json()
            self._proxies.setdefault(proxy.address.version, (proxy, endpoint))

    def network_activity(self, attempt: Attempt, *, processed_ns: int) -> NetworkActivity:
        """The event of one attempt; ``processed_ns`` is now, in ns since the epoch, UTC.

        ``time`` is the packet's own or, for a window of several packets, the window's end: that
        is when the event is true. What only a packet has (source port, TCP flags, Community ID,
        raw data) is of the one that the attempt's record tells of.

        The numbers of the record must be in the ranges that Record gives them; its texts may be
        anything.
        """
        record, merged = attempt.record, attempt.merged
        way = verdict.direction(record, self._context.uplinks)
        source, destination = place(record.source), place(record.destination)
        severity = verdict.severity(record, way, destination)
        if merged is None:
            answered = verdict.answer(record, way, destination)
        else:
            answered = verdict.answer_to_all(record.rule, way)
            severity = max(severity, Severity.MEDIUM)
        proxy, proxy_endpoint = self._proxy(attempt, way)
        left_over = plain(record.details)
        left_over["prefix"] = visible(record.prefix)
        src_endpoint, dst_endpoint = endpoints(record, way, source, destination, left_over)
        actor = _actor_of(record, left_over)
        if record.ethertype is not None:
            left_over["ethertype"] = record.ethertype
        if merged is not None:
            left_over["merged"] = _merged(merged)
        start, end = attempt.start_ns // 1_000_000, attempt.end_ns // 1_000_000
        return NetworkActivity(
            activity_id=NetworkActivityId.REFUSE,
            time=end if attempt.packets > 1 else record.time_ns // 1_000_000,
            start_time=start,
            end_time=end,
            duration=None if start == end else end - start,
            count=attempt.packets,
            severity_id=severity,
            status_id=Status.FAILURE,
            status_code=None if answered is None else answered.value,
            status_detail=wording.detail(attempt, way, answered, proxy, destination),
            message=wording.message(attempt, way, answered),
            action_id=Action.DENIED,
            disposition_id=(
                Disposition.DROPPED if answered is Answer.NOTHING else Disposition.BLOCKED
            ),
            is_alert=severity >= Severity.MEDIUM,
            confidence_id=None if record.sandbox is None else Confidence.HIGH,
            firewall_rule=firewall_rule(self._context, record.sandbox, record.rule),
            attacks=_attacks(attempt, way, destination),
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
                boundary_id=boundary(source, destination),
                community_uid=community_id.of_record(record, source, destination),
            ),
            traffic=_traffic(attempt.packets, attempt.bytes),
            actor=actor,
            device=self._device,
            observables=(
                *observables_of("dst_endpoint", dst_endpoint),
                *observables_of("src_endpoint", src_endpoint),
                *_user_observables(actor),
                *self._device_observables,
            )
            or None,
            raw_data=encodable(record.origin.raw),
            raw_data_size=byte_size(record.origin.raw),
            unmapped=left_over,
            metadata=_metadata(attempt, processed_ns),
        )

    def _proxy(
        self, attempt: Attempt, way: Direction
    ) -> tuple[Proxy, NetworkProxy] | tuple[None, None]:
        version = attempt.record.ip_version
        is_frame = version is None and attempt.merged is None
        if attempt.record.sandbox is None or is_frame or way is Direction.INBOUND:
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
    foreign = record.sandbox is None
    if foreign or way is not Direction.OUTBOUND or verdict.is_housekeeping(record, destination):
        return None
    if attempt.merged is not None:
        # That a set was full, or was not read in time, may be others' doing.
        is_of_one_user = attempt.merged.why == "many" and record.uid is not None
        return attack.SCAN if is_of_one_user else None
    return attack.attacks(
        record, is_cloud_metadata=destination is not None and destination.is_cloud_metadata
    )


@lru_cache(maxsize=CACHED)
def _traffic(packets: int, length: int | None) -> NetworkTraffic:
    return NetworkTraffic(packets=packets, bytes=length).keep_json()


def _merged(merged: Merged) -> dict[str, Any]:
    """Why packets are told together, and of which flows: the schema has no place for many."""
    told: dict[str, Any] = {"why": merged.why}
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


def _user_observables(actor: Actor | None) -> tuple[Observable, ...]:
    return () if actor is None else _uid_observables(actor.user.uid)


@lru_cache(maxsize=CACHED)
def _uid_observables(uid: str) -> tuple[Observable, ...]:
    return (observable("actor.user.uid", ObservableType.USER_UID, uid),)


def _metadata(attempt: Attempt, processed_ns: int) -> Metadata:
    record, merged = attempt.record, attempt.merged
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
        correlation_uid=(
            identity.attempt_uid(record)
            if merged is None
            else identity.merged_uid(record.sandbox, record.rule, record.uid, merged.why)
        ),
        logged_time=record.received_ns // 1_000_000,
        processed_time=processed_ns // 1_000_000,
    )
