"""Functions that read network interfaces from rtnetlink; none of them needs a privilege.

Layouts and numbers: ``include/uapi/linux/rtnetlink.h``, ``if_link.h`` and ``net/if.h``.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft import netlink
from ocsf_nft.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18

_IFLA_IFNAME: Final = 3
_IFLA_MASTER: Final = 10
_IFF_LOOPBACK: Final = 0x8
_RTMGRP_LINK: Final = 1
_RTMGRP_ROUTES: Final = 0x40 | 0x400  # RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE
_IFINFOMSG: Final = struct.Struct("=BxHiII")  # family, type, index, flags, change mask

#: Payload of the request for all links.
ALL_LINKS: Final = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)


class Link(NamedTuple):
    """Network interface (link) of a namespace."""

    ifindex: int
    #: Untrusted: the owner of the namespace chooses the name. Bytes that are not UTF-8 become lone
    #: surrogates.
    name: str
    is_loopback: bool
    #: Whether the interface belongs to a bridge, a bond or a VRF.
    is_port: bool = False


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
    return Link(index, name, bool(flags & _IFF_LOOPBACK), _IFLA_MASTER in found)


def links() -> Iterator[Link]:
    """Yield all interfaces of the calling thread's network namespace.

    Blocks until the kernel has answered. Raises OSError if the request fails.
    """
    for reply in netlink.request(netlink.NETLINK_ROUTE, RTM_GETLINK, ALL_LINKS, dump=True):
        found = link(memoryview(reply))
        if found is not None:
            yield found


def subscribe() -> socket.socket:
    """Return a non-blocking socket that receives a notification for each change of an interface.

    The interfaces are those of the calling thread's network namespace. The socket also receives
    notifications of route changes. Raises SourceError if the socket can't be opened.
    """
    try:
        return netlink.subscribe(netlink.NETLINK_ROUTE, _RTMGRP_LINK | _RTMGRP_ROUTES)
    except OSError as error:
        raise SourceError(f"network interfaces can't be watched: {error.strerror}") from error
