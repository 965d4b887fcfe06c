"""Sandboxes and neighbours on a bridge, as container engines make it: the bridge is the gateway."""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocsf_nft.netns import named
from tests.kernel import packets
from tests.kernel.packets import ETH_ARP, ETH_IP, ETH_IP6
from tests.kernel.ways import far, world
from tests.kernel.ways.variant import DEVICE, GATEWAY_MAC, MAC, Seat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ocsf_nft.netns import Namespace

_BRIDGE: Final = "br0"
_EVERYBODY: Final = b"\xff" * 6
#: Last byte of the link address and of the addresses of each machine on the bridge.
SANDBOX, SECOND, NEIGHBOUR = 2, 3, 5


@dataclass(frozen=True)
class Site:
    """Host with a bridge, and three machines on it."""

    host: Namespace
    seat: Seat
    second: Seat
    neighbour: Namespace


def mac(number: int) -> bytes:
    return MAC[:5] + bytes([number if number != NEIGHBOUR else 0x77])


@contextlib.contextmanager
def site() -> Iterator[Site]:
    """Create two namespaces to fence, and one that is a neighbour, on a bridge of a host."""
    prefix = f"ocsf-nft-{secrets.token_hex(3)}-"
    host, *machines = names = [prefix + each for each in ("host", "first", "second", "third")]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            named(name).call(world._set_sysctls)
        seat = Seat("guarded", 0, machines[0], "port2")
        world.batch(
            host,
            (
                "link set lo up",
                f"link add {_BRIDGE} address {GATEWAY_MAC.hex(':')} type bridge mcast_snooping 0",
                f"address add {seat.gateway4}/24 dev {_BRIDGE}",
                f"address add {seat.gateway6}/64 dev {_BRIDGE}",
                f"link set {_BRIDGE} up",
            ),
        )
        for name, number in zip(machines, (SANDBOX, SECOND, NEIGHBOUR), strict=True):
            port, peer = f"port{number}", f"peer name {DEVICE} address {mac(number).hex(':')}"
            world.batch(
                host,
                (
                    f"link add {port} type veth {peer} netns {name}",
                    f"link set {port} master {_BRIDGE}",
                    f"link set {port} up",
                ),
            )
            world.batch(
                name,
                (
                    "link set lo up",
                    f"address add {seat.subnet4}.{number}/24 dev {DEVICE}",
                    f"address add {seat.subnet6}:{number}/64 dev {DEVICE}",
                    f"link set {DEVICE} up",
                    f"route add default via {seat.gateway4}",
                    f"route add ::/0 via {seat.gateway6} dev {DEVICE}",
                ),
            )
        yield Site(named(host), seat, Seat("guarded", 0, machines[1], "port3"), named(machines[2]))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextlib.contextmanager
def watch(arrivals: far.Arrivals, machines: Mapping[far.Point, Namespace]) -> Iterator[None]:
    """Observe the frames that arrive at each machine."""
    opened: list[far.Opened] = [
        (far._capture(namespace, DEVICE), name, lambda _: True)
        for name, namespace in machines.items()
    ]
    with far.reading(opened, arrivals):
        yield


def into(seat: Seat) -> dict[str, Callable[[], bytes]]:
    """Return frames of the neighbour to the sandbox, by name: each carries its seat's payload."""
    neighbour = mac(NEIGHBOUR)

    def frame(kind: int, body: bytes, to: bytes = MAC, source: bytes = neighbour) -> bytes:
        return packets.frame(to, source, kind, body)

    def udp(source: str, destination: str) -> bytes:
        packed = packets.ip6 if ":" in source else packets.ip4
        return packets.summed(packed(source, destination, 17, packets.udp(3128, seat.payload)))

    def answer(source: str, destination: str) -> bytes:
        """Return a segment as of the proxy."""
        segment = struct.pack("!HHIIBBHHH", 3128, 4000, 1, 1, 5 << 4, 24, 8192, 0, 0)
        packed = packets.ip6 if ":" in source else packets.ip4
        return packets.summed(packed(source, destination, 6, segment + seat.payload))

    def arp(operation: int, source: str) -> bytes:
        return (
            struct.pack("!HHBBH", 1, ETH_IP, 6, 4, operation)
            + seat.token
            + socket.inet_aton(source)
            + MAC
            + socket.inet_aton(seat.own4)
        )

    def neighbour_message(kind: int, target: str, source: str) -> bytes:
        body = struct.pack("!BBHI", kind, 0, 0, 0x20000000 if kind == 136 else 0)
        body += socket.inet_pton(socket.AF_INET6, target)
        body += bytes([1 if kind == 135 else 2, 1]) + seat.token
        return packets.summed(packets.ip6(source, "ff02::1", 58, body, hop_limit=255))

    group = bytes.fromhex("333300000001")
    stranger4, stranger6 = seat.stranger4, seat.stranger6
    return {
        "datagram": lambda: frame(ETH_IP, udp(stranger4, seat.own4)),
        "datagram6": lambda: frame(ETH_IP6, udp(stranger6, seat.own6)),
        "broadcast": lambda: frame(ETH_IP, udp(stranger4, "255.255.255.255"), _EVERYBODY),
        "multicast": lambda: frame(ETH_IP6, udp(stranger6, "ff02::1"), group),
        "answer from its own address": lambda: frame(ETH_IP, answer(stranger4, seat.own4)),
        "answer as the proxy": lambda: frame(ETH_IP, answer(seat.gateway4, seat.own4)),
        "answer as the proxy6": lambda: frame(ETH_IP6, answer(seat.gateway6, seat.own6)),
        "answer as the proxy to everybody": lambda: frame(
            ETH_IP, answer(seat.gateway4, seat.own4), _EVERYBODY
        ),
        # Only the bridge can tell this one from the proxy's own: by the port where it came in.
        "answer as the proxy with its link address": lambda: frame(
            ETH_IP, answer(seat.gateway4, seat.own4), source=GATEWAY_MAC
        ),
        "arp request": lambda: frame(ETH_ARP, arp(1, stranger4), _EVERYBODY),
        "arp answer": lambda: frame(ETH_ARP, arp(2, stranger4)),
        "arp answer as the proxy": lambda: frame(ETH_ARP, arp(2, seat.gateway4)),
        "solicitation": lambda: frame(ETH_IP6, neighbour_message(135, seat.own6, stranger6), group),
        "advertisement as the proxy": lambda: frame(
            ETH_IP6, neighbour_message(136, seat.gateway6, seat.gateway6), group
        ),
        "experimental ethertype": lambda: frame(0x88B5, seat.payload),
        "spanning tree": lambda: frame(40, b"\x42\x42\x03" + seat.payload),
        "tagged": lambda: frame(0x8100, struct.pack("!HH", 5, ETH_IP) + udp(stranger4, seat.own4)),
        "wake on lan": lambda: frame(0x0842, seat.payload, _EVERYBODY),
    }
