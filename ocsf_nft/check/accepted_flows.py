"""The traffic that a fence accepts, as packets that go from hook to hook.

Each flow is told by packets that stand for it: to the internet as to one address there, to a usual
port and to another one. Whatever a ruleset does to them, it does to most of the flow.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from ocsf_nft.check.packet import ADDRESSES, ESTABLISHED, TCP, UDP, UNSEEN, Packet
from ocsf_nft.check.ternary import NOWHERE, PORTS, Name, Span, Truth, exactly, interface

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.fence.values import Endpoint, Subnet

#: Addresses that no list of private or reserved ones holds, to stand for the internet. Nothing is
#: ever sent there.
INTERNET: Final = {4: 0x5DB8D70E, 6: 0x2606_2800_021F_CB07_6820_80DA_AF6B_8B2C}
_UNUSUAL_PORT: Final = 47011
#: What a system takes for its own end (net.ipv4.ip_local_port_range).
_EPHEMERAL: Final = Span(32768, 60999)
#: Where a packet came in isn't known any more on its way out of an interface (nf_hook_egress).
_AT_EGRESS: Final = {"came_by": NOWHERE}
_PORTS: Final = ((TCP, 443), (TCP, _UNUSUAL_PORT), (UDP, 53), (UDP, _UNUSUAL_PORT))


class Direction(enum.Enum):
    """Which part of what is accepted; the value says it to a person."""

    OUT = "what the VM sends to the internet"
    REPLY = "the replies to it"
    GATEWAY = "what the VM sends to the gateway's port"
    ANSWER = "the gateway's answers"
    PROXY = "what the sandbox sends to its proxy"
    PROXY_ANSWER = "the proxy's answers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A hook on the way, and what is new about the packet there.

    ``device`` is where a hook of one interface is.
    """

    hook: str
    changes: Mapping[str, Any]
    device: Name | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Flow:
    """One packet and its way."""

    direction: Direction
    packet: Packet
    steps: tuple[Step, ...]
    endpoint: Endpoint | None = None

    @property
    def is_later(self) -> bool:
        """Whether it goes on with what the flow before it begins."""
        return self.packet.direction == "original" and not self.packet.is_first

    @property
    def label(self) -> str:
        """Protocol, port and version, for a person."""
        protocol = "tcp" if self.packet.protocol == TCP else "udp"
        opening = self.packet.direction == "original"
        port = self.packet.destination_port if opening else self.packet.source_port
        number = "other ports" if port.single == _UNUSUAL_PORT else f"{port.single}"
        return f"{protocol} {number}{', once open' if self.is_later else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A VM whose traffic is judged.

    ``device`` may be a pattern; without ``subnets`` any address may be its. ``uplinks`` are the
    interfaces that lead to the internet, by version of IP, where that is known.
    """

    device: str
    subnets: tuple[Subnet, ...] = ()
    port: int
    uplinks: Mapping[int, str]

    def name(self) -> Name:
        """Its device's name as rules see it."""
        return interface(self.device)

    def uplink(self, version: int) -> Name:
        """The interface to the internet; unlike its own, whichever it is."""
        found = self.uplinks.get(version)
        if found is not None:
            return Name(found)
        return Name("", is_start=True, unlike=(self.device.rstrip("*"), "lo"))


def of_machine(machine: Machine) -> Iterator[Flow]:
    """What a VM's fence accepts: out, replies in, the gateway's port, its answers."""
    if machine.subnets:
        for subnet in machine.subnets:
            gateway = exactly(int(subnet.ip))
            yield from _of_subnet(machine, subnet.version, gateway, _hosts(subnet))
        return
    for version in (4, 6):
        yield from _of_subnet(machine, version, ADDRESSES[version], ADDRESSES[version])


def _hosts(subnet: Subnet) -> Span:
    network = subnet.network
    low, high = int(network.network_address), int(network.broadcast_address)
    if high == low + 1:  # a network of two has no broadcast address (RFC 3021)
        return Span(low, high)
    return Span(
        low + 2 if int(subnet.ip) == low + 1 else low, high - 1 if network.version == 4 else high
    )


