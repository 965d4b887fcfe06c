"""Functions that read network interfaces from rtnetlink; none of them needs a privilege.

Layouts and numbers: ``include/uapi/linux/rtnetlink.h``, ``if_link.h`` and ``net/if.h``.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import itertools
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from ocsf_nft import netlink
from ocsf_nft.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_GETADDR: Final = 22
RTM_GETSTATS: Final = 94
_RTM_GETNEIGH: Final = 30
_RTM_GETNSID: Final = 90

_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_LINK: Final = 5
_IFLA_MASTER: Final = 10
_IFLA_LINKINFO: Final = 18
_IFLA_LINK_NETNSID: Final = 37
_IFLA_INFO_KIND: Final = 1
_IFLA_STATS_LINK_64: Final = 1
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_NETNSA_NSID: Final = 1  # include/uapi/linux/net_namespace.h
_NETNSA_FD: Final = 3
_NDA_DST: Final = 1  # include/uapi/linux/neighbour.h
_NDA_LLADDR: Final = 2
_ETHERNET_BYTES: Final = 6
_RECEIVE_BYTES: Final = 1 << 16
_TIMEOUT_SECONDS: Final = 5.0
_IFF_LOOPBACK: Final = 0x8
_RTMGRP_LINK: Final = 1
_RTMGRP_ROUTES: Final = 0x40 | 0x400  # RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE
_RTMGRP_TC: Final = 0x8
_RTMGRP_RULES: Final = 0x80 | 0x40000  # of RTNLGRP_IPV4_RULE and RTNLGRP_IPV6_RULE
_IFINFOMSG: Final = struct.Struct("=BxHiII")  # family, type, index, flags, change mask

_INT: Final = struct.Struct("=i")
_IF_STATS_MSG: Final = struct.Struct("=BxxxII")  # family, index, filter mask
_STATS64: Final = struct.Struct("=8Q")  # the first eight fields: see LinkStatistics
_IFADDRMSG: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_NDMSG: Final = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_RTGENMSG: Final = struct.Struct("=Bxxx")  # family
_ADDRESS_BYTES: Final = {4, 16}

#: Payload of the request for all links.
ALL_LINKS: Final = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
_ALL_ADDRESSES: Final = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)


class LinkStatistics(NamedTuple):
    """Packets and bytes that an interface has received (``rx``), sent (``tx``) and dropped."""

    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    rx_errors: int
    tx_errors: int
    rx_dropped: int
    tx_dropped: int


class Link(NamedTuple):
    """Network interface (link) of a namespace."""

    ifindex: int
    #: Untrusted: the owner of the namespace chooses the name. Bytes that are not UTF-8 become lone
    #: surrogates.
    name: str
    is_loopback: bool
    #: Whether the interface belongs to a bridge, a bond or a VRF.
    is_port: bool = False
    #: Ethernet address, such as ``02:00:00:00:00:01``; None if the interface has none.
    mac: str | None = None
    #: Index of the other end of a veth pair, or of the lower interface of a stacked one.
    peer_ifindex: int | None = None
    #: Number of the namespace of ``peer_ifindex``, as this namespace numbers it. None: this one.
    peer_nsid: int | None = None
    #: Type of a virtual interface, such as ``veth``; None for hardware.
    kind: str | None = None
    #: Index of the bridge, the bond or the VRF that the interface belongs to.
    master: int | None = None


def link(body: memoryview) -> Link | None:
    """Return the interface that the payload (``body``) of an RTM_NEWLINK message describes.

    Return None if the message has no interface name, or is truncated.
    """
    if len(body) < _IFINFOMSG.size:
        return None
    _family, _type, index, flags, _change = _IFINFOMSG.unpack_from(body)
    found = dict(netlink.attributes(body[_IFINFOMSG.size :]))
    if _IFLA_IFNAME not in found:
        return None
    name = bytes(found[_IFLA_IFNAME]).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    return Link(
        ifindex=index,
        name=name,
        is_loopback=bool(flags & _IFF_LOOPBACK),
        is_port=_IFLA_MASTER in found,
        mac=_mac(found.get(_IFLA_ADDRESS)),
        peer_ifindex=_number(found.get(_IFLA_LINK)),
        peer_nsid=_number(found.get(_IFLA_LINK_NETNSID)),
        kind=_kind(found.get(_IFLA_LINKINFO)),
        master=_number(found.get(_IFLA_MASTER)),
    )


def _kind(value: memoryview | None) -> str | None:
    nested = {} if value is None else dict(netlink.attributes(value))
    kind = nested.get(_IFLA_INFO_KIND)
    return None if kind is None else bytes(kind).split(b"\0", 1)[0].decode("ascii", "replace")


def _mac(value: memoryview | None) -> str | None:
    if value is None or len(value) != _ETHERNET_BYTES:
        return None
    return bytes(value).hex(":")


def _number(value: memoryview | None) -> int | None:
    if value is None or len(value) != _INT.size:
        return None
    (number,) = _INT.unpack(value)
    return int(number)


def links() -> Iterator[Link]:
    """Yield all interfaces of the calling thread's network namespace.

    Blocks until the kernel has answered. Raises OSError if the request fails.
    """
    for reply in netlink.request(netlink.NETLINK_ROUTE, RTM_GETLINK, ALL_LINKS, dump=True):
        found = link(memoryview(reply))
        if found is not None:
            yield found


class RouteSocket:
    """Socket for rtnetlink requests in the network namespace of the thread that creates it.

    Not thread-safe. Raises OSError if it can't be opened.
    """

    def __init__(self) -> None:
        self._sequence = 0
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE)
        try:
            # Connected, so that no other process can send to it.
            self.socket.connect((0, 0))
            self.socket.settimeout(_TIMEOUT_SECONDS)
        except BaseException:
            self.socket.close()
            raise

    def close(self) -> None:
        """Close the socket; may be called several times."""
        self.socket.close()

    def statistics(self, ifindex: int) -> LinkStatistics:
        """Return the statistics of an interface.

        Raises OSError with ENODEV if there is no such interface, and TimeoutError.
        """
        mask = 1 << _IFLA_STATS_LINK_64 - 1
        body = self._request(RTM_GETSTATS, _IF_STATS_MSG.pack(socket.AF_UNSPEC, ifindex, mask))
        found = dict(netlink.attributes(body[_IF_STATS_MSG.size :]))
        return LinkStatistics(*_STATS64.unpack_from(found[_IFLA_STATS_LINK_64]))

    def _request(self, kind: int, payload: bytes) -> memoryview:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        self.socket.send(netlink.message(kind, netlink.NLM_F_REQUEST, payload, self._sequence))
        while True:
            datagram = memoryview(self.socket.recv(_RECEIVE_BYTES))
            for answer in netlink.messages_with_headers(datagram):
                if answer.sequence == self._sequence:
                    if answer.kind == netlink.NLMSG_ERROR:
                        netlink.raise_for_error(answer.payload)
                    return answer.payload


def link_at(ifindex: int) -> Link | None:
    """Return the interface with an index, in the calling thread's namespace; None if there is none.

    Blocks until the kernel has answered. Raises OSError if the request fails.
    """
    question = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0)
    try:
        replies = netlink.request(netlink.NETLINK_ROUTE, RTM_GETLINK, question)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    found = (link(memoryview(reply)) for reply in replies)
    return next((each for each in found if each is not None), None)


def delete_link(ifindex: int) -> None:
    """Delete a virtual interface in the calling thread's namespace; raises OSError."""
    question = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0)
    netlink.request(netlink.NETLINK_ROUTE, RTM_DELLINK, question)


