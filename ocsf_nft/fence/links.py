"""What rtnetlink says about a namespace: its links, and the next hops towards an address.

Layouts and numbers: ``include/uapi/linux/rtnetlink.h``. Linux only; nothing here needs a
privilege.
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

#: What the kernel answers when there is no way to an address (yet).
_NO_ROUTE: Final = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ENODEV}


class Route(NamedTuple):
    """The way to an address: whom to ask for on the link, and the link's index.

    ``neighbour`` is None when the address is the namespace's own, ``ifindex`` None when there is
    no route. The address itself is its neighbour then, which is right for the usual sandbox, whose
    proxy is on the link.
    """

    neighbour: Address | None
    ifindex: int | None


def survey(namespace: Namespace, destinations: Iterable[Address]) -> Surroundings:
    """Look round a namespace: its links, and the ways to ``destinations``.

    Raises AbsentError or UnsupportedError when it can't be entered, FenceError when netlink fails.
    """
    wanted = tuple(destinations)
    with _answered():
        return namespace.call(lambda: _look(wanted))


def survey_device(namespace: Namespace, device: str) -> Surroundings:
    """One link of a namespace alone: a VM's TAP device.

    Raises AbsentError when there is no such device, UsageError when it is loopback, FenceError when
    it is not routed but bridged, and what :func:`survey` does.
    """
    with _answered():
        found = namespace.call(lambda: [link for link in rtnetlink.links() if link.name == device])
    if not found:
        raise AbsentError(f"there is no interface {device} in {namespace}: make the TAP first")
    if found[0].is_loopback:
        raise UsageError(
            f"the interface {device} in {namespace} is loopback: name the VM's TAP device"
        )
    if found[0].is_port:
        # What comes in by it has another device's name where packets are forwarded.
        raise FenceError(
            f"the interface {device} in {namespace} is a port of a bridge, a bond or a VRF, where "
            "no fence round a VM holds: take it out (`ip link set … nomaster`)"
        )
    return Surroundings(links=(device,), ifindex=found[0].ifindex)


def names() -> tuple[str, ...]:
    """The interfaces of the calling thread's namespace except loopback, by index.

    Raises FenceError when netlink fails.
    """
    with _answered():
        return tuple(link.name for link in rtnetlink.links() if not link.is_loopback)


def route(destination: Address) -> Route:
    """The way that the calling thread's namespace has to an address; raises OSError."""
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    header = _RTMSG.pack(family, destination.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    question = header + netlink.attribute(_RTA_DST, destination.packed)
    try:
        (reply,) = netlink.request(netlink.NETLINK_ROUTE, _RTM_GETROUTE, question)
    except OSError as error:
        if error.errno in _NO_ROUTE:
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
def _answered() -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a timeout has no errno
        raise FenceError(
            f"the kernel doesn't tell what links and routes there are: {error.strerror or error}"
        ) from error


def _look(wanted: tuple[Address, ...]) -> Surroundings:
    links = [link for link in rtnetlink.links() if not link.is_loopback]
    routes = [route(destination) for destination in wanted]
    used = {way.ifindex for way in routes}
    # The allowed addresses too: a gateway that has one may ask for the sandbox by that name.
    neighbours = {way.neighbour for way in routes if way.neighbour is not None} | {
        destination
        for destination, way in zip(wanted, routes, strict=True)
        if way.neighbour is not None
    }
    everywhere = tuple(link.name for link in links)
    return Surroundings(
        links=everywhere,
        uplinks=tuple(link.name for link in links if link.ifindex in used) or everywhere,
        neighbours=tuple(sorted(neighbours, key=lambda hop: (hop.version, int(hop)))),
    )
