"""Network interfaces of a namespace, with details that decide whether packets bypass a fence."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from ocsf_nft import netlink, rtnetlink
from ocsf_nft.check.accepted_flows import Link
from ocsf_nft.check.packet import InterfaceName
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence import routes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ocsf_nft.fence.values import Address
    from ocsf_nft.netns import Namespace

_Key = TypeVar("_Key")

# Numbers and layouts of rtnetlink messages: if_link.h, rtnetlink.h and pkt_sched.h in
# include/uapi/linux.
_IFLA_IFNAME: Final = 3
_IFLA_LINK: Final = 5
_IFLA_MASTER: Final = 10
_IFLA_LINKINFO: Final = 18
_IFLA_INFO_KIND: Final = 1
_IFLA_LINK_NETNSID: Final = 37
_IFLA_XDP: Final = 43
_IFLA_XDP_ATTACHED: Final = 2
_RTM_GETQDISC: Final = 38
_TCA_KIND: Final = 1
_IFINFOMSG: Final = struct.Struct("=BxHiII")
_TCMSG: Final = struct.Struct("=BxxxiIII")
_IFF_NOARP: Final = 0x80  # if.h
_LOOPBACK: Final = 1  # LOOPBACK_IFINDEX in include/net/net_namespace.h
#: Queueing disciplines that hold programs and filters. They see packets before or after all rules.
_FILTERING: Final = frozenset({"clsact", "ingress"})


@dataclass(frozen=True, slots=True, kw_only=True)
class NetDevice:
    """Network interface as rtnetlink describes it."""

    ifindex: int
    name: str
    #: The link kind, such as ``tun``.
    kind: str
    #: Index of the bridge or bond of which the interface is a port.
    master: int | None
    #: Index of the interface below this interface, for example a VLAN's parent.
    lower: int | None
    #: True if the interface below is in another namespace.
    is_lower_elsewhere: bool
    #: True if an XDP program is attached.
    has_xdp: bool
    #: True with the queueing discipline ``clsact`` or ``ingress``, to which traffic-control
    #: programs can be attached.
    has_filters: bool
    #: False for an interface without link addresses, such as WireGuard's (IFF_NOARP).
    has_neighbors: bool = True


def list_devices(namespace: Namespace) -> Mapping[str, NetDevice]:
    """Return all interfaces of a namespace by name.

    Raises OcsfNftError if they can't be listed, and the errors of :meth:`Namespace.call`.
    """
    try:
        return namespace.call(_list_devices)
    except OSError as error:
        raise OcsfNftError(f"the interfaces can't be listed: {error.strerror or error}") from error


def uplinks(namespace: Namespace, addresses: Mapping[_Key, Address]) -> dict[_Key, str]:
    """Return the name of the network interface through which packets to each address are sent.

    The result has the keys of ``addresses``. An own address has the loopback interface. Addresses
    without a route are omitted. If the routes can't be read, the result is empty.
    """

    def query() -> dict[_Key, str]:
        names = {link.ifindex: link.name for link in rtnetlink.links()}
        found = {}
        for key, address in addresses.items():
            route = routes.to_address(address)
            # The route to an own address is not a unicast route.
            index = _LOOPBACK if route == routes.Route(None, None) else route.ifindex
            if index in names:
                found[key] = names[index]
        return found

    try:
        return namespace.call(query)
    except (OSError, OcsfNftError):  # the routes can't be read
        return {}


def described(namespace: Namespace, names: Iterable[str]) -> dict[str, Link]:
    """Return what is known of the interfaces ``names`` that exist, by name.

    If the interfaces can't be listed, the result is empty.
    """
    try:
        present = list_devices(namespace)
    except OcsfNftError:
        return {}
    found = {}
    for name in present.keys() & names:
        device = present[name]
        below = _below(device, present)
        found[name] = Link(
            InterfaceName(name),
            below=tuple(each.name for each in below),
            has_bridge=any(each.kind == "bridge" for each in (device, *below)),
            has_neighbors=device.has_neighbors,
        )
    return found


def _below(device: NetDevice, present: Mapping[str, NetDevice]) -> list[NetDevice]:
    """Return the ports of a bridge or bond, the parent of a VLAN, and all that is below them."""
    ports: dict[int, list[NetDevice]] = {}
    for each in present.values():
        if each.master is not None:
            ports.setdefault(each.master, []).append(each)
    by_index = {each.ifindex: each for each in present.values()}
    found: dict[int, NetDevice] = {device.ifindex: device}
    queue = [device]
    while queue:
        now = queue.pop()
        lower = list(ports.get(now.ifindex, ()))
        # The other end of a veth pair is not below it.
        if now.kind != "veth" and not now.is_lower_elsewhere and now.lower in by_index:
            lower.append(by_index[now.lower])
        for each in lower:
            if each.ifindex not in found:
                found[each.ifindex] = each
                queue.append(each)
    return list(found.values())[1:]


def _list_devices() -> dict[str, NetDevice]:
    filtered = _indexes_with_filters()
    found = {}
    for reply in netlink.request(
        netlink.NETLINK_ROUTE, rtnetlink.RTM_GETLINK, rtnetlink.ALL_LINKS, dump=True
    ):
        body = memoryview(reply)
        _family, _type, index, flags, _change = _IFINFOMSG.unpack_from(body)
        values = dict(netlink.attributes(body[_IFINFOMSG.size :]))
        name = _text(values.get(_IFLA_IFNAME))
        found[name] = NetDevice(
            ifindex=index,
            name=name,
            kind=_text(_inner(values, _IFLA_LINKINFO).get(_IFLA_INFO_KIND)),
            master=_number(values.get(_IFLA_MASTER)),
            lower=_number(values.get(_IFLA_LINK)),
            is_lower_elsewhere=_IFLA_LINK_NETNSID in values,
            has_xdp=bool(_number(_inner(values, _IFLA_XDP).get(_IFLA_XDP_ATTACHED))),
            has_filters=index in filtered,
            has_neighbors=not flags & _IFF_NOARP,
        )
    return found


def _indexes_with_filters() -> set[int]:
    header = bytes(_TCMSG.size)
    found = set()
    for reply in netlink.request(netlink.NETLINK_ROUTE, _RTM_GETQDISC, header, dump=True):
        body = memoryview(reply)
        values = dict(netlink.attributes(body[_TCMSG.size :]))
        if _text(values.get(_TCA_KIND)) in _FILTERING:
            found.add(_TCMSG.unpack_from(body)[1])
    return found


def _inner(values: Mapping[int, memoryview], kind: int) -> dict[int, memoryview]:
    return dict(netlink.attributes(values[kind])) if kind in values else {}


def _text(value: memoryview | None) -> str:
    raw = b"" if value is None else bytes(value)
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(value: memoryview | None) -> int | None:
    return None if value is None else int.from_bytes(value, "little")
