"""Model of the traffic that a fence accepts: example packets and their netfilter hooks.

A few example packets represent all accepted traffic. For example, one public address represents the
whole internet.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from ocsf_nft.check.packet import (
    ADDRESSES,
    ESTABLISHED,
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

#: Addresses that model the internet. They are in no list of private or reserved addresses. Nothing
#: is ever sent to them.
INTERNET: Final = {4: 0x5DB8D70E, 6: 0x2606_2800_021F_CB07_6820_80DA_AF6B_8B2C}
#: Port that represents all other ports.
_UNUSUAL_PORT: Final = 47011
#: Source ports of a system's own connections (net.ipv4.ip_local_port_range).
_EPHEMERAL: Final = Span(32768, 60999)
#: At an interface's egress hook the input interface is no longer known (nf_hook_egress).
_AT_EGRESS: Final = {"input_interface": NO_INTERFACE}
_PORTS: Final = ((TCP, 443), (TCP, _UNUSUAL_PORT), (UDP, 53), (UDP, _UNUSUAL_PORT))


class FlowDirection(enum.Enum):
    """Direction of accepted traffic, as a text such as "traffic from the VM to the internet"."""

    OUT = "traffic from the VM to the internet"
    REPLY = "replies from the internet to the VM"
    GATEWAY = "traffic from the VM to the gateway's port"
    GATEWAY_ANSWER = "the gateway's answers to the VM"
    PROXY = "traffic from the sandbox to its proxy"
    PROXY_ANSWER = "the proxy's answers to the sandbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One netfilter hook on the path of a modelled packet, and the changes to the packet there."""

    hook: str
    #: New values of :class:`Packet` fields at this hook, by the field's name.
    changes: Mapping[str, Any]
    #: Interface of an ingress or egress hook; None for other hooks.
    device: InterfaceName | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
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
        """Return true if ``self.packet`` is a later packet of a flow, and not a reply.

        An AcceptedFlow object models one packet. For a flow's first packet and for replies, the
        result is false.
        """
        return self.packet.direction == "original" and not self.packet.is_first

    @property
    def label(self) -> str:
        """Return the flow's protocol and server port as a short text, such as ``tcp 443``.

        If the port represents many ports, the text is, for example, ``tcp other ports``. If
        :attr:`is_continuation` is true, the text ends with ``, once open``.
        """
        protocol = "tcp" if self.packet.protocol == TCP else "udp"
        opening = self.packet.direction == "original"
        port = self.packet.destination_port if opening else self.packet.source_port
        number = "other ports" if port.single == _UNUSUAL_PORT else f"{port.single}"
        return f"{protocol} {number}{', once open' if self.is_continuation else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vm:
    """Virtual machine (VM) in the model of the accepted traffic."""

    #: Name of the TAP device, or a pattern such as ``vmtap-*``.
    device: str
    #: Addresses of the VM; empty means any address.
    subnets: tuple[Subnet, ...] = ()
    #: TCP port that the VM may reach at its gateway.
    port: int
    #: Interface that leads to the internet, if known, by IP version (4 or 6).
    uplinks: Mapping[int, str]

    def name(self) -> InterfaceName:
        """Return the name of the VM's TAP device.

        If the object stands for all VMs whose device names match a pattern, such as ``vmtap-*``,
        return the prefix ``vmtap-``.
        """
        return interface(self.device)

    def uplink(self, version: int) -> InterfaceName:
        """Return the name of the interface that leads to the internet, for IP ``version`` 4 or 6.

        If the name is unknown, the result stands for any interface. Its field ``excluded_prefixes``
        then rules out the VM's device and the loopback.
        """
        found = self.uplinks.get(version)
        if found is not None:
            return InterfaceName(found)
        return InterfaceName("", is_prefix=True, excluded_prefixes=(self.device.rstrip("*"), "lo"))


def vm_flows(vm: Vm) -> Iterator[AcceptedFlow]:
    """Yield example packets for each kind of traffic that a VM's fence accepts.

    The kinds are packets to the internet, packets to TCP port ``vm.port`` of the VM's gateway, and
    the replies to both. Each example lists the netfilter hooks that the packet passes.
    """
    if vm.subnets:
        for subnet in vm.subnets:
            gateway = exactly(int(subnet.ip))
            yield from _subnet_flows(vm, subnet.version, gateway, _hosts(subnet))
        return
    for version in (4, 6):
        yield from _subnet_flows(vm, version, ADDRESSES[version], ADDRESSES[version])


def _hosts(subnet: Subnet) -> Span:
    network = subnet.network
    low, high = int(network.network_address), int(network.broadcast_address)
    if high == low + 1:  # a network of two addresses has no broadcast address (RFC 3021)
        return Span(low, high)
    return Span(
        low + 2 if int(subnet.ip) == low + 1 else low, high - 1 if network.version == 4 else high
    )


