"""Routes of a network namespace towards addresses and networks, read by rtnetlink.

The message layouts are those of ``include/uapi/linux/rtnetlink.h``. The requests need no privilege.
The functions read the routes of the calling thread's network namespace.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import itertools
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft import netlink
from ocsf_nft.errors import FenceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocsf_nft.fence.values import Address, Network

_RTM_GETROUTE: Final = 26
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_MULTIPATH: Final = 9
_RTA_TABLE: Final = 15
_RTA_VIA: Final = 18
_RTN_UNICAST: Final = 1

_RTMSG: Final = struct.Struct("=BBBBBBBBI")  # family, dst/src length, tos, table, …, type, flags
_RTNEXTHOP: Final = struct.Struct("=HBBi")  # length, flags, weight, interface

#: Errors of the kernel if there is no route to an address (yet).
_NO_ROUTE: Final = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ENODEV}
#: A process with CAP_NET_ADMIN in the namespace may add millions.
_MOST_ROUTES: Final = 10_000


class Route(NamedTuple):
    """Route to an address: the next hop (``neighbour``) and the index of the outgoing interface."""

    #: The gateway. Without a gateway or a route, the address itself. None for a local, broadcast or
    #: multicast address, and for a network without a gateway.
    neighbour: Address | None
    #: None if the kernel has no route, and for a local, broadcast or multicast address.
    ifindex: int | None


class LinkRoute(NamedTuple):
    """Network of a route of a routing table, and one of its next hops."""

    network: Network
    #: None if the addresses of the network are on the link.
    gateway: Address | None
    ifindex: int

    @property
    def is_link_local(self) -> bool:
        """Return True for the route to the IPv6 link-local addresses on a link."""
        return self.network.version == 6 and self.network.is_link_local


class _Entry(NamedTuple):
    """Unicast route of a routing table, with its next hops."""

    table: int
    network: Network
    hops: tuple[Route, ...]


def to_address(destination: Address) -> Route:
    """Return the route to an address.

    If there is no route, the ``ifindex`` of the result is None. Raises OSError if netlink fails.
    """
    family = _family(destination.version)
    header = _RTMSG.pack(family, destination.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    question = header + netlink.attribute(_RTA_DST, destination.packed)
    try:
        (reply,) = netlink.request(netlink.NETLINK_ROUTE, _RTM_GETROUTE, question)
    except OSError as error:
        if error.errno in _NO_ROUTE:
            # Right for the usual sandbox, whose proxy is on the same link.
            return Route(destination, None)
        raise
    return _route(reply, destination)


def _route(reply: bytes, destination: Address) -> Route:
    """Decode the kernel's answer about the route to an address; raises OSError if it is invalid."""
    if _header(reply)[7] != _RTN_UNICAST:
        return Route(None, None)
    hops = tuple(_hops(dict(netlink.attributes(memoryview(reply)[_RTMSG.size :]))))
    if len(hops) != 1:
        raise _invalid()
    (hop,) = hops
    return hop if hop.neighbour is not None else hop._replace(neighbour=destination)


def to_networks(networks: Sequence[Network]) -> frozenset[Route]:
    """Return the next hops of all packets to the addresses in ``networks``.

    These are the next hops of each route to a part of a network. In addition, in each routing
    table, those of the most specific routes to the whole network. Policy routing is not evaluated:
    each table may be used. Raises OSError if netlink fails, and FenceError if there are more than
    10,000 routes.
    """
    found: set[Route] = set()
    for version in {network.version for network in networks}:
        entries = tuple(_entries(version))
        for network in networks:
            if network.version == version:
                for entry in _used(entries, network):
                    found.update(entry.hops)
    return frozenset(found)


def all_routes() -> tuple[LinkRoute, ...]:
    """Return each unicast route of each routing table, once for each of its next hops.

    Raises the errors of :func:`to_networks`.
    """
    return tuple(
        LinkRoute(entry.network, hop.neighbour, hop.ifindex)
        for version in (4, 6)
        for entry in _entries(version)
        for hop in entry.hops
        if hop.ifindex is not None
    )


