"""Ways that change the settings of the namespace, and then use what they weaken."""

from __future__ import annotations

import socket
import struct
import time
from functools import partial
from typing import Final

from tests.kernel import packets
from tests.kernel.packets import ETH_IP
from tests.kernel.ways import tools
from tests.kernel.ways.variant import DEVICE, INTERNET4, PROXY_PORT, Register, Seat

VARIANTS: Final = Register("settings of the namespace", "admin")
_add = VARIANTS.add


@_add("lowers the MTU, so that packets to the proxy become fragments.")
def small_mtu(seat: Seat) -> None:
    tools.ip(f"link set {DEVICE} mtu 1280")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock,
        tools.refused(),
    ):
        sock.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
        segment = packets.tcp(PROXY_PORT, packets.SYN) + seat.payload
        sock.sendto(packets.ip4(seat.own4, seat.gateway4, 253, segment), (seat.gateway4, 0))


def _with_setting(seat: Seat, key: str, value: str) -> None:
    tools.sysctl(key, value)
    body = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + seat.payload
    packet = packets.summed(packets.ip4(INTERNET4, seat.own4, 1, body))
    tools.frame(ETH_IP, packet, to=bytes(6), source=bytes(6), device="lo")
    time.sleep(0.05)


for _key, _value in (
    ("ipv4/conf/all/accept_local", "1"),
    ("ipv4/conf/all/route_localnet", "1"),
    ("ipv4/conf/lo/forwarding", "1"),
    ("ipv4/conf/all/proxy_arp", "1"),
    ("ipv4/icmp_echo_ignore_all", "0"),
    ("ipv4/ip_nonlocal_bind", "1"),
    ("ipv4/ip_early_demux", "0"),
    ("ipv4/fwmark_reflect", "1"),
    ("netfilter/nf_hooks_lwtunnel", "1"),
):
    VARIANTS.append(
        f"sets {_key} to {_value}, and lets the kernel answer a forged packet on loopback.",
        partial(_with_setting, key=_key, value=_value), "admin", f"sysctl {_key.split('/')[-1]}",
    )  # fmt: skip


@_add("forwards a packet of loopback to the internet.")
def forwarded_from_loopback(seat: Seat) -> None:
    tools.sysctl("ipv4/ip_forward", "1")
    tools.sysctl("ipv4/conf/all/accept_local", "1")
    packet = tools.udp4(seat, source="192.0.2.7")
    tools.frame(ETH_IP, packet, to=bytes(6), source=bytes(6), device="lo")
    time.sleep(0.05)


@_add("turns IPv6 off and on, which sends the kernel's own messages with an added address.")
def ipv6_off_and_on(seat: Seat) -> None:
    tools.sysctl(f"ipv6/conf/{DEVICE}/disable_ipv6", "1")
    tools.sysctl(f"ipv6/conf/{DEVICE}/accept_dad", "1")
    tools.sysctl(f"ipv6/conf/{DEVICE}/disable_ipv6", "0")
    tools.ip(f"address add fe80::{seat.token.hex(':', 2)}/64 dev {DEVICE}")
    time.sleep(1.2)


@_add("sends to the internet with a mark and a rule of its own.")
def mark_and_rule(seat: Seat) -> None:
    tools.ip("rule add fwmark 7 table 7", f"route add default via {seat.gateway4} table 7")
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, 36, 7)
    tools.udp(seat, sock=sock)


@_add("joins a group by name of a network with a multicast route.")
def multicast_by_route(seat: Seat) -> None:
    tools.ip(f"route add 239.0.0.0/8 dev {DEVICE}")
    tools.udp(seat, "239.1.1.1")


@_add("changes the priority of the proxy's connection to a VLAN tag by the queue of the link.")
def tagged_link(seat: Seat) -> None:
    tools.ip(f"link set {DEVICE} txqueuelen 1000 numtxqueues 1")
    tools.frame(0x8100, struct.pack("!HH", 7, ETH_IP) + tools.syn4(seat))
