"""Specification of a fence, its tables, and the interfaces on which the fence's rules depend."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, TypeAlias

from ocsf_nft.errors import UsageError
from ocsf_nft.fence import values
from ocsf_nft.fence.host_names import ResolvedName
from ocsf_nft.fence.values import Address, Destination, Endpoint, Network, Subnet

#: How refused packets are reported: netlink, kernel log, or not at all. Best first.
LogTransport: TypeAlias = Literal["nflog", "kmsg", "none"]
TRANSPORTS: Final[tuple[LogTransport, ...]] = ("nflog", "kmsg", "none")
#: Default NFLOG group. Any other free group works as well; this one is the OCSF class of the
#: events.
DEFAULT_GROUP: Final = 4001

#: Most interfaces of a fence. The kernel can't list a chain with more than 32 KiB of devices, 20
#: bytes each, and the tamper guard attaches more while a fence is loaded.
_MOST_LINKS: Final = 1_500
#: Interface to which the netdev chain of a fence is attached if there is no other.
LOOPBACK: Final = "lo"
#: Name of a fence's tables. If they are of a device, the device's name follows.
TABLE: Final = "ocsf_nft"

#: What a fence encloses. ``sandbox``: a network namespace. ``sidecar``: a network namespace that
#: also contains the proxy, which is recognised by its user id. ``tap``: a virtual machine, by its
#: TAP device on the host.
Profile: TypeAlias = Literal["sandbox", "sidecar", "tap"]


class TableId(NamedTuple):
    """Identifier of an nftables table: its family, such as ``inet``, and its name."""

    family: str
    name: str


#: Tables of a fence, each with the names of the rules that count in it, such as ``egress``.
Tables: TypeAlias = dict[TableId, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """TAP device of a virtual machine on its host, and the addresses that the machine may use."""

    device: str
    #: The gateway's address with a prefix length, such as 10.0.0.1/24: at most one of IPv4, and one
    #: of IPv6. The machine may use the other host addresses of the subnet.
    subnets: tuple[Subnet, ...]
    #: If None, the fence learns the MAC address from the machine's first packet.
    mac: str | None = None
    #: If true, the machine reaches nothing but the proxies and the exceptions. If false, it also
    #: reaches all other destinations beyond the host that the fence does not refuse.
    is_strict: bool = False

    def __post_init__(self) -> None:
        """Check the device name, the MAC address and the subnets; raises UsageError."""
        values.device_name(self.device)
        if self.mac is not None:
            values.mac(self.mac)
        versions = [subnet.version for subnet in self.subnets]
        if not versions or len(set(versions)) < len(versions):
            raise UsageError("a VM needs a --subnet CIDR, at most one of IPv4 and one of IPv6")


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceSpec:
    """Operator's specification of a sandbox's fence; an invalid value raises UsageError."""

    sandbox: str
    #: Destinations that the sandbox may reach: ``proxies`` and ``exceptions``.
    proxies: tuple[Endpoint, ...] = ()
    exceptions: tuple[Destination, ...] = ()
    #: Host names in the operator's request. ``proxies`` and ``exceptions`` have their addresses. A
    #: name that is not resolved has none: the fence allows nothing for it.
    resolved: tuple[ResolvedName, ...] = ()
    #: User ids of a pod's sidecar proxy.
    proxy_uids: tuple[int, ...] = ()
    tap: Tap | None = None
    #: NFLOG group.
    group: int = DEFAULT_GROUP
    #: Interface at the host's end of the sandbox's link. If it is set, an additional table on the
    #: host (the guard) filters the packets of this interface.
    guard_device: str | None = None
    #: If true, the installer looks for the host's end, and sets ``guard_device``.
    finds_guard: bool = False
    #: If true, the fence logs the packets that it would refuse, and allows them.
    is_permissive: bool = False
    #: True if the fence has switched between enforcing and permissive. Then the tables have the
    #: counters of refused packets, and of packets that were only logged. Set only by the installer.
    has_changed: bool = False
    #: If true, no other process can change the tables while `ocsf-nft run` monitors the fence.
    is_owned: bool = False

    def __post_init__(self) -> None:
        """Check each value, and check that the values fit together; raises UsageError."""
        values.sandbox_name(self.sandbox)
        values.nflog_group(self.group)
        for uid in self.proxy_uids:
            values.uid(uid)
        if self.guard_device is not None:
            values.device_name(self.guard_device)
            if self.tap is not None:
                raise UsageError("a VM's TAP device is guarded anyway: leave --host-guard out")
        if self.finds_guard and self.profile != "sandbox":
            raise UsageError(f"a fence of profile {self.profile} has no guard on the host")
        if self.proxy_uids and self.tap is not None:
            raise UsageError("a fence is a sidecar's or a VM's: give --proxy-uid or --device")
        if not self.proxies and not self.proxy_uids and not self.resolved:
            raise UsageError("a fence needs at least one --proxy ADDR:PORT to allow")

    @property
    def profile(self) -> Profile:
        """Return ``tap`` for a VM, ``sidecar`` for a pod with a sidecar proxy, else ``sandbox``."""
        if self.tap is not None:
            return "tap"
        return "sidecar" if self.proxy_uids else "sandbox"

    @property
    def allowed(self) -> tuple[Endpoint, ...]:
        """Return the endpoints that every process may reach.

        They are ``proxies``, and the ``exceptions`` that are one address and one port.
        """
        exceptions = (each.endpoint for each in self.exceptions)
        return tuple(sorted({*self.proxies, *filter(None, exceptions)}, key=_sort_key))

    @property
    def ranges(self) -> tuple[Destination, ...]:
        """Return the other ``exceptions``: networks, and destinations with a range of ports."""
        found = {each for each in self.exceptions if each.endpoint is None}
        return tuple(sorted(found, key=_range_key))

    @property
    def tables(self) -> Tables:
        """Return the fence's tables in the fenced namespace: first that of IP, then of links."""
        return tables_of(None if self.tap is None else self.tap.device)

    @property
    def guard_tables(self) -> Tables:
        """Return the guard's table; nothing if the fence has no guard.

        The guard is a table on the host, at the host's end of the sandbox's link. It blocks packets
        that have bypassed the fence inside the sandbox.
        """
        if self.guard_device is None:
            return {}
        return {TableId("netdev", device_table(self.guard_device)): ("guard", "guard-ingress")}


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEnd:
    """Host's end of a veth pair, which leads to a sandbox."""

    name: str
    #: Shows that a device was deleted and created again with the same name.
    ifindex: int
    #: True if the link leads to the proxies. The guard allows nothing on the others.
    is_uplink: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLinks:
    """Host's ends of a sandbox's links, and the link addresses at which its gateways are found."""

    #: The ends that the guard filters; empty without a guard.
    ends: tuple[HostEnd, ...] = ()
    #: Link addresses that lead to the host's own IP stack: those of the ends, and of the bridge
    #: with the address of a gateway.
    gateway_macs: tuple[str, ...] = ()
    #: Link addresses of the ends that are no port of a bridge.
    direct_macs: tuple[str, ...] = ()
    #: Gateways that are other machines on the bridge, and their link addresses, as far as known.
    next_hops: tuple[Address, ...] = ()
    next_hop_macs: tuple[str, ...] = ()
    #: Link-local addresses of the sandbox.
    link_locals: tuple[Address, ...] = ()
    #: Reason why there is no guard although one was looked for; else empty.
    absence: str = ""

    def __post_init__(self) -> None:
        """Check that each name can be written in a ruleset; raises UsageError."""
        for end in self.ends:
            values.device_name(end.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uplink:
    """Identity of an interface that leads to the allowed destinations."""

    name: str
    ifindex: int
    #: Ethernet address; None if the interface has none.
    mac: str | None = None
    #: Index and namespace number of the other end, as in :class:`ocsf_nft.rtnetlink.Link`.
    peer_ifindex: int | None = None
    peer_nsid: int | None = None

    def is_same(self, other: Uplink) -> bool:
        """Return True if ``other`` is this interface, whatever its name is."""
        return other == replace(self, name=other.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Network interfaces and next hops of a namespace, as found when the fence is installed."""

    #: Names of all interfaces except loopback; for a VM, only the TAP device.
    links: tuple[str, ...] = ()
    #: Interfaces that lead to the allowed destinations; all interfaces if none has a route. In a
    #: pod without exceptions, the interfaces with any route.
    uplinks: tuple[str, ...] = ()
    #: Addresses to which the fence allows ARP and IPv6 neighbor discovery: the allowed endpoints,
    #: and the next hops towards all allowed destinations. The fence also allows both to the
    #: networks of its exceptions.
    neighbours: tuple[Address, ...] = ()
    #: Networks on the links of the uplinks, with ``pins`` of a pod: the proxy's neighbours. IPv6
    #: link-local networks are left out.
    link_networks: tuple[Network, ...] = ()
    #: Addresses of the namespace, except loopback's and IPv6 link-local ones: the sources that its
    #: packets may have.
    addresses: tuple[Address, ...] = ()
    #: Ethernet addresses of the uplinks.
    macs: tuple[str, ...] = ()
    #: The uplinks, if a route has shown them: later surveys do not change them. Empty otherwise.
    pins: tuple[Uplink, ...] = ()
    #: IPv6 link-local addresses of the uplinks; only with ``pins``.
    link_locals: tuple[Address, ...] = ()
    #: Indexes of the interfaces of ``uplinks``.
    uplink_indexes: tuple[int, ...] = ()
    #: Indexes of the interfaces that never lead to a nested namespace.
    outer_indexes: tuple[int, ...] = ()
    #: Names of ``pins`` that do not exist any more.
    missing: tuple[str, ...] = ()
    #: Host's ends of the links, and the link addresses of the gateways, for the guard.
    host: HostLinks = HostLinks()
    #: Index of a VM's TAP device. Shows that a device was deleted and created again with the same
    #: name.
    ifindex: int | None = None

    @property
    def attached(self) -> frozenset[str]:
        """Return the interfaces to which the netdev chains of a fence and a guard are attached."""
        return frozenset((*(self.links or (LOOPBACK,)), *(end.name for end in self.host.ends)))

    def __post_init__(self) -> None:
        """Check the number and the names of the interfaces; raises UsageError."""
        if len(self.links) > _MOST_LINKS:
            raise UsageError(
                f"the namespace has {len(self.links)} interfaces, but a fence can be attached to "
                f"{_MOST_LINKS}: delete some"
            )
        # The owner of an interface can choose any name.
        for link in self.links:
            values.device_name(link)


def tables_of(device: str | None) -> Tables:
    """Return the tables of the fence of a VM on a TAP device; with None, of a namespace's fence."""
    if device is None:
        return {
            TableId("inet", TABLE): ("egress", "forward", "ingress"),
            TableId("netdev", TABLE): ("link",),
        }
    name = device_table(device)
    return {
        TableId("inet", name): ("vm-forward", "vm-input", "vm-ingress"),
        TableId("netdev", name): ("vm-link",),
    }


def device_table(device: str) -> str:
    """Return the name of the fence's nftables table for a device, for example ``ocsf_nft_tap0``.

    Each character that is not allowed in the name is replaced by ``_`` and its code in hex.
    """
    return f"{TABLE}_" + re.sub(r"[^A-Za-z0-9.-]", lambda found: f"_{ord(found[0]):02x}", device)


def _sort_key(endpoint: Endpoint) -> tuple[int, int, str, int]:
    return endpoint.address.version, int(endpoint.address), endpoint.protocol, endpoint.port


def _range_key(destination: Destination) -> tuple[int, int, int, str, int, int]:
    network = destination.network
    return (
        network.version, int(network.network_address), network.prefixlen,
        destination.protocol, destination.first_port, destination.last_port,
    )  # fmt: skip