def _subnet_flows(vm: Vm, version: int, gateway: Span, hosts: Span) -> Iterator[AcceptedFlow]:
    device, uplink = vm.name(), vm.uplink(version)
    internet = exactly(INTERNET[version])
    for protocol, port in _PORTS:
        out = _packet(version, protocol, (hosts, internet), (_EPHEMERAL, exactly(port)))
        out_steps = (
            Step(
                hook="ingress", device=device, changes={"input_interface": device, "state": UNSEEN}
            ),
            Step(hook="prerouting", changes={}),
            Step(hook="forward", changes={"output_interface": uplink}),
            Step(hook="postrouting", changes={}),
            Step(hook="egress", device=uplink, changes=_AT_EGRESS),
        )
        yield AcceptedFlow(direction=FlowDirection.OUT, packet=out, steps=out_steps)
        yield AcceptedFlow(direction=FlowDirection.OUT, packet=_later(out), steps=out_steps)
        reply_steps = (
            Step(
                hook="ingress", device=uplink, changes={"input_interface": uplink, "state": UNSEEN}
            ),
            Step(hook="prerouting", changes={}),
            Step(
                hook="forward",
                changes={
                    "output_interface": device, "destination": hosts,
                    "destination_port": _EPHEMERAL, "is_destination_local": Truth.NO,
                },
            ),
            Step(hook="postrouting", changes={}),
            Step(hook="egress", device=device, changes=_AT_EGRESS),
        )  # fmt: skip
        # Before NAT is reversed, the reply is addressed to the host, and rules may test this.
        reply = replace(
            _reply(version, protocol, (internet, ADDRESSES[version]), (exactly(port), PORTS)),
            is_destination_local=Truth.MAYBE,
        )
        yield AcceptedFlow(direction=FlowDirection.REPLY, packet=reply, steps=reply_steps)
    query = replace(
        _packet(version, TCP, (hosts, gateway), (_EPHEMERAL, exactly(vm.port))),
        is_destination_local=Truth.YES,
    )
    query_steps = (
        Step(hook="ingress", device=device, changes={"input_interface": device, "state": UNSEEN}),
        Step(hook="prerouting", changes={}),
        Step(hook="input", changes={}),
    )
    yield AcceptedFlow(direction=FlowDirection.GATEWAY, packet=query, steps=query_steps)
    yield AcceptedFlow(direction=FlowDirection.GATEWAY, packet=_later(query), steps=query_steps)
    answer = replace(
        _reply(version, TCP, (gateway, hosts), (exactly(vm.port), _EPHEMERAL)),
        is_source_local=Truth.YES,
        has_reverse_route=Truth.MAYBE,
        state=UNSEEN,
    )
    answer_steps = (
        Step(hook="output", changes={"output_interface": device}),
        Step(hook="postrouting", changes={}),
        Step(hook="egress", device=device, changes={}),
    )
    yield AcceptedFlow(direction=FlowDirection.GATEWAY_ANSWER, packet=answer, steps=answer_steps)


def proxy_flows(proxy: Endpoint, link: str | None) -> Iterator[AcceptedFlow]:
    """Yield example packets of the accepted traffic between a sandbox and its proxy.

    These are packets to ``proxy`` through the interface ``link``, and the proxy's answers. If
    ``link`` is None, the packets may use any interface except the loopback.
    """
    version = proxy.address.version
    own_address = ADDRESSES[version]
    proxy_address, port = exactly(int(proxy.address)), exactly(proxy.port)
    device = (
        InterfaceName("", is_prefix=True, excluded_prefixes=("lo",))
        if link is None
        else InterfaceName(link)
    )
    out = replace(
        _packet(version, TCP, (own_address, proxy_address), (_EPHEMERAL, port)),
        is_source_local=Truth.YES,
        has_reverse_route=Truth.MAYBE,
        state=UNSEEN,
    )
    out_steps = (
        Step(hook="output", changes={"output_interface": device}),
        Step(hook="postrouting", changes={}),
        Step(hook="egress", device=device, changes={}),
    )
    yield AcceptedFlow(direction=FlowDirection.PROXY, packet=out, steps=out_steps, endpoint=proxy)
    yield AcceptedFlow(
        direction=FlowDirection.PROXY, packet=_later(out), steps=out_steps, endpoint=proxy
    )
    answer = replace(
        _reply(version, TCP, (proxy_address, own_address), (port, _EPHEMERAL)),
        is_destination_local=Truth.YES,
    )
    answer_steps = (
        Step(hook="ingress", device=device, changes={"input_interface": device, "state": UNSEEN}),
        Step(hook="prerouting", changes={}),
        Step(hook="input", changes={}),
    )
    yield AcceptedFlow(
        direction=FlowDirection.PROXY_ANSWER, packet=answer, steps=answer_steps, endpoint=proxy
    )


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


def _later(first: Packet) -> Packet:
    return replace(first, is_first=False)
