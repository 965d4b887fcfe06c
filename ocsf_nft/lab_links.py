"""Interfaces, addresses and routes of a temporary sandbox, made by rtnetlink.

A lab needs a dozen of them. One process of ip(8) for each would take most of the lab's time. All
functions work in the network namespace of the calling thread, and raise OSError.

Layouts and numbers: ``include/uapi/linux/rtnetlink.h``, ``if_link.h``, ``if_addr.h``, ``veth.h``.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Final

from ocsf_nft import netlink

_NLM_F_EXCL: Final = 0x200
_NLM_F_CREATE: Final = 0x400

_RTM_NEWLINK: Final = 16
_RTM_NEWADDR: Final = 20
_RTM_NEWROUTE: Final = 24

_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_LINKINFO: Final = 18
_IFLA_NET_NS_FD: Final = 28
_IFLA_INFO_KIND: Final = 1
_IFLA_INFO_DATA: Final = 2
_VETH_INFO_PEER: Final = 1
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_RTA_GATEWAY: Final = 5
_IFF_UP: Final = 1
_RT_TABLE_MAIN: Final = 254
_RTPROT_BOOT: Final = 3
_RT_SCOPE_UNIVERSE: Final = 0
_RTN_UNICAST: Final = 1

_IFINFOMSG: Final = struct.Struct("=BxHiII")  # family, type, index, flags, change mask
_IFADDRMSG: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
#: Family, lengths of destination and source, TOS, table, protocol, scope, type, flags.
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_ANY_LINK: Final = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)


def add_veth(device: str, peer: str, peer_mac: str, peer_namespace: int) -> None:
    """Create a veth pair: one end here, the other in another network namespace.

    ``peer_mac`` is the Ethernet address of the other end, such as ``02:00:00:00:00:01``.
    ``peer_namespace`` is an open file of its namespace.
    """
    other_end = b"".join((
        _ANY_LINK,
        netlink.attribute(_IFLA_IFNAME, peer.encode() + b"\0"),
        netlink.attribute(_IFLA_ADDRESS, bytes.fromhex(peer_mac.replace(":", ""))),
        netlink.attribute(_IFLA_NET_NS_FD, struct.pack("=i", peer_namespace)),
    ))  # fmt: skip
    kind = netlink.attribute(_IFLA_INFO_KIND, b"veth")
    data = netlink.attribute(_IFLA_INFO_DATA, netlink.attribute(_VETH_INFO_PEER, other_end))
    name = netlink.attribute(_IFLA_IFNAME, device.encode() + b"\0")
    _create(_RTM_NEWLINK, _ANY_LINK + name + netlink.attribute(_IFLA_LINKINFO, kind + data))


def enable(device: str) -> None:
    """Set an interface up."""
    index = socket.if_nametoindex(device)
    payload = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP)
    netlink.request(netlink.NETLINK_ROUTE, _RTM_NEWLINK, payload)


def add_address(device: str, address: str) -> None:
    """Add an address to an interface; it has the length of its network: ``10.200.0.1/24``."""
    interface = ipaddress.ip_interface(address)
    family, packed = _family(interface), interface.ip.packed
    index = socket.if_nametoindex(device)
    payload = b"".join((
        _IFADDRMSG.pack(family, interface.network.prefixlen, 0, _RT_SCOPE_UNIVERSE, index),
        netlink.attribute(_IFA_LOCAL, packed),
        netlink.attribute(_IFA_ADDRESS, packed),
    ))  # fmt: skip
    _create(_RTM_NEWADDR, payload)


def add_default_route(gateway: str) -> None:
    """Add a default route by a gateway, for the IP version of its address."""
    address = ipaddress.ip_address(gateway)
    header = _RTMSG.pack(
        _family(address), 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, _RT_SCOPE_UNIVERSE, _RTN_UNICAST, 0
    )
    _create(_RTM_NEWROUTE, header + netlink.attribute(_RTA_GATEWAY, address.packed))


def _family(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _create(kind: int, payload: bytes) -> None:
    flags = _NLM_F_CREATE | _NLM_F_EXCL
    netlink.request(netlink.NETLINK_ROUTE, kind, payload, flags=flags)
