"""Interfaces of a network namespace, and the routes of its packets to given addresses."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ocsf_nft import rtnetlink
from ocsf_nft.errors import AbsentError, FenceError, UsageError
from ocsf_nft.fence import routes
from ocsf_nft.fence.spec import Surroundings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ocsf_nft.fence.values import Address, Network
    from ocsf_nft.netns import Namespace


def survey(
    namespace: Namespace, destinations: Iterable[Address], networks: Iterable[Network] = ()
) -> Surroundings:
    """Return the interfaces of a namespace, and the addresses to which its fence must allow ARP.

    The sandbox may reach ``destinations`` and ``networks``. The fence allows ARP to the
    networks anyway: for them, the result has only the gateways. Raises AbsentError,
    UnsupportedError, FenceError.
    """
    requested, requested_networks = tuple(destinations), tuple(networks)
    with _report_errors():
        return namespace.call(lambda: _survey(requested, requested_networks))


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


def _survey(requested: tuple[Address, ...], networks: tuple[Network, ...]) -> Surroundings:
    links = [link for link in rtnetlink.links() if not link.is_loopback]
    found = [routes.to_address(destination) for destination in requested]
    hops = {*found, *routes.to_networks(networks)}
    used = {hop.ifindex for hop in hops}
    # The allowed addresses too: a gateway that has one of them may use it when it resolves the
    # sandbox's link address.
    neighbours = {hop.neighbour for hop in hops if hop.neighbour is not None} | {
        destination
        for destination, hop in zip(requested, found, strict=True)
        if hop.neighbour is not None
    }
    uplinks = [link for link in links if link.ifindex in used] or links
    indexes = {link.ifindex for link in links}
    # The kernel makes link-local addresses by itself, some time after a link is up.
    own = {
        address
        for index, address in rtnetlink.addresses()
        if index in indexes and not address.is_link_local
    }
    return Surroundings(
        links=tuple(link.name for link in links),
        uplinks=tuple(link.name for link in uplinks),
        neighbours=_sorted(neighbours),
        addresses=_sorted(own),
        macs=tuple(sorted({link.mac for link in uplinks if link.mac is not None})),
    )


def _sorted(addresses: Iterable[Address]) -> tuple[Address, ...]:
    return tuple(sorted(addresses, key=lambda each: (each.version, int(each))))
