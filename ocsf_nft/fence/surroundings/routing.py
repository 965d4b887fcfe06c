"""Policy routing rules, routes and static neighbour entries, read by rtnetlink.

Layouts and numbers: ``include/uapi/linux/fib_rules.h``, ``neighbour.h`` and ``rtnetlink.h``. The
functions work in the calling thread's network namespace, and raise OSError.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import TYPE_CHECKING, Final

from ocsf_nft import netlink
from ocsf_nft.fence import routes
from ocsf_nft.fence.surroundings import names
from ocsf_nft.fence.surroundings.facts import NeighbourFact, RouteFact, RuleFact

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from ocsf_nft.fence.surroundings.limits import Limit
    from ocsf_nft.fence.values import Address

_RTM_GETROUTE: Final = 26
_RTM_DELNEIGH: Final = 29
_RTM_GETNEIGH: Final = 30
_RTM_GETRULE: Final = 34

_FIB_RULE: Final = struct.Struct("=BBBBBBBBI")
_FRA_PRIORITY: Final = 6
_FRA_TABLE: Final = 15
_FRA_L3MDEV: Final = 19
_FRA_PROTOCOL: Final = 21
#: Priority and table of the rules that every namespace has: local, main, default.
_DEFAULT_RULES: Final = {(0, 255), (32766, 254), (32767, 253)}
#: Attributes of a rule that selects all packets.
_UNCONDITIONAL: Final = frozenset({_FRA_PRIORITY, _FRA_TABLE, _FRA_PROTOCOL, 14})
_TO_TABLE: Final = 1

_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_ENCAP_TYPE: Final = 21
_RTM_F_FIB_MATCH: Final = 0x2000

_NDMSG: Final = struct.Struct("=BxxxiHBB")  # family, ifindex, state, flags, type
_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
_NUD_PERMANENT: Final = 0x80
_NUD_NOARP: Final = 0x40


def rules(limit: Limit) -> Iterator[RuleFact]:
    """Yield the policy routing rules that a namespace does not have by itself."""
    for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        request = _FIB_RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        replies = netlink.replies(netlink.NETLINK_ROUTE, _RTM_GETRULE, request, dump=True)
        for reply in limit.take(replies):
            fact = _rule(version, reply)
            if fact is not None:
                yield fact


def _rule(version: int, reply: bytes) -> RuleFact | None:
    header = _FIB_RULE.unpack_from(reply)
    content = memoryview(reply)[_FIB_RULE.size :]
    found = dict(netlink.attributes(content))
    priority, table = names.number(found.get(_FRA_PRIORITY)), names.number(found.get(_FRA_TABLE))
    is_plain = not any(header[1:4]) and header[7] == _TO_TABLE and not header[8]
    is_default = (priority, table) in _DEFAULT_RULES and set(found) <= _UNCONDITIONAL
    # The kernel adds the rule for VRFs, which concerns only their ports, with the first VRF.
    if (is_plain and is_default) or any(found.get(_FRA_L3MDEV, b"")):
        return None
    return RuleFact(version, priority, bytes(reply).hex())


def route(destination: Address) -> RouteFact:
    """Return the route to an address; one without an interface if there is none."""
    hop = routes.to_address(destination)
    gateway = None if hop.neighbour in {None, destination} else str(hop.neighbour)
    encapsulation = 0 if hop.ifindex is None else _encapsulation(destination)
    return RouteFact(str(destination), hop.ifindex, gateway, encapsulation)


def _encapsulation(destination: Address) -> int:
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    header = _RTMSG.pack(family, destination.max_prefixlen, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
    request = header + netlink.attribute(_RTA_DST, destination.packed)
    try:
        replies = netlink.request(netlink.NETLINK_ROUTE, _RTM_GETROUTE, request)
    except OSError:  # deleted meanwhile
        return 0
    for reply in replies:
        found = dict(netlink.attributes(memoryview(reply)[_RTMSG.size :]))
        if _RTA_ENCAP_TYPE in found:
            return int.from_bytes(found[_RTA_ENCAP_TYPE][:2], "little")
    return 0


def static_neighbours(
    links: Mapping[int, str], addresses: Collection[Address], limit: Limit
) -> Iterator[NeighbourFact]:
    """Yield the static neighbour entries of some addresses on the interfaces ``links``."""
    request = _NDMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    replies = netlink.replies(netlink.NETLINK_ROUTE, _RTM_GETNEIGH, request, dump=True)
    for reply in limit.take(replies):
        _family, ifindex, state, _flags, _type = _NDMSG.unpack_from(reply)
        if not state & (_NUD_PERMANENT | _NUD_NOARP) or ifindex not in links:
            continue
        found = dict(netlink.attributes(memoryview(reply)[_NDMSG.size :]))
        address = bytes(found.get(_NDA_DST, b""))
        if len(address) in {4, 16} and ipaddress.ip_address(address) in addresses:
            mac = bytes(found.get(_NDA_LLADDR, b"")).hex(":")
            text = str(ipaddress.ip_address(address))
            yield NeighbourFact(ifindex, links[ifindex], text, mac)


def delete_neighbour(fact: NeighbourFact) -> None:
    """Delete a static neighbour entry."""
    address = ipaddress.ip_address(fact.address)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    request = _NDMSG.pack(family, fact.ifindex, 0, 0, 0)
    request += netlink.attribute(_NDA_DST, address.packed)
    netlink.request(netlink.NETLINK_ROUTE, _RTM_DELNEIGH, request)
