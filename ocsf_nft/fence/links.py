"""What rtnetlink says about a namespace: its links, and the next hops towards an address.

Layouts and numbers: ``include/uapi/linux/rtnetlink.h``. Linux only; nothing here needs a
privilege.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from typing import TYPE_CHECKING, Final

from ocsf_nft import netlink, rtnetlink
from ocsf_nft.fence.spec import Surroundings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.fence.values import Address
    from ocsf_nft.netns import Namespace

_RTM_GETROUTE: Final = 26
_RTA_DST: Final = 1
_RTA_GATEWAY: Final = 5
_RTA_VIA: Final = 18
_RTN_UNICAST: Final = 1

_RTMSG: Final = struct.Struct("=BBBBBBBBI")  # family, dst/src length, tos, table, …, type, flags

#: What the kernel answers when there is no way to an address (yet).
_NO_ROUTE: Final = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ENODEV}


def survey(namespace: Namespace, destinations: Iterable[Address]) -> Surroundings:
    """Look round a namespace: its links and the next hops towards ``destinations``.

    Raises AbsentError or UnsupportedError when it can't be entered, OSError when netlink fails.
    """
    wanted = tuple(destinations)

    def look() -> Surroundings:
        hops = {hop for destination in wanted for hop in next_hops(destination)}
        return Surroundings(
            links=names(),
            neighbours=tuple(sorted(hops, key=lambda hop: (hop.version, int(hop)))),
        )

    return namespace.call(look)


def names() -> tuple[str, ...]:
    """The interfaces of the calling thread's namespace except loopback, by index."""
    return tuple(link.name for link in rtnetlink.links() if not link.is_loopback)


def next_hops(destination: Address) -> tuple[Address, ...]:
    """Whom to ask for on the link to reach an address: its gateway, or itself.

    Nobody when the address is the namespace's own. The address itself as long as there is no
    route, which is right for the usual sandbox, whose proxy is on the link.
    """
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    header = _RTMSG.pack(family, destination.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    question = header + netlink.attribute(_RTA_DST, destination.packed)
    try:
        (reply,) = netlink.request(netlink.NETLINK_ROUTE, _RTM_GETROUTE, question)
    except OSError as error:
        if error.errno in _NO_ROUTE:
            return (destination,)
        raise
    if _RTMSG.unpack_from(reply)[7] != _RTN_UNICAST:
        return ()
    for kind, value in netlink.attributes(memoryview(reply)[_RTMSG.size :]):
        if kind == _RTA_GATEWAY:
            return (ipaddress.ip_address(bytes(value)),)
        if kind == _RTA_VIA:  # a gateway of the other family, after its 16-bit family
            return (ipaddress.ip_address(bytes(value[2:])),)
    return (destination,)
