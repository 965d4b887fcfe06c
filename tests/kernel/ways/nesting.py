"""Ways that make the uplink look as a link to a nested namespace, so that weaker rules apply."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING, Final

from tests.kernel import packets
from tests.kernel.ways import tools
from tests.kernel.ways.variant import DEVICE, INTERNET4, PROXY_PORT, Register, Seat

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIANTS: Final = Register("turning the uplink into a nested link", "admin")
_add = VARIANTS.add
#: Time in which the service notices a change of the links.
_NOTICE_SECONDS: Final = 3.0


@contextlib.contextmanager
def _false_uplink(seat: Seat) -> Iterator[int]:
    """Route the proxy over an own veth pair; let the service look at the links again."""
    tools.sysctl("ipv4/ip_forward", "1")
    with tools.child_namespace() as pid:
        tools.ip(
            f"link add v0 type veth peer name v1 netns {pid}",
            "address add 10.99.0.1/24 dev v0", "link set v0 up",
            f"route add {seat.gateway4}/32 dev v0", f"route add {seat.gateway6}/128 dev v0",
        )  # fmt: skip
        lines = (
            "link set lo up", "address add 10.99.0.2/24 dev v1", "link set v1 up",
            "route add default via 10.99.0.1",
        )  # fmt: skip
        tools.inside(pid, "ip", "-batch", "-", stdin="\n".join(lines))
        tools.until_up("v0")
        tools.ip("link add v2 type veth peer name v3", "link set v2 up", "link set v3 up")
        time.sleep(_NOTICE_SECONDS)
        tools.ip(f"neigh replace 10.99.0.1 lladdr 02:00:00:00:00:07 dev {DEVICE}")
        yield pid


@_add("routes the proxy over an own link, and lets the answers to forged packets leave.")
def answers_to_forged_packets(seat: Seat) -> None:
    with _false_uplink(seat):
        packet = tools.udp4(seat, source=INTERNET4, to="203.0.113.9")
        tools.whole4(packet, "203.0.113.9")


@_add("routes the proxy over an own link, and sends a segment that looks as a fence's answer.")
def imitated_reset(seat: Seat) -> None:
    with _false_uplink(seat):
        segment = packets.tcp(443, packets.RST) + seat.payload
        tools.whole4(packets.summed(packets.ip4(seat.own4, INTERNET4, 6, segment)))


@_add("routes the proxy over an own link, and sends an error that looks as a fence's answer.")
def imitated_error(seat: Seat) -> None:
    with _false_uplink(seat):
        body = b"\x03\x0d\0\0" + bytes(4) + tools.udp4(seat)
        tools.whole4(packets.summed(packets.ip4(seat.own4, INTERNET4, 1, body)))


@_add("routes the proxy over an own link, and resets a forged connection by the kernel.", is_short=True)
def reset_of_a_forged_connection(seat: Seat) -> None:
    with _false_uplink(seat):
        segment = packets.tcp(443, packets.SYN)
        packet = packets.summed(packets.ip4(seat.address, "203.0.113.9", 6, segment))
        tools.whole4(packet, "203.0.113.9")


@_add("routes the proxy over an own link, and asks for an address that is the payload.", is_short=True)
def arp_of_a_nested_link(seat: Seat) -> None:
    with _false_uplink(seat):
        tools.ip(f"neigh replace {seat.address} dev {DEVICE} use")
        time.sleep(0.2)


@_add("gives a link of its own the proxy's address, and connects there through the old link.")
def false_proxy(seat: Seat) -> None:
    with _false_uplink(seat) as pid:
        tools.inside(pid, "ip", "address", "add", f"{seat.gateway4}/32", "dev", "v1")
        with socket.socket() as sock, tools.refused():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, DEVICE.encode())
            sock.settimeout(0.5)
            sock.connect((seat.gateway4, PROXY_PORT))
            sock.sendall(seat.payload)
        tools.whole4(tools.syn4(seat, to=INTERNET4))


@_add("forwards a child namespace's packets to the proxy's port.")
def forwarded_to_the_proxy(seat: Seat) -> None:
    tools.sysctl("ipv4/ip_forward", "1")
    with tools.child_namespace() as pid:
        tools.ip(
            f"link add v0 type veth peer name v1 netns {pid}",
            "address add 10.99.0.1/24 dev v0", "link set v0 up",
        )  # fmt: skip
        lines = (
            "address add 10.99.0.2/24 dev v1", "link set v1 up", "route add default via 10.99.0.1",
        )  # fmt: skip
        tools.inside(pid, "ip", "-batch", "-", stdin="\n".join(lines))
        tools.until_up("v0")
        packet = tools.syn4(seat, source="10.99.0.2")
        tools.work_inside(pid, lambda: tools.whole4(packet, seat.gateway4))


@_add("forwards a child namespace's packets to the proxy with its own address (masquerade).")
def masqueraded_to_the_internet(seat: Seat) -> None:
    tools.nft(
        f"table ip mine {{ chain c {{ type nat hook postrouting priority 100; oifname {DEVICE} "
        "masquerade; }; }"
    )
    tools.sysctl("ipv4/ip_forward", "1")
    with tools.child_namespace() as pid:
        tools.ip(
            f"link add v0 type veth peer name v1 netns {pid}",
            "address add 10.99.0.1/24 dev v0", "link set v0 up",
        )  # fmt: skip
        lines = (
            "address add 10.99.0.2/24 dev v1", "link set v1 up", "route add default via 10.99.0.1",
        )  # fmt: skip
        tools.inside(pid, "ip", "-batch", "-", stdin="\n".join(lines))
        tools.until_up("v0")
        tools.work_inside(pid, lambda: tools.udp(seat))
