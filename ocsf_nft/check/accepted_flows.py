"""Scope of a check, and the traffic that its fence accepts: example packets and their hooks.

A few example packets represent all accepted traffic. For example, one public address represents the
whole internet.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from ocsf_nft.check.packet import (
    ADDRESSES,
    ANY_INTERFACE,
    ANY_STATE,
    ARP,
    ESTABLISHED,
    ICMPV6,
    NO_INTERFACE,
    PORTS,
    TCP,
    UDP,
    UNSEEN,
    InterfaceName,
    Packet,
    Span,
    Truth,
    exactly,
    interface,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.fence.values import Endpoint, Subnet
    from ocsf_nft.netns import Namespace

#: Addresses that model the internet. They are in no list of private or reserved addresses. Nothing
#: is ever sent to them.
INTERNET: Final = {4: 0x5DB8D70E, 6: 0x2606_2800_021F_CB07_6820_80DA_AF6B_8B2C}
#: Port that represents all other ports.
_UNUSUAL_PORT: Final = 47011
#: Source ports of a system's own connections (net.ipv4.ip_local_port_range).
_EPHEMERAL: Final = Span(32768, 60999)
_RESOLUTION: Final = {ARP: "arp", ICMPV6: "icmpv6"}
_PORTS: Final = ((TCP, 443), (TCP, _UNUSUAL_PORT), (UDP, 53), (UDP, _UNUSUAL_PORT))
#: Fields of a packet that the host itself sends, at the output hook.
_SENT_BY_HOST: Final[Mapping[str, Any]] = {
    "is_source_local": Truth.YES,
    "has_reverse_route": Truth.MAYBE,
    "state": UNSEEN,
}


class FlowDirection(enum.Enum):
    """Direction of accepted traffic, as a text such as "traffic from the VM to the internet"."""

    OUT = "traffic from the VM to the internet"
    REPLY = "replies from the internet to the VM"
    GATEWAY = "traffic from the VM to the gateway's port"
    GATEWAY_ANSWER = "the gateway's answers to the VM"
    PROXY = "traffic from the sandbox to its proxy"
    PROXY_ANSWER = "the proxy's answers to the sandbox"
    NEIGHBOR = "address resolution"


@dataclass(frozen=True, slots=True)
class Step:
    """One netfilter hook on the path of a modelled packet, and the changes to the packet there."""

    hook: str
    #: New values of :class:`Packet` fields at this hook, by the field's name.
    changes: Mapping[str, Any] = field(default_factory=dict)
    #: Interface of an ingress or egress hook; None for other hooks.
    device: InterfaceName | None = None
    #: Family of a hook for other packets than IP: ``arp`` or ``bridge``.
    family: str = ""
    #: Interfaces of an ingress or egress hook, such as the ports of a bridge. A packet passes one.
    below: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class AcceptedFlow:
    """Example packet that a fence accepts, and the netfilter hooks on the packet's path.

    ``steps`` are the hooks in order. ``endpoint`` is the proxy that sends or receives the packet.
    It is None for the traffic of a VM.
    """

    direction: FlowDirection
    packet: Packet
    steps: tuple[Step, ...]
    endpoint: Endpoint | None = None

    @property
    def is_continuation(self) -> bool:
        """Return true if the packet is a later packet of a flow, and not a reply."""
        return self.packet.direction == "original" and not self.packet.is_first

    @property
    def label(self) -> str:
        """Return the flow's protocol and server port as a short text, such as ``tcp 443``.

        If the port represents many ports, the text is, for example, ``tcp other ports``. If
        :attr:`is_continuation` is true, the text ends with ``, once open``.
        """
        if self.packet.protocol in _RESOLUTION:
            return _RESOLUTION[self.packet.protocol]
        protocol = "tcp" if self.packet.protocol == TCP else "udp"
        opening = self.packet.direction == "original"
        port = self.packet.destination_port if opening else self.packet.source_port
        number = "other ports" if port.single == _UNUSUAL_PORT else f"{port.single}"
        return f"{protocol} {number}{', once open' if self.is_continuation else ''}"


@dataclass(frozen=True, slots=True)
class Link:
    """Interface of a path, and what is below it: the ports of a bridge, or a VLAN's parent."""

    name: InterfaceName
    below: tuple[str, ...] = ()
    has_bridge: bool = False
    #: False without link addresses, which ARP or neighbor discovery finds.
    has_neighbors: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckScope:
    """Scope of a check: a network namespace, and the VM or sandbox to check in this namespace."""

    namespace: Namespace
    #: Interface of the VM, or a pattern such as ``vmtap-*``; None without a VM.
    device: str | None = None
    #: Addresses of the VM; empty means any address.
    subnets: tuple[Subnet, ...] = ()
    #: TCP port that the VM may reach at its gateway.
    port: int
    #: If true, the VM may reach nothing else.
    is_strict: bool = False
    #: Proxies of the sandbox.
    proxies: tuple[Endpoint, ...] = ()
    #: Interfaces that lead to the internet, by IP version (4 or 6).
    uplinks: Mapping[int, str] = field(default_factory=dict)
    #: Interfaces that lead to the proxies.
    links: Mapping[Endpoint, str] = field(default_factory=dict)
    #: What is known of interfaces, by name.
    described: Mapping[str, Link] = field(default_factory=dict)

    def flows(self) -> Iterator[AcceptedFlow]:
        """Yield example packets of the traffic that a fence accepts: at least one of each kind."""
        if self.device is not None:
            for subnet in self.subnets:
                gateway = exactly(int(subnet.ip))
                yield from self._vm_flows(self.device, subnet.version, gateway, _hosts(subnet))
            if not self.subnets:
                for version in self._versions:
                    anywhere = ADDRESSES[version]
                    yield from self._vm_flows(self.device, version, anywhere, anywhere)
        for proxy in self.proxies:
            yield from self._proxy_flows(proxy)

    @property
    def _versions(self) -> tuple[int, ...]:
        """Return the IP versions of the VM."""
        if self.subnets:
            return tuple(sorted({subnet.version for subnet in self.subnets}))
        # A VM has IPv6 only if the host has an IPv6 route to the internet.
        return (4, 6) if 6 in self.uplinks else (4,)

    def _link(self, name: str | None, *others: str) -> Link:
        """Return the interface ``name``; without a name, any interface but ``others``."""
        if name is not None:
            return self.described.get(name, Link(InterfaceName(name)))
        return Link(InterfaceName("", is_prefix=True, excluded_prefixes=others))

    def _vm_flows(
        self, name: str, version: int, gateway: Span, hosts: Span
    ) -> Iterator[AcceptedFlow]:
        device = self.described.get(name, Link(interface(name)))
        uplink = self._link(self.uplinks.get(version), name.rstrip("*"), "lo")
        internet, port = exactly(INTERNET[version]), exactly(self.port)
        for protocol, number in () if self.is_strict else _PORTS:
            ports = exactly(number)
            out = _packet(version, protocol, (hosts, internet), (_EPHEMERAL, ports))
            yield from _first_and_later(FlowDirection.OUT, out, _forwarded(device, uplink))
            # Before NAT is reversed, the reply is addressed to the host, and rules may test this.
            reply = replace(
                _reply(version, protocol, (internet, ADDRESSES[version]), (ports, PORTS)),
                is_destination_local=Truth.MAYBE,
            )
            steps = _forwarded(
                uplink,
                device,
                destination=hosts,
                destination_port=_EPHEMERAL,
                is_destination_local=Truth.NO,
            )
            yield AcceptedFlow(FlowDirection.REPLY, reply, steps)
        query = _packet(version, TCP, (hosts, gateway), (_EPHEMERAL, port))
        query = replace(query, is_destination_local=Truth.YES)
        yield from _first_and_later(FlowDirection.GATEWAY, query, _received(device))
        answer = _reply(version, TCP, (gateway, hosts), (port, _EPHEMERAL))
        answer = replace(answer, **_SENT_BY_HOST)
        yield AcceptedFlow(FlowDirection.GATEWAY_ANSWER, answer, _sent(device))

    def resolution_flows(self) -> Iterator[AcceptedFlow]:
        """Yield the packets with which VM or sandbox and their neighbors find link addresses."""
        paths: list[tuple[int, Link, Endpoint | None]] = []
        if self.device is not None:
            link = self.described.get(self.device, Link(interface(self.device)))
            paths += [(version, link, None) for version in self._versions]
        for proxy in self.proxies:
            name = self.links.get(proxy)
            if name is not None:
                paths.append((proxy.address.version, self._link(name), proxy))
        for version, link, endpoint in paths:
            if not link.has_neighbors or link.name.text == "lo":
                continue
            anywhere = ADDRESSES[version], ADDRESSES[version]
            protocol = ARP if version == 4 else ICMPV6
            packet = replace(
                _packet(version, protocol, anywhere, (PORTS, PORTS)),
                is_destination_local=Truth.MAYBE,
                has_reverse_route=Truth.MAYBE,
            )
            received, sent = _received(link), _sent(link)
            if version == 4:  # ARP has its own hooks
                received = (
                    *_below(link, is_arrival=True),
                    _ingress(link),
                    Step("input", family="arp"),
                )
                sent = (
                    Step("output", {"output_interface": link.name}, family="arp"),
                    *_departure(link)[1:],
                )
            yield AcceptedFlow(FlowDirection.NEIGHBOR, packet, received, endpoint)
            packet = replace(packet, **_SENT_BY_HOST)
            yield AcceptedFlow(FlowDirection.NEIGHBOR, packet, sent, endpoint)

    def _proxy_flows(self, proxy: Endpoint) -> Iterator[AcceptedFlow]:
        version = proxy.address.version
        own_address, address = ADDRESSES[version], exactly(int(proxy.address))
        link = self.links.get(proxy)
        port, device = exactly(proxy.port), self._link(link, "lo")
        sent, received = _sent(device), _received(device)
        is_here = Truth.NO
        if link == "lo":  # the proxy is in this namespace, which sends and receives each packet
            sent = received = sent + received
            is_here = Truth.YES
        out = _packet(version, TCP, (own_address, address), (_EPHEMERAL, port))
        out = replace(out, **_SENT_BY_HOST, is_destination_local=is_here)
        yield from _first_and_later(FlowDirection.PROXY, out, sent, proxy)
        answer = _reply(version, TCP, (address, own_address), (port, _EPHEMERAL))
        answer = replace(answer, is_destination_local=Truth.YES, is_source_local=is_here)
        yield AcceptedFlow(FlowDirection.PROXY_ANSWER, answer, received, proxy)


