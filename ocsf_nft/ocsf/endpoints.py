"""The two ends of a packet, as OCSF's endpoints, and what is worth looking up about them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf.cache_sizes import CACHED
from ocsf_nft.ocsf.enums import Boundary, Direction, NetworkScope, ObservableType
from ocsf_nft.ocsf.objects import NetworkEndpoint, Observable
from ocsf_nft.ocsf.safe_text import visible
from ocsf_nft.ocsf.services import service

if TYPE_CHECKING:
    from ocsf_nft.ocsf.addresses import Place
    from ocsf_nft.ocsf.objects import Container
    from ocsf_nft.record import Record

_MAC: Final = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\Z")
_UNKNOWN_ENDPOINT: Final = NetworkEndpoint(name="unknown")


def endpoints(  # noqa: PLR0913, PLR0917 - what is known of two ends
    record: Record,
    way: Direction,
    source: Place | None,
    destination: Place | None,
    container: Container | None,
    left_over: dict[str, Any],
) -> tuple[NetworkEndpoint | None, NetworkEndpoint | None]:
    """Both ends; what fits neither goes to ``left_over``.

    An interface belongs to the end that is on its side: a packet that was passing came in from
    the source and would have gone out to the destination. Of a packet that was passing through a
    sandbox, and of which only a counter tells, neither end may be known: then the sandbox is its
    source, for that is where it was.
    """
    source_link, destination_link = record.in_interface, record.out_interface
    if source_link is None:
        source_link, destination_link = destination_link, None
    elif destination_link is None and way is not Direction.OUTBOUND:
        source_link, destination_link = None, source_link
    src = endpoint(
        record.sandbox if way is Direction.OUTBOUND else None,
        record.source,
        source,
        record.source_port,
        _mac(record.mac_source, "mac_source", left_over),
        source_link,
        container=container if way is Direction.OUTBOUND else None,
    )
    known = service(record.protocol, record.destination_port)
    dst = endpoint(
        record.sandbox if way is Direction.INBOUND else None,
        record.destination,
        destination,
        record.destination_port,
        _mac(record.mac_destination, "mac_destination", left_over),
        destination_link,
        svc_name=None if known is None else known.name,
        container=container if way is Direction.INBOUND else None,
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
        src = endpoint(record.sandbox, container=container) or _UNKNOWN_ENDPOINT
    return src, dst


@lru_cache(maxsize=CACHED)
def endpoint(  # noqa: PLR0913, PLR0917 - what is known of one end
    name: str | None,
    address: str | None = None,
    where: Place | None = None,
    port: int | None = None,
    mac: str | None = None,
    link: str | None = None,
    *,
    svc_name: str | None = None,
    container: Container | None = None,
) -> NetworkEndpoint | None:
    """One end, by what is known of it; None when nothing is known that makes it somebody.

    ``where`` is the place of ``address``.
    """
    is_anonymous = name is None and where is None and link is None
    if is_anonymous and mac is None:
        return None
    return NetworkEndpoint(
        name=None if name is None else visible(name),
        # The schema takes no endpoint that has nothing but a MAC address; it is one's name on
        # the link.
        uid=mac if is_anonymous else None,
        ip=None if where is None else address,
        port=port,
        svc_name=svc_name,
        mac=mac,
        interface_name=None if link is None else visible(link),
        network_scope_id=None if where is None else where.scope,
        container=container,
    )


def _mac(text: str | None, key: str, left_over: dict[str, Any]) -> str | None:
    if text is None or _MAC.match(text) is not None:
        return text
    left_over[key] = visible(text)
    return None


def boundary(source: Place | None, destination: Place | None) -> Boundary | None:
    """What the packet would have crossed; None when one of the addresses doesn't say."""
    if source is None or destination is None:
        return None
    if source.is_loopback and destination.is_loopback:
        return Boundary.LOCALHOST
    scopes = {source.scope, destination.scope}
    if NetworkScope.EXTERNAL in scopes:
        return Boundary.EXTERNAL
    return Boundary.INTERNAL if scopes == {NetworkScope.INTERNAL} else None


def observable(name: str, kind: ObservableType, value: str) -> Observable:
    """The attribute at the path ``name`` of an event, which holds ``value``."""
    return Observable(name=name, type_id=kind, value=value).keep_json()


def observables_of(end: str, one: NetworkEndpoint | None) -> tuple[Observable, ...]:
    """What to look up of the endpoint that is the event's attribute ``end``."""
    if one is None:
        return ()
    # The source's port says nothing about anybody: it is a new one each time.
    port = one.port if end == "dst_endpoint" else None
    return _endpoint_observables(end, one.ip, port, one.mac, one.uid)


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
        observable(f"{end}.{name}", kind, str(value))
        for name, kind, value in found
        if value is not None
    )