def _of_subnet(machine: Machine, version: int, gateway: Span, hosts: Span) -> Iterator[Flow]:
    device, uplink = machine.name(), machine.uplink(version)
    far = exactly(INTERNET[version])
    for protocol, port in _PORTS:
        out = _packet(version, protocol, (hosts, far), (_EPHEMERAL, exactly(port)))
        way = (
            Step(hook="ingress", device=device, changes={"came_by": device, "state": UNSEEN}),
            Step(hook="prerouting", changes={}),
            Step(hook="forward", changes={"leaves_by": uplink}),
            Step(hook="postrouting", changes={}),
            Step(hook="egress", device=uplink, changes=_AT_EGRESS),
        )
        yield Flow(direction=Direction.OUT, packet=out, steps=way)
        yield Flow(direction=Direction.OUT, packet=_later(out), steps=way)
        back = (
            Step(hook="ingress", device=uplink, changes={"came_by": uplink, "state": UNSEEN}),
            Step(hook="prerouting", changes={}),
            Step(
                hook="forward",
                changes={
                    "leaves_by": device, "destination": hosts,
                    "destination_port": _EPHEMERAL, "is_local": Truth.NO,
                },
            ),
            Step(hook="postrouting", changes={}),
            Step(hook="egress", device=device, changes=_AT_EGRESS),
        )  # fmt: skip
        # Until NAT has undone itself, it is addressed to the host; what routes it is checked there.
        reply = replace(
            _reply(version, protocol, (far, ADDRESSES[version]), (exactly(port), PORTS)),
            is_local=Truth.MAYBE,
        )
        yield Flow(direction=Direction.REPLY, packet=reply, steps=back)
    ask = replace(
        _packet(version, TCP, (hosts, gateway), (_EPHEMERAL, exactly(machine.port))),
        is_local=Truth.YES,
    )
    asked = (
        Step(hook="ingress", device=device, changes={"came_by": device, "state": UNSEEN}),
        Step(hook="prerouting", changes={}),
        Step(hook="input", changes={}),
    )
    yield Flow(direction=Direction.GATEWAY, packet=ask, steps=asked)
    yield Flow(direction=Direction.GATEWAY, packet=_later(ask), steps=asked)
    answer = replace(
        _reply(version, TCP, (gateway, hosts), (exactly(machine.port), _EPHEMERAL)),
        comes_from_here=Truth.YES,
        has_way_back=Truth.MAYBE,
        state=UNSEEN,
    )
    answered = (
        Step(hook="output", changes={"leaves_by": device}),
        Step(hook="postrouting", changes={}),
        Step(hook="egress", device=device, changes={}),
    )
    yield Flow(direction=Direction.ANSWER, packet=answer, steps=answered)


def of_proxy(proxy: Endpoint, link: str | None) -> Iterator[Flow]:
    """What a sandbox's fence accepts: out to its proxy by ``link``, and the proxy's answers."""
    version = proxy.address.version
    here = ADDRESSES[version]
    there, port = exactly(int(proxy.address)), exactly(proxy.port)
    device = Name("", is_start=True, unlike=("lo",)) if link is None else Name(link)
    out = replace(
        _packet(version, TCP, (here, there), (_EPHEMERAL, port)),
        comes_from_here=Truth.YES,
        has_way_back=Truth.MAYBE,
        state=UNSEEN,
    )
    leaving = (
        Step(hook="output", changes={"leaves_by": device}),
        Step(hook="postrouting", changes={}),
        Step(hook="egress", device=device, changes={}),
    )
    yield Flow(direction=Direction.PROXY, packet=out, steps=leaving, endpoint=proxy)
    yield Flow(direction=Direction.PROXY, packet=_later(out), steps=leaving, endpoint=proxy)
    answer = replace(_reply(version, TCP, (there, here), (port, _EPHEMERAL)), is_local=Truth.YES)
    coming = (
        Step(hook="ingress", device=device, changes={"came_by": device, "state": UNSEEN}),
        Step(hook="prerouting", changes={}),
        Step(hook="input", changes={}),
    )
    yield Flow(direction=Direction.PROXY_ANSWER, packet=answer, steps=coming, endpoint=proxy)


def _packet(
    version: int, protocol: int, addresses: tuple[Span, Span], ports: tuple[Span, Span]
) -> Packet:
    """The first packet of a flow; its ends are given as source and destination."""
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
    """What follows in the same flow and direction, once it was answered."""
    return replace(first, is_first=False)