def _hosts(subnet: Subnet) -> Span:
    network = subnet.network
    low, high = int(network.network_address), int(network.broadcast_address)
    if high == low + 1:  # a network of two addresses has no broadcast address (RFC 3021)
        return Span(low, high)
    return Span(
        low + 2 if int(subnet.ip) == low + 1 else low, high - 1 if network.version == 4 else high
    )


def _forwarded(start: Link, end: Link, **changes: Any) -> tuple[Step, ...]:
    return (
        *_arrival(start),
        Step("forward", {"output_interface": end.name, **changes}),
        *_departure(end),
    )


def _received(link: Link) -> tuple[Step, ...]:
    return *_arrival(link), Step("input")


def _sent(link: Link) -> tuple[Step, ...]:
    return Step("output", {"output_interface": link.name}), *_departure(link)


def _arrival(link: Link) -> tuple[Step, ...]:
    return *_below(link, is_arrival=True), _ingress(link), Step("prerouting")


def _ingress(link: Link) -> Step:
    changes = {"input_interface": link.name, "output_interface": NO_INTERFACE, "state": UNSEEN}
    return Step("ingress", changes, link.name)


def _departure(link: Link) -> tuple[Step, ...]:
    # At an interface's egress hook the input interface is no longer known (nf_hook_egress).
    egress = Step("egress", {"input_interface": NO_INTERFACE}, link.name)
    return Step("postrouting"), egress, *_below(link, is_arrival=False)


