"""Ways by routes, neighbours and encapsulations of the kernel."""

from __future__ import annotations

import contextlib
import socket
import time
from functools import partial
from typing import Final

from tests.kernel import tap
from tests.kernel.ways import tools
from tests.kernel.ways.variant import DEVICE, INTERNET4, Register, Seat

VARIANTS: Final = Register("link layer and routes", "admin")
_add = VARIANTS.add


def _neighbour(seat: Seat, address: str, version: int) -> None:
    proxy = seat.gateway4 if version == 4 else seat.gateway6
    address = address.format(seat=seat)
    tools.ip(f"neigh replace {proxy} lladdr {address} dev {DEVICE} nud permanent")
    if version == 4:
        tools.whole4(tools.syn4(seat), seat.gateway4)
    else:
        tools.whole6(tools.syn6(seat), seat.gateway6)


for _name, _summary, _address, _version in (
    ("payload", "an address that is the payload", "{seat.mac_text}", 4),
    ("broadcast", "everybody's address", "ff:ff:ff:ff:ff:ff", 4),
    ("multicast", "a group's address", "01:00:5e:00:00:01", 4),
    ("payload6", "an address that is the payload, over IPv6", "{seat.mac_text}", 6),
):
    VARIANTS.append(
        f"gives the proxy's address another link address: {_summary}.",
        partial(_neighbour, address=_address, version=_version), "admin", f"neighbour: {_name}",
    )  # fmt: skip


@_add("does it with CAP_NET_ADMIN of the initial user namespace.", attacker="cap-add")
def neighbour_by_cap_add(seat: Seat) -> None:
    _neighbour(seat, "{seat.mac_text}", 4)


def _via(seat: Seat, routes: tuple[str, ...]) -> None:
    tools.ip(
        f"neigh replace {seat.stranger4} lladdr {seat.mac_text} dev {DEVICE} nud permanent",
        *(route.format(seat=seat) for route in routes),
    )
    tools.whole4(tools.syn4(seat), seat.gateway4)


_VIA: Final = f"via {{seat.stranger4}} dev {DEVICE}"
for _name, _routes in (
    ("onlink gateway", (f"route add {{seat.gateway4}}/32 {_VIA} onlink",)),
    ("rule", ("rule add to {seat.gateway4} table 7 pref 1", f"route add default {_VIA} table 7")),
    ("nexthop object", (f"nexthop add id 7 {_VIA}", "route add {seat.gateway4}/32 nhid 7")),
    ("gateway of the other family", (
        f"neigh replace fe80::77 lladdr {{seat.mac_text}} dev {DEVICE} nud permanent",
        f"route add {{seat.gateway4}}/32 via inet6 fe80::77 dev {DEVICE}",
    )),
):  # fmt: skip
    VARIANTS.append(
        f"routes packets to the proxy through a station that is the payload: {_name}.",
        partial(_via, routes=_routes), "admin", f"route: {_name}",
    )  # fmt: skip


@_add("gives the link an address that is the payload, and sends to the proxy.")
def own_link_address(seat: Seat) -> None:
    tools.ip(f"link set {DEVICE} down", f"link set {DEVICE} address {seat.mac_text}",
             f"link set {DEVICE} up")  # fmt: skip
    tools.whole4(tools.syn4(seat), seat.gateway4)
    time.sleep(0.1)


def _asked(seat: Seat, address: str, how: str) -> None:
    tools.ip(f"neigh replace {address.format(seat=seat)} dev {DEVICE} {how}")
    time.sleep(0.2)


for _name, _address, _how in (
    ("arp", "{seat.address}", "use"),
    ("managed arp", "{seat.address}", "managed"),
    ("solicitation", "{seat.address6}", "use"),
):
    VARIANTS.append(
        f"lets the kernel resolve an address that is the payload ({_name}).",
        partial(_asked, address=_address, how=_how), "admin", f"resolution: {_name}",
        "arp" in _name,
    )  # fmt: skip


@_add("lets the kernel resolve an address of the link that is the payload.")
def solicitation_of_the_link(seat: Seat) -> None:
    _asked(seat, "fe80::" + seat.token.hex(":", 2), "use")


@_add("announces an added address that is the payload (arp_notify).", is_short=True)
def gratuitous_arp(seat: Seat) -> None:
    tools.sysctl(f"ipv4/conf/{DEVICE}/arp_notify", "1")
    tools.ip(f"address del {seat.own4}/24 dev {DEVICE}",
             f"address add {seat.address}/32 dev {DEVICE}",
             f"link set {DEVICE} down", f"link set {DEVICE} up")  # fmt: skip
    time.sleep(0.2)