def _used(entries: Sequence[_Entry], network: Network) -> Iterator[_Entry]:
    """Yield the routes that packets to addresses of ``network`` can take."""
    longest: dict[int, int] = {}
    covering = [entry for entry in entries if _contains(entry.network, network)]
    for entry in covering:
        length = entry.network.prefixlen
        longest[entry.table] = max(length, longest.get(entry.table, length))
    for entry in covering:
        if entry.network.prefixlen == longest[entry.table]:
            yield entry
    for entry in entries:
        if entry.network != network and _contains(network, entry.network):
            yield entry


def _contains(outer: Network, inner: Network) -> bool:
    return outer.prefixlen <= inner.prefixlen and outer.overlaps(inner)


def _entries(version: int) -> Iterator[_Entry]:
    question = _RTMSG.pack(_family(version), 0, 0, 0, 0, 0, 0, 0, 0)
    replies = netlink.replies(netlink.NETLINK_ROUTE, _RTM_GETROUTE, question, dump=True)
    with contextlib.closing(replies):
        for number, reply in enumerate(itertools.islice(replies, _MOST_ROUTES + 1)):
            if number == _MOST_ROUTES:
                raise FenceError(
                    f"the namespace has more than {_MOST_ROUTES} routes, too many to find the next "
                    "hops towards networks: remove some, or allow single addresses"
                )
            entry = _entry(reply, version)
            if entry is not None:
                yield entry


def _entry(reply: bytes, version: int) -> _Entry | None:
    """Decode a route of a routing table; None if it is no unicast route of this IP version.

    Raises OSError if the reply is invalid.
    """
    family, length, _, _, table, _, _, kind, _ = _header(reply)
    if kind != _RTN_UNICAST or family != _family(version):
        return None
    found = dict(netlink.attributes(memoryview(reply)[_RTMSG.size :]))
    if _RTA_TABLE in found:
        table = _number(found[_RTA_TABLE])
    # A default route has no destination.
    address = bytes(found.get(_RTA_DST, bytes(4 if version == 4 else 16)))
    try:
        network = ipaddress.ip_network((address, length), strict=False)
    except ValueError as error:
        raise _invalid() from error
    if network.version != version:
        raise _invalid()
    return _Entry(table, network, tuple(_hops(found)))


def _header(reply: bytes) -> tuple[int, ...]:
    if len(reply) < _RTMSG.size:
        raise _invalid()
    return _RTMSG.unpack_from(reply)


def _number(value: memoryview) -> int:
    if len(value) != 4:
        raise _invalid()
    return int.from_bytes(value, sys.byteorder)


def _invalid() -> OSError:
    return OSError(errno.EBADMSG, "a route in an answer of the kernel is invalid")


def _hops(found: dict[int, memoryview]) -> Iterator[Route]:
    """Yield the next hops of a route with these attributes; it has several if it is multipath."""
    # With net.ipv4.nexthop_compat_mode=0, a route with a nexthop object shows only its number. The
    # fence then refuses ARP to that next hop, unless another destination has it too.
    if _RTA_MULTIPATH in found:
        rest = found[_RTA_MULTIPATH]
        while len(rest) >= _RTNEXTHOP.size:
            length, _, _, ifindex = _RTNEXTHOP.unpack_from(rest)
            if length < _RTNEXTHOP.size:  # otherwise the loop would not end
                raise _invalid()
            attributes = dict(netlink.attributes(rest[_RTNEXTHOP.size : length]))
            yield Route(_gateway(attributes), ifindex)
            rest = rest[length + (-length % 4) :]
    elif _RTA_OIF in found:
        yield Route(_gateway(found), _number(found[_RTA_OIF]))


def _gateway(found: dict[int, memoryview]) -> Address | None:
    try:
        if _RTA_GATEWAY in found:
            return ipaddress.ip_address(bytes(found[_RTA_GATEWAY]))
        if _RTA_VIA in found:  # a gateway of the other family, after its 16-bit family
            return ipaddress.ip_address(bytes(found[_RTA_VIA][2:]))
    except ValueError as error:
        raise _invalid() from error
    return None


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6
