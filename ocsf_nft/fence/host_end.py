"""Search for the host's ends of a sandbox's links, and for the link addresses of its gateways.

The host is the network namespace of this process, and of the calling thread. An end is found only
if three facts of the kernel agree: the sandbox's link names the index of the end; the end names the
index of the link; and the end's number for the namespace of the link is the host's number for the
sandbox's namespace. So the owner of the sandbox's namespace can't make us guard another device.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocsf_nft import rtnetlink
from ocsf_nft.errors import AbsentError, FenceError
from ocsf_nft.fence import routes, values
from ocsf_nft.fence.guard_conditions import link_local
from ocsf_nft.fence.spec import HostEnd, HostLinks
from ocsf_nft.netns import HOST

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ocsf_nft.fence.spec import FenceSpec, Surroundings
    from ocsf_nft.fence.state import InstalledFence
    from ocsf_nft.fence.values import Address
    from ocsf_nft.netns import Namespace
    from ocsf_nft.rtnetlink import Link

_OWN_NAMESPACE: Final = "/proc/thread-self/ns/net"
#: Reason why a fence without a guard gets none while a run watches it.
LATER: Final = "no guard yet: its link was connected to the host later"
#: Addresses and neighbours of a sandbox that are read: its owner may add millions.
_MOST: Final = 1_000
#: Bit of a link address that addresses a group (IEEE 802).
_GROUP: Final = 1


@dataclass(frozen=True, slots=True)
class _Inside:
    """Facts about a sandbox's namespace."""

    #: Open file of the namespace.
    descriptor: int
    links: tuple[Link, ...]
    #: Next hops to the allowed destinations.
    next_hops: frozenset[Address]


def resolve(
    spec: FenceSpec,
    around: Surroundings,
    namespace: Namespace,
    before: InstalledFence | None = None,
    *,
    begins: bool = True,
) -> tuple[FenceSpec, Surroundings]:
    """Return ``spec`` with the device to guard, and ``around`` with the facts about it.

    ``before`` is the record of the namespace's present fence; None without one. A guard that it has
    stays, with the same table. Without ``begins``, it gets no guard if it has none. If no end is
    found although ``spec.finds_guard``, the result states the reason. Raises AbsentError if there
    is no device ``spec.guard_device`` although it was given. Also raises UnsupportedError,
    FenceError.
    """
    if not spec.finds_guard and spec.guard_device is None:
        return spec, around
    device = None if spec.finds_guard else spec.guard_device
    try:
        inside = namespace.call(lambda: _inside(spec, around))
        try:
            known = None if before is None else before.around.host
            host = _host_links(around, namespace, inside, device, known)
        finally:
            os.close(inside.descriptor)
    except OSError as error:
        raise FenceError(
            f"the kernel doesn't list links and neighbours: {error.strerror or error}"
        ) from error
    if spec.finds_guard:
        is_same = before is not None and before.spec.finds_guard
        device = before.spec.guard_device if before is not None and is_same else None
        if device is None and host.ends:
            if is_same and not begins:
                host = HostLinks(absence=LATER)
            else:
                device = next(end.name for end in host.ends if end.is_uplink)
        spec = dataclasses.replace(spec, guard_device=device)
    return spec, dataclasses.replace(around, host=host)


def differences(installed: InstalledFence, namespace: Namespace) -> list[str]:
    """Return how the host's ends differ from those of an installed fence, a line for each."""
    try:
        _, now = resolve(installed.spec, installed.around, namespace, installed, begins=False)
    except AbsentError as error:
        return [str(error)]
    before, host = installed.around.host, now.host
    if host.absence == LATER != before.absence:
        return ["its link was connected to the host later: install the fence again"]
    if host.ends != before.ends:
        names = ", ".join(end.name for end in host.ends) or "none"
        return [f"the host's end of its link is another device now ({names}): install it again"]
    if (host.gateway_macs, host.direct_macs) != (before.gateway_macs, before.direct_macs):
        return ["the gateway has another link address now: install the fence again"]
    return []


def has_end(namespace: Namespace) -> bool:
    """Return True if a link of a namespace has its other end on the host.

    Raises AbsentError, UnsupportedError, FenceError.
    """
    try:
        descriptor, links = namespace.call(_links)
        try:
            return any(_end_of(link, descriptor) is not None for link in links)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FenceError(f"the kernel doesn't list links: {error.strerror or error}") from error


def state(host: HostLinks) -> tuple[object, ...]:
    """Return what the kernel has about the guarded ends now: it changes if one is changed.

    Raises OSError if netlink fails.
    """
    found: list[object] = []
    for end in host.ends:
        link = rtnetlink.link_at(end.ifindex)
        found.append(link)
        if link is not None and link.master is not None:
            found.append(rtnetlink.link_at(link.master))
    return tuple(found)


def _named(device: str) -> tuple[HostEnd, Link]:
    for link in rtnetlink.links():
        if link.name == device:
            return HostEnd(name=device, ifindex=link.ifindex), link
    raise AbsentError(f"there is no interface {device} here to guard")


def _ends(inside: _Inside, uplinks: set[int]) -> Iterator[tuple[HostEnd, Link]]:
    for link in inside.links:
        end = _end_of(link, inside.descriptor)
        if end is not None:
            is_uplink = link.ifindex in uplinks
            yield HostEnd(name=end.name, ifindex=end.ifindex, is_uplink=is_uplink), end