@_add("lets the kernel test an added address that is the payload (duplicate address detection).")
def duplicate_detection(seat: Seat) -> None:
    tools.sysctl(f"ipv6/conf/{DEVICE}/accept_dad", "1")
    tools.ip(f"address add {seat.address6}/128 dev {DEVICE}")
    time.sleep(1.2)


@_add("announces an added IPv6 address that is the payload (ndisc_notify).")
def unsolicited_advertisement(seat: Seat) -> None:
    tools.sysctl(f"ipv6/conf/{DEVICE}/ndisc_notify", "1")
    tools.ip(f"address add {seat.address6}/128 dev {DEVICE} nodad",
             f"link set {DEVICE} address 02:aa:00:00:00:12")  # fmt: skip
    time.sleep(0.3)


@_add("asks for the proxy from an added address that is the payload (arp_announce).", is_short=True)
def arp_from_the_payload(seat: Seat) -> None:
    tools.ip(
        f"address add {seat.address}/32 dev {DEVICE}",
        f"route replace {seat.gateway4}/32 dev {DEVICE} src {seat.address}",
        f"neigh flush dev {DEVICE}",
    )
    tools.whole4(tools.syn4(seat, source=seat.address), seat.gateway4)
    time.sleep(0.1)


@_add("asks for the proxy from an added IPv6 address that is the payload.")
def solicitation_from_the_payload(seat: Seat) -> None:
    tools.ip(f"address add {seat.address6}/128 dev {DEVICE} nodad")
    tap.wait_until_local(seat.address6)
    _flush()
    tools.whole6(tools.syn6(seat, source=seat.address6), seat.gateway6)
    time.sleep(0.3)


@_add("reports a group by an added address (solicited-node group).")
def permanent_group(seat: Seat) -> None:
    group = "ff05::" + seat.token.hex(":", 2)
    tools.ip(f"address add {group}/128 dev {DEVICE} autojoin")
    time.sleep(0.3)


@_add("wraps packets to the proxy in a segment routing header by a route.")
def segment_route(seat: Seat) -> None:
    tools.ip(
        f"route add {seat.gateway6}/128 encap seg6 mode encap segs {seat.address6} dev {DEVICE}"
    )
    tools.whole6(tools.syn6(seat), seat.gateway6)


@_add("inserts a segment routing header into packets to the proxy by a route.")
def segment_route_inline(seat: Seat) -> None:
    tools.ip(
        f"route add {seat.gateway6}/128 encap seg6 mode inline segs {seat.address6} dev {DEVICE}"
    )
    tools.whole6(tools.syn6(seat), seat.gateway6)


def _flush() -> None:
    """Remove the known link addresses; one may disappear by itself meanwhile."""
    with contextlib.suppress(RuntimeError):
        tools.ip(f"neigh flush dev {DEVICE}")


@_add("sends to the proxy's address as to a broadcast (a route of that type).")
def broadcast_route(seat: Seat) -> None:
    _flush()
    tools.ip(f"route add broadcast {seat.gateway4}/32 dev {DEVICE} table local")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock,
        tools.refused(),
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.sendto(tools.syn4(seat), (seat.gateway4, 0))


@_add("sends to the proxy's address as to a group (a route of that type).")
def multicast_route(seat: Seat) -> None:
    _flush()
    tools.ip(f"route add multicast {seat.gateway4}/32 dev {DEVICE} table local")
    tools.whole4(tools.syn4(seat), seat.gateway4)


@_add("sends without neighbours: the link asks for none (noarp).")
def link_without_arp(seat: Seat) -> None:
    tools.ip(f"link set {DEVICE} arp off", f"neigh flush dev {DEVICE}")
    tools.whole4(tools.syn4(seat), seat.gateway4)


@_add("lets the kernel answer for an address that is the payload, asked for by itself (proxy ARP).")
def routed_child(seat: Seat) -> None:
    tools.sysctl("ipv4/ip_forward", "1")
    with tools.child_namespace() as pid:
        tools.ip(f"link add v0 type veth peer name v1 netns {pid}", "link set v0 up",
                 "address add 10.99.0.1/24 dev v0")  # fmt: skip
        lines = (
            "link set v1 up",
            "address add 10.99.0.2/24 dev v1",
            "route add default via 10.99.0.1",
        )
        tools.inside(pid, "ip", "-batch", "-", stdin="\n".join(lines))
        tools.until_up("v0")
        tools.work_inside(pid, lambda: tools.udp(seat, INTERNET4))
