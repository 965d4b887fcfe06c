"""Interfaces of a network namespace, and the routes of its packets to given addresses."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
from typing import TYPE_CHECKING, Final

from ocsf_nft import rtnetlink
from ocsf_nft.errors import AbsentError, FenceError, UsageError
from ocsf_nft.fence import routes
from ocsf_nft.fence.spec import Surroundings, Uplink

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from ocsf_nft.fence.values import Address, Network
    from ocsf_nft.netns import Namespace
    from ocsf_nft.rtnetlink import Link

#: A process with CAP_NET_ADMIN in the namespace may add millions.
_MOST_ADDRESSES: Final = 500


def survey(
    namespace: Namespace,
    destinations: Iterable[Address],
    networks: Iterable[Network] = (),
    *,
    takes_any_route: bool = False,
) -> Surroundings:
    """Return the interfaces of a namespace, and the addresses to which its fence must allow ARP.

    The sandbox may reach ``destinations`` and ``networks``. The fence allows ARP to the
    networks anyway: for them, the result has only the gateways. If a route leads to one of them,
    the result has ``pins``. With ``takes_any_route``, it has pins if there is any route that is not
    link-local. Raises AbsentError, UnsupportedError, FenceError.
    """
    requested, requested_networks = tuple(destinations), tuple(networks)
    with _report_errors():
        return namespace.call(
            lambda: _survey(requested, requested_networks, _routed() if takes_any_route else set())
        )


def with_networks(namespace: Namespace, found: Surroundings) -> Surroundings:
    """Return ``found`` with the gateways and the networks on the links of its pinned uplinks.

    Raises AbsentError, UnsupportedError, FenceError.
    """
    if not found.pins:
        return found
    with _report_errors():
        entries = namespace.call(routes.all_routes)
    used = [each for each in entries if each.ifindex in found.uplink_indexes]
    gateways = {each.gateway for each in used if each.gateway is not None}
    networks = (each.network for each in used if each.gateway is None and not each.is_link_local)
    return dataclasses.replace(
        found,
        neighbours=_sorted({*found.neighbours, *gateways}),
        link_networks=_collapsed(networks),
    )


def survey_pinned(
    namespace: Namespace,
    before: Surroundings,
    destinations: Iterable[Address] = (),
    networks: Iterable[Network] = (),
    versions: Collection[int] = (),
) -> Surroundings:
    """Return the present interfaces of a namespace, with the uplinks and addresses of ``before``.

    ``before`` is the result of an earlier survey, with ``pins``. Routes and addresses that a
    process in the namespace has changed since then have no effect. ``destinations`` and
    ``networks`` are new ones: their next hops are added if they are on a pinned uplink. For each IP
    version in ``versions`` without an address in ``before``, the present addresses are added.
    Raises AbsentError, UnsupportedError, FenceError.
    """
    requested, requested_networks = tuple(destinations), tuple(networks)
    unknown = set(versions) - {each.version for each in before.addresses}
    with _report_errors():
        return namespace.call(
            lambda: _survey_pinned(before, requested, requested_networks, unknown)
        )


def survey_device(namespace: Namespace, device: str) -> Surroundings:
    """Return the name and index of a VM's TAP device; all other values of the result are empty.

    Raises AbsentError if ``device`` does not exist, and UsageError if it is the loopback interface.
    Raises FenceError if ``device`` is a port of a bridge, of a bond or of a VRF. Also raises
    UnsupportedError.
    """
    with _report_errors():
        found = namespace.call(lambda: [link for link in rtnetlink.links() if link.name == device])
    if not found:
        raise AbsentError(f"there is no interface {device} in {namespace}: make the TAP first")
    if found[0].is_loopback:
        raise UsageError(
            f"the interface {device} in {namespace} is loopback: name the VM's TAP device"
        )
    if found[0].is_port:
        # Packets that arrive on a port have the name of the bridge in the forward hook.
        raise FenceError(
            f"the interface {device} in {namespace} is a port of a bridge, a bond or a VRF, where "
            "the fence of a VM has no effect: take it out (`ip link set … nomaster`)"
        )
    return Surroundings(links=(device,), ifindex=found[0].ifindex)


def names() -> tuple[str, ...]:
    """Return the names of all interfaces in the calling thread's namespace, except loopback.

    Raises FenceError if netlink fails.
    """
    with _report_errors():
        return tuple(link.name for link in rtnetlink.links() if not link.is_loopback)


@contextlib.contextmanager
def _report_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a timeout has no errno
        raise FenceError(
            f"the kernel doesn't list links and routes: {error.strerror or error}"
        ) from error


def _routed() -> set[int]:
    """Return the indexes of interfaces with a route; none if all routes are link-local."""
    found = routes.all_routes()
    is_known = any(not each.is_link_local for each in found)
    return {each.ifindex for each in found} if is_known else set()


def _collapsed(networks: Iterable[Network]) -> tuple[Network, ...]:
    """Return the fewest networks with the same addresses."""
    known = tuple(networks)
    return (
        *ipaddress.collapse_addresses(
            each for each in known if isinstance(each, ipaddress.IPv4Network)
        ),
        *ipaddress.collapse_addresses(
            each for each in known if isinstance(each, ipaddress.IPv6Network)
        ),
    )


def _survey(
    requested: tuple[Address, ...],
    networks: tuple[Network, ...],
    routed_indexes: Collection[int],
) -> Surroundings:
    links = [link for link in rtnetlink.links() if not link.is_loopback]
    found = [routes.to_address(destination) for destination in requested]
    hops = {*found, *routes.to_networks(networks)}
    used = {hop.ifindex for hop in hops} | {*routed_indexes}
    # The allowed addresses too: a gateway that has one of them may use it when it resolves the
    # sandbox's link address.
    neighbours = {hop.neighbour for hop in hops if hop.neighbour is not None} | {
        destination
        for destination, hop in zip(requested, found, strict=True)
        if hop.neighbour is not None
    }
    routed = [link for link in links if link.ifindex in used]
    uplinks = routed or links
    indexes = tuple(link.ifindex for link in uplinks)
    addresses = _addresses()
    return Surroundings(
        links=tuple(link.name for link in links),
        uplinks=tuple(link.name for link in uplinks),
        neighbours=_sorted(neighbours),
        addresses=_own(address for _, address in addresses),
        macs=tuple(sorted({link.mac for link in uplinks if link.mac is not None})),
        pins=tuple(map(_identity, routed)),
        link_locals=_link_locals(routed, addresses),
        uplink_indexes=indexes,
        outer_indexes=indexes,
    )


def _survey_pinned(
    before: Surroundings,
    requested: tuple[Address, ...],
    networks: tuple[Network, ...],
    unknown: Collection[int],
) -> Surroundings:
    links = [link for link in rtnetlink.links() if not link.is_loopback]
    present = tuple(map(_identity, links))
    found = {destination: routes.to_address(destination) for destination in requested}
    added = {each for each, hop in found.items() if hop.neighbour is not None} | {
        hop.neighbour
        for hop in (*found.values(), *routes.to_networks(networks))
        if hop.neighbour is not None and hop.ifindex in before.uplink_indexes
    }
    addresses = before.addresses
    if unknown:
        own = _own(address for _, address in _addresses())
        addresses += tuple(each for each in own if each.version in unknown)
    return dataclasses.replace(
        before,
        links=tuple(link.name for link in links),
        neighbours=_sorted({*before.neighbours, *added}),
        addresses=_sorted(addresses),
        missing=tuple(pin.name for pin in before.pins if not any(map(pin.is_same, present))),
    )


def _addresses() -> list[tuple[int, Address]]:
    # The kernel lists the oldest ones of a link first.
    return list(rtnetlink.addresses(_MOST_ADDRESSES))


def _identity(link: Link) -> Uplink:
    return Uplink(
        name=link.name,
        ifindex=link.ifindex,
        mac=link.mac,
        peer_ifindex=link.peer_ifindex,
        peer_nsid=link.peer_nsid,
    )


def _own(addresses: Iterable[Address]) -> tuple[Address, ...]:
    # Each link has IPv6 link-local addresses of its own, which the kernel makes by itself.
    return _sorted(
        {
            each
            for each in addresses
            if not each.is_loopback and not (each.version == 6 and each.is_link_local)
        }
    )


def _link_locals(
    links: Sequence[Link], addresses: Iterable[tuple[int, Address]]
) -> tuple[Address, ...]:
    """Return the IPv6 link-local addresses of ``links``, also those that are made later."""
    indexes = {link.ifindex for link in links}
    found = {
        address
        for index, address in addresses
        if index in indexes and address.version == 6 and address.is_link_local
    }
    return _sorted(found | {_link_local_of(link.mac) for link in links if link.mac is not None})


def _link_local_of(mac: str) -> Address:
    """Return the link-local address that the kernel makes of an Ethernet address (RFC 4291)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return ipaddress.ip_address(b"\xfe\x80" + bytes(6) + identifier)


def _sorted(addresses: Iterable[Address]) -> tuple[Address, ...]:
    return tuple(sorted(addresses, key=lambda each: (each.version, int(each))))
