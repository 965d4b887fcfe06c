"""Interfaces that a namespace makes by rtnetlink in other namespaces, by their numbers.

The program ip has no words for some of it. Numbers: ``include/uapi/linux/if_link.h``.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from ocsf_nft import netlink, rtnetlink

_RTM_NEWLINK, _RTM_SETLINK = 16, 19
_CREATE: Final = netlink.NLM_F_REQUEST | 0x4 | 0x600  # NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE
_IFLA_IFNAME, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = 3, 5, 10, 18
_IFLA_NET_NS_PID, _IFLA_LINK_NETNSID, _IFLA_TARGET_NETNSID = 19, 37, 46
_INFO_KIND, _INFO_DATA = 1, 2
_MACVLAN_MODE, _MACVLAN_MODE_BRIDGE = 1, 4
_VETH_INFO_PEER = 1
_IFF_UP: Final = 1


def number_of_peer(name: str) -> int:
    """Return the number of the namespace where an interface has its other end."""
    (found,) = (each.peer_nsid for each in rtnetlink.links() if each.name == name)
    if found is None:
        raise RuntimeError("the other end is in this namespace")
    return found


def links(number: int) -> dict[str, int]:
    """Return the indexes of all interfaces in the namespace with a number, by their names."""
    question = _header(0) + _int(_IFLA_TARGET_NETNSID, number)
    replies = netlink.request(netlink.NETLINK_ROUTE, rtnetlink.RTM_GETLINK, question, dump=True)
    found = (rtnetlink.link(memoryview(each)) for each in replies)
    return {each.name: each.ifindex for each in found if each is not None}


def macvlan(name: str, lower: int, number: int) -> None:
    """Make a macvlan interface here, on an interface of the namespace with a number."""
    mode = netlink.attribute(_MACVLAN_MODE, struct.pack("=I", _MACVLAN_MODE_BRIDGE))
    _request(
        _RTM_NEWLINK,
        _header(0)
        + _name(name)
        + _int(_IFLA_LINK, lower)
        + _int(_IFLA_LINK_NETNSID, number)
        + _info("macvlan", mode),
    )


def veth(name: str, peer: str) -> None:
    """Make a pair of interfaces here."""
    _request(
        _RTM_NEWLINK,
        _header(0)
        + _name(name)
        + _info("veth", netlink.attribute(_VETH_INFO_PEER, _header(0) + _name(peer))),
    )


def veth_outside(name: str, peer: str, pid: int, number: int, master: int) -> None:
    """Make an interface in the namespace with a number, with its other end in that of a process.

    It is a port of the interface ``master`` there, and up.
    """
    other = _header(0) + _name(peer) + _int(_IFLA_NET_NS_PID, pid)
    _request(
        _RTM_NEWLINK,
        _header(0, _IFF_UP)
        + _name(name)
        + _int(_IFLA_TARGET_NETNSID, number)
        + _int(_IFLA_MASTER, master)
        + _info("veth", netlink.attribute(_VETH_INFO_PEER, other)),
    )


def move(name: str, number: int, master: int) -> None:
    """Move an interface to the namespace with a number; make it a port there, and up."""
    _request(
        _RTM_SETLINK,
        _header(socket.if_nametoindex(name), _IFF_UP)
        + _int(_IFLA_TARGET_NETNSID, number)
        + _int(_IFLA_MASTER, master),
    )


def _request(kind: int, payload: bytes) -> None:
    """Send a request, and raise OSError if the kernel refuses it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE) as sock:
        sock.send(netlink.message(kind, _CREATE if kind == _RTM_NEWLINK else 5, payload))
        (answer,) = netlink.messages_with_headers(memoryview(sock.recv(1 << 16)))
        netlink.raise_for_error(answer.payload)


def _header(ifindex: int, flags: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, ifindex, flags, flags)


def _name(name: str) -> bytes:
    return netlink.attribute(_IFLA_IFNAME, name.encode() + b"\0")


def _int(kind: int, value: int) -> bytes:
    return netlink.attribute(kind, struct.pack("=i", value))


def _info(kind: str, content: bytes) -> bytes:
    return netlink.attribute(
        _IFLA_LINKINFO,
        netlink.attribute(_INFO_KIND, kind.encode() + b"\0")
        + netlink.attribute(_INFO_DATA, content),
    )