def _below(link: Link, *, is_arrival: bool) -> Iterator[Step]:
    """Yield the hooks of the interfaces below a link, and of its bridge."""
    unknown: dict[str, Any] = dict.fromkeys(("input_interface", "output_interface"), ANY_INTERFACE)
    unknown["state"] = ANY_STATE
    device_hook = "ingress" if is_arrival else "egress"
    bridge_hooks = ("prerouting", "input") if is_arrival else ("output", "postrouting")
    devices = [Step(device_hook, unknown, below=link.below)] if link.below else []
    bridge = [Step(hook, unknown, family="bridge") for hook in bridge_hooks if link.has_bridge]
    yield from (*devices, *bridge) if is_arrival else (*bridge, *devices)


def _first_and_later(
    direction: FlowDirection,
    first: Packet,
    steps: tuple[Step, ...],
    endpoint: Endpoint | None = None,
) -> Iterator[AcceptedFlow]:
    yield AcceptedFlow(direction, first, steps, endpoint)
    yield AcceptedFlow(direction, replace(first, is_first=False), steps, endpoint)


def _packet(
    version: int, protocol: int, addresses: tuple[Span, Span], ports: tuple[Span, Span]
) -> Packet:
    return Packet(
        version=cast("Literal[4, 6]", version),
        protocol=protocol,
        source=addresses[0],
        destination=addresses[1],
        source_port=ports[0],
        destination_port=ports[1],
    )


def _reply(
    version: int, protocol: int, addresses: tuple[Span, Span], ports: tuple[Span, Span]
) -> Packet:
    packet = _packet(version, protocol, addresses, ports)
    return replace(packet, state=ESTABLISHED, direction="reply", is_first=False)