def _end_of(link: Link, descriptor: int) -> Link | None:
    """Return the host's end of a sandbox's link; None if it is not on the host."""
    if link.peer_ifindex is None or link.peer_nsid is None:
        return None
    end = rtnetlink.link_at(link.peer_ifindex)
    if end is None or end.peer_ifindex != link.ifindex or end.peer_nsid is None:
        return None
    return end if end.peer_nsid == rtnetlink.namespace_number(descriptor) else None


def _inside(spec: FenceSpec, around: Surroundings) -> _Inside:
    allowed = {endpoint.address for endpoint in spec.allowed}
    hops = {routes.to_address(address).neighbour for address in allowed}
    # A route never adds a neighbour: those of the fence inside are the ones that count. Those that
    # are no allowed address are the gateways of the survey. So the present routes to networks, of
    # which a process inside may add any number, are not read.
    next_hops = {each for each in around.neighbours if each in hops or each not in allowed}
    descriptor, links = _links()
    return _Inside(descriptor=descriptor, links=links, next_hops=frozenset(next_hops))


def _links() -> tuple[int, tuple[Link, ...]]:
    found = tuple(link for link in rtnetlink.links() if not link.is_loopback)
    return os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC), found


def _host_links(
    around: Surroundings,
    namespace: Namespace,
    inside: _Inside,
    device: str | None,
    known: HostLinks | None,
) -> HostLinks:
    """Return the facts about ``device``, or about the ends that are found.

    ``known`` are those in the fence's record.
    """
    uplinks = [link for link in inside.links if link.name in around.uplinks]
    if device is not None:
        ends = [_named(device)]
    elif namespace.identity() == HOST.identity():
        return HostLinks(absence="no guard: the sandbox is in this network namespace itself")
    else:
        missing = [link.name for link in uplinks if _end_of(link, inside.descriptor) is None]
        if missing or not uplinks:
            names = " and ".join(missing) or "its link"
            reason = f"the other end of {names} is not in this network namespace"
            return HostLinks(absence=f"no guard: {reason}")
        ends = list(_ends(inside, {link.ifindex for link in uplinks}))
    uplink_ends = [link for end, link in ends if end.is_uplink]
    ports = [link for link in uplink_ends if link.master is not None]
    bridges, next_hops = _bridges(ports, inside.next_hops)
    found = tuple(sorted((end for end, _ in ends), key=lambda end: end.ifindex))
    is_known = known is not None and known.ends == found
    return HostLinks(
        ends=found,
        gateway_macs=_macs(link.mac for link in (*uplink_ends, *bridges)),
        direct_macs=_macs(link.mac for link in uplink_ends if link.master is None),
        next_hops=_sorted(next_hops),
        next_hop_macs=_next_hop_macs(next_hops, namespace, known if is_known else None),
        # The kernel makes the same ones again.
        link_locals=(
            known.link_locals
            if known is not None and is_known
            else _link_locals(namespace, {link.ifindex for link in uplinks}, around)
        ),
    )


def _link_locals(
    namespace: Namespace, indexes: set[int], around: Surroundings
) -> tuple[Address, ...]:
    addresses = namespace.call(lambda: list(rtnetlink.addresses(_MOST)))
    found = {each for index, each in addresses if index in indexes and each.is_link_local}
    return _sorted(found | {*map(link_local, around.macs)})


def _next_hop_macs(
    next_hops: set[Address], namespace: Namespace, known: HostLinks | None
) -> tuple[str, ...]:
    if not next_hops:
        return ()
    if known is not None:
        # The guard has learned changes itself, and its set of them stays.
        return known.next_hop_macs if set(known.next_hops) >= next_hops else ()
    # The first fence of this link: the sandbox's own table is trusted as its addresses are.
    neighbours = namespace.call(lambda: list(rtnetlink.neighbours(_MOST)))
    macs = {mac for _, address, mac in neighbours if address in next_hops}
    macs |= {mac for _, address, mac in rtnetlink.neighbours() if address in next_hops}
    return _macs(macs)


def _bridges(
    ports: list[Link], next_hops: frozenset[Address]
) -> tuple[tuple[Link, ...], set[Address]]:
    """Return the interfaces of the host with a next hop's address, and the other next hops.

    On an end that is no port of a bridge, ``ports`` is empty: all next hops are the host's.
    """
    if not ports:
        return (), set()
    bridges = {link.master for link in ports}
    found: dict[Address, set[int]] = {}
    for index, address in rtnetlink.addresses():
        if address in next_hops:
            found.setdefault(address, set()).add(index)
    # An address of the host on another interface is answered by the bridge (net.ipv4.arp_ignore).
    indexes = {index for each in found.values() for index in each} | (bridges if found else set())
    links = map(rtnetlink.link_at, sorted(filter(None, indexes)))
    return tuple(link for link in links if link is not None), set(next_hops) - set(found)


def _macs(found: Iterable[str | None]) -> tuple[str, ...]:
    """Return the valid link addresses of single machines, sorted."""
    macs = set()
    for each in found:
        if each is not None and not int(each[:2], 16) & _GROUP and each != "00:00:00:00:00:00":
            macs.add(values.mac(each))
    return tuple(sorted(macs))


def _sorted(addresses: Iterable[Address]) -> tuple[Address, ...]:
    return tuple(sorted(addresses, key=lambda each: (each.version, int(each))))