def namespace_number(descriptor: int) -> int | None:
    """Return the calling thread's namespace's number of another namespace; None without a number.

    ``descriptor`` is an open file of that namespace. The kernel assigns no number for this request.
    Raises OSError if the request fails.
    """
    question = _RTGENMSG.pack(socket.AF_UNSPEC) + netlink.attribute(
        _NETNSA_FD, struct.pack("=I", descriptor)
    )
    for reply in netlink.request(netlink.NETLINK_ROUTE, _RTM_GETNSID, question):
        found = dict(netlink.attributes(memoryview(reply)[_RTGENMSG.size :]))
        number = _number(found.get(_NETNSA_NSID))
        if number is not None and number >= 0:
            return number
    return None


def neighbours(most: int | None = None) -> Iterator[tuple[int, Address, str]]:
    """Yield interface index, address and Ethernet address of the calling thread's neighbours.

    These are the entries of the kernel's neighbour tables that have an Ethernet address. At most
    ``most`` entries are read; None for all. Raises OSError if the request fails.
    """
    question = _NDMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    for reply in _dump(_RTM_GETNEIGH, question, most):
        if len(reply) < _NDMSG.size:
            continue
        found = dict(netlink.attributes(reply[_NDMSG.size :]))
        packed, mac = found.get(_NDA_DST), _mac(found.get(_NDA_LLADDR))
        if packed is not None and len(packed) in _ADDRESS_BYTES and mac is not None:
            yield _NDMSG.unpack_from(reply)[1], ipaddress.ip_address(bytes(packed)), mac


def addresses(most: int | None = None) -> Iterator[tuple[int, Address]]:
    """Yield the interface index and the address of each address of the calling thread's namespace.

    At most ``most`` addresses are read; None for all. Blocks until the kernel has answered. Raises
    OSError if the request fails.
    """
    for reply in _dump(RTM_GETADDR, _ALL_ADDRESSES, most):
        found = address(reply)
        if found is not None:
            yield found


def _dump(kind: int, question: bytes, most: int | None) -> Iterator[memoryview]:
    """Yield the objects of a list as they arrive, at most ``most``; then close the socket.

    The owner of a namespace may create millions.
    """
    replies = netlink.replies(netlink.NETLINK_ROUTE, kind, question, dump=True)
    with contextlib.closing(replies):
        for reply in itertools.islice(replies, most):
            yield memoryview(reply)


def address(body: memoryview) -> tuple[int, Address] | None:
    """Return interface index and address that the payload of an RTM_NEWADDR message describes.

    Return None if the message has no address, or is truncated.
    """
    if len(body) < _IFADDRMSG.size:
        return None
    _family, _length, _flags, _scope, index = _IFADDRMSG.unpack_from(body)
    found = dict(netlink.attributes(body[_IFADDRMSG.size :]))
    # On a point-to-point interface, IFA_ADDRESS is the address of the peer.
    packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
    if packed is None or len(packed) not in _ADDRESS_BYTES:
        return None
    return index, ipaddress.ip_address(bytes(packed))


def subscribe() -> socket.socket:
    """Return a non-blocking socket that receives a notification for each change of an interface.

    The interfaces are those of the calling thread's network namespace. The socket also receives
    notifications of changes of routes, policy routing rules and traffic control. Raises SourceError
    if the socket can't be opened.
    """
    groups = _RTMGRP_LINK | _RTMGRP_ROUTES | _RTMGRP_RULES | _RTMGRP_TC
    try:
        return netlink.subscribe(netlink.NETLINK_ROUTE, groups)
    except OSError as error:
        raise SourceError(f"network interfaces can't be watched: {error.strerror}") from error
