"""Interfaces and routes of a network namespace, read by rtnetlink.

The message layouts are those of ``include/uapi/linux/rtnetlink.h``. The requests need no privilege.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft import netlink, rtnetlink
from ocsf_nft.errors import AbsentError, FenceError, UsageError
from ocsf_nft.fence.spec import Surroundings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ocsf_nft.fence.values import Address
    from ocsf_nft.netns import Namespace

_RTM_GETROUTE: Final = 26
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_VIA: Final = 18
_RTN_UNICAST: Final = 1

_RTMSG: Final = struct.Struct("=BBBBBBBBI")  # family, dst/src length, tos, table, …, type, flags

#: Errors of the kernel if there is no route to an address (yet).
_NO_ROUTE: Final = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ENODEV}


class Route(NamedTuple):
    """Route to an address: the next hop (``neighbour``) and the index of the outgoing interface."""

    #: The gateway. Without a gateway or a route, the address itself. None for a local, broadcast or
    #: multicast address.
    neighbour: Address | None
    #: None if the kernel has no route, and for a local, broadcast or multicast address.
    ifindex: int | None


def survey(namespace: Namespace, destinations: Iterable[Address]) -> Surroundings:
    """Return the interfaces of a namespace, and the addresses to which its fence must allow ARP.

    ``destinations`` are the addresses that the sandbox may reach. Raises AbsentError,
    UnsupportedError, FenceError.
    """
    requested = tuple(destinations)
    with _report_errors():
        return namespace.call(lambda: _survey(requested))


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


def route(destination: Address) -> Route:
    """Return the route to an address from the network namespace of the calling thread.

    If there is no route, the ``ifindex`` of the result is None. Raises OSError if netlink fails.
    """
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    header = _RTMSG.pack(family, destination.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    question = header + netlink.attribute(_RTA_DST, destination.packed)
    try:
        (reply,) = netlink.request(netlink.NETLINK_ROUTE, _RTM_GETROUTE, question)
    except OSError as error:
        if error.errno in _NO_ROUTE:
            # Right for the usual sandbox, whose proxy is on the same link.
            return Route(destination, None)
        raise
    if _RTMSG.unpack_from(reply)[7] != _RTN_UNICAST:
        return Route(None, None)
    found = dict(netlink.attributes(memoryview(reply)[_RTMSG.size :]))
    neighbour = destination
    if _RTA_GATEWAY in found:
        neighbour = ipaddress.ip_address(bytes(found[_RTA_GATEWAY]))
    elif _RTA_VIA in found:  # a gateway of the other family, after its 16-bit family
        neighbour = ipaddress.ip_address(bytes(found[_RTA_VIA][2:]))
    (ifindex,) = struct.unpack("=I", found[_RTA_OIF])
    return Route(neighbour, ifindex)


@contextlib.contextmanager
def _report_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a timeout has no errno
        raise FenceError(
            f"the kernel doesn't list links and routes: {error.strerror or error}"
        ) from error


def _survey(requested: tuple[Address, ...]) -> Surroundings:
    links = [link for link in rtnetlink.links() if not link.is_loopback]
    routes = [route(destination) for destination in requested]
    used = {route_to.ifindex for route_to in routes}
    # The allowed addresses too: a gateway that has one of them may use it when it resolves the
    # sandbox's link address.
    neighbours = {route_to.neighbour for route_to in routes if route_to.neighbour is not None} | {
        destination
        for destination, route_to in zip(requested, routes, strict=True)
        if route_to.neighbour is not None
    }
    all_links = tuple(link.name for link in links)
    return Surroundings(
        links=all_links,
        uplinks=tuple(link.name for link in links if link.ifindex in used) or all_links,
        neighbours=tuple(sorted(neighbours, key=lambda hop: (hop.version, int(hop)))),
    )
