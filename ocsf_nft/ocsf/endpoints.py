"""Source and destination of a packet as OCSF endpoints, with their OCSF observables."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf.enums import Boundary, Direction, NetworkScope, ObservableType
from ocsf_nft.ocsf.model import CACHED
from ocsf_nft.ocsf.objects import NetworkEndpoint, Observable
from ocsf_nft.ocsf.protocols import service
from ocsf_nft.ocsf.safe_text import shown, visible

if TYPE_CHECKING:
    from ocsf_nft.ocsf.addresses import AddressKind
    from ocsf_nft.ocsf.objects import Container
    from ocsf_nft.record import Record

_MAC: Final = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\Z")
_UNKNOWN_ENDPOINT: Final = NetworkEndpoint(name="unknown")


def endpoints(  # noqa: PLR0913, PLR0917 - facts about two endpoints
    record: Record,
    direction: Direction,
    source: AddressKind | None,
    destination: AddressKind | None,
    container: Container | None,
    unmapped: dict[str, Any],
) -> tuple[NetworkEndpoint | None, NetworkEndpoint | None]:
    """Return source and destination of a log record's packet as OCSF endpoints.

    ``source`` and ``destination`` are the kinds of the addresses; None for an invalid address.
    ``direction`` determines to which endpoint ``container`` is added. Values that fit no endpoint
    are added to ``unmapped``. At least one of the two endpoints is not None.
    """
    # Two interfaces: a forwarded packet. A single interface belongs to the source, except the
    # incoming interface of a packet that is not outbound.
    source_interface, destination_interface = record.in_interface, record.out_interface
    if source_interface is None:
        source_interface, destination_interface = destination_interface, None
    elif destination_interface is None and direction is not Direction.OUTBOUND:
        source_interface, destination_interface = None, source_interface
    src = endpoint(
        record.sandbox if direction is Direction.OUTBOUND else None,
        record.source,
        source,
        record.source_port,
        _mac(record.mac_source, "mac_source", unmapped),
        source_interface,
        container=container if direction is Direction.OUTBOUND else None,
    )
    known = service(record.protocol, record.destination_port)
    dst = endpoint(
        record.sandbox if direction is Direction.INBOUND else None,
        record.destination,
        destination,
        record.destination_port,
        _mac(record.mac_destination, "mac_destination", unmapped),
        destination_interface,
        svc_name=None if known is None else known.name,
        container=container if direction is Direction.INBOUND else None,
    )
    if source is None and record.source is not None:
        unmapped["source"] = visible(record.source)
    if destination is None and record.destination is not None:
        unmapped["destination"] = visible(record.destination)
    if src is None and record.source_port is not None:
        unmapped["source_port"] = record.source_port
    if dst is None and record.destination_port is not None:
        unmapped["destination_port"] = record.destination_port
    if dst is not None:
        dst.cache_json()
    elif src is None:  # for example a forwarded packet that is known only from a counter
        src = endpoint(record.sandbox, container=container) or _UNKNOWN_ENDPOINT
    return src, dst


@lru_cache(maxsize=CACHED)
def endpoint(  # noqa: PLR0913, PLR0917 - facts about one endpoint
    name: str | None,
    address: str | None = None,
    kind: AddressKind | None = None,
    port: int | None = None,
    mac: str | None = None,
    interface: str | None = None,
    *,
    svc_name: str | None = None,
    container: Container | None = None,
) -> NetworkEndpoint | None:
    """Return an OCSF endpoint, or None if no name, interface, MAC or valid address is given.

    ``kind`` is the kind of ``address``, for example internal. ``kind`` must be None if the address
    is invalid. Then the endpoint does not contain the address.
    """
    is_anonymous = name is None and kind is None and interface is None
    if is_anonymous and mac is None:
        return None
    return NetworkEndpoint(
        name=shown(name),
        # The schema accepts no endpoint with only a MAC address; it identifies a host on a link.
        uid=mac if is_anonymous else None,
        ip=None if kind is None else address,
        port=port,
        svc_name=svc_name,
        mac=mac,
        interface_name=shown(interface),
        network_scope_id=None if kind is None else kind.scope,
        container=container,
    )


def is_mac(text: str) -> bool:
    """Return True if ``text`` is a MAC address, as OCSF requires."""
    return _MAC.match(text) is not None


def _mac(text: str | None, key: str, unmapped: dict[str, Any]) -> str | None:
    if text is None or is_mac(text):
        return text
    unmapped[key] = visible(text)
    return None


def boundary(source: AddressKind | None, destination: AddressKind | None) -> Boundary | None:
    """Return the OCSF boundary that a packet between two addresses would have crossed.

    The boundary is ``LOCALHOST`` between loopback addresses. It is ``EXTERNAL`` if at least one
    address is external, and ``INTERNAL`` if both are internal. Return None if a kind is None, and
    in all other cases.
    """
    if source is None or destination is None:
        return None
    if source.is_loopback and destination.is_loopback:
        return Boundary.LOCALHOST
    scopes = {source.scope, destination.scope}
    if NetworkScope.EXTERNAL in scopes:
        return Boundary.EXTERNAL
    return Boundary.INTERNAL if scopes == {NetworkScope.INTERNAL} else None


def observable(name: str, kind: ObservableType, value: str) -> Observable:
    """Return an OCSF observable: the ``value`` at the path ``name`` in an event."""
    return Observable(name=name, type_id=kind, value=value).cache_json()


def observables_below(
    path: str, *found: tuple[str, ObservableType, str | int | None]
) -> tuple[Observable, ...]:
    """Return the observables of an object at ``path``: name, type and value of each known value."""
    return tuple(
        observable(f"{path}.{name}", kind, str(value))
        for name, kind, value in found
        if value is not None
    )


def observables_of(end: str, one: NetworkEndpoint | None) -> tuple[Observable, ...]:
    """Return the OCSF observables of an endpoint: its IP address, MAC address, uid and port.

    ``end`` is the endpoint's name in the event. The port is included only if ``end`` is
    ``dst_endpoint``. Return an empty tuple if the endpoint is None.
    """
    if one is None:
        return ()
    # The source port identifies nothing: each connection has a new one.
    port = one.port if end == "dst_endpoint" else None
    return _endpoint_observables(end, one.ip, port, one.mac, one.uid)


@lru_cache(maxsize=CACHED)
def _endpoint_observables(
    end: str, ip: str | None, port: int | None, mac: str | None, uid: str | None
) -> tuple[Observable, ...]:
    return observables_below(
        end,
        ("ip", ObservableType.IP_ADDRESS, ip),
        ("port", ObservableType.PORT, port),
        ("mac", ObservableType.MAC_ADDRESS, mac),
        ("uid", ObservableType.ENDPOINT_UID, uid),
    )
