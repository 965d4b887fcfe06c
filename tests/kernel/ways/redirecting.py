"""Ways that redirect a frame past the hooks: tc, and nftables' fwd and dup."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.kernel.packets import ETH_IP
from tests.kernel.ways import tools
from tests.kernel.ways.variant import DEVICE, INTERNET4, Register, Seat

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIANTS: Final = Register("redirecting past the hook", "admin")
_add = VARIANTS.add


def _mirred(where: str, verb: str) -> str:
    device, side = where.split()
    return (
        f"filter add dev {device} {side} protocol all prio 1 u32 match u8 0 0 "
        f"action mirred egress {verb} dev {DEVICE}"
    )


def _send_on_loopback(seat: Seat) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, tools.refused():
        sock.sendto(seat.payload, ("127.0.0.9", 9))


def _by_loopback(seat: Seat, side: str, verb: str) -> None:
    tools.tc("qdisc add dev lo clsact", _mirred(f"lo {side}", verb))
    _send_on_loopback(seat)


for _side, _verb in (("egress", "redirect"), ("ingress", "mirror")):
    VARIANTS.append(
        f"{_verb}s frames of loopback ({_side}) to the link by tc.",
        partial(_by_loopback, side=_side, verb=_verb), "admin", f"tc lo {_side} {_verb}",
    )  # fmt: skip


@_add(
    "redirects frames of loopback with CAP_NET_ADMIN of the initial namespace.", attacker="cap-add"
)
def tc_of_cap_add(seat: Seat) -> None:
    _by_loopback(seat, "egress", "redirect")


@_add("redirects a frame to the internet that a packet socket sends on loopback.")
def tc_frame_on_loopback(seat: Seat) -> None:
    tools.tc("qdisc add dev lo clsact", _mirred("lo egress", "redirect"))
    tools.frame(ETH_IP, tools.udp4(seat), device="lo")


@_add("redirects by the older ingress queue of loopback.")
def tc_ingress_queue(seat: Seat) -> None:
    tools.tc(
        "qdisc add dev lo ingress",
        f"filter add dev lo parent ffff: protocol all prio 1 u32 match u8 0 0 action mirred egress "
        f"redirect dev {DEVICE}",
    )
    _send_on_loopback(seat)


@_add("redirects by a filter of a class queue on loopback (htb).")
def tc_class_queue(seat: Seat) -> None:
    tools.tc(
        "qdisc add dev lo root handle 1: htb default 1",
        "filter add dev lo parent 1: protocol all prio 1 u32 match u8 0 0 action mirred egress "
        f"redirect dev {DEVICE}",
    )
    _send_on_loopback(seat)


@_add("redirects by way of an intermediate device (ifb).")
def tc_intermediate_device(seat: Seat) -> None:
    tools.ip("link add ifb7 type ifb", "link set ifb7 up")
    tools.tc(
        "qdisc add dev lo clsact",
        "filter add dev lo egress protocol all prio 1 u32 match u8 0 0 action mirred egress "
        "redirect dev ifb7",
        "qdisc add dev ifb7 clsact",
        _mirred("ifb7 egress", "redirect"),
    )
    _send_on_loopback(seat)


@contextlib.contextmanager
def _pair() -> Iterator[int]:
    """Make a veth pair, whose other end is in a child namespace."""
    with tools.child_namespace() as pid:
        tools.ip(f"link add v0 type veth peer name v1 netns {pid}", "link set v0 up")
        tools.inside(pid, "ip", "link", "set", "v1", "up")
        tools.until_up("v0")
        yield pid


def _from_child(pid: int, seat: Seat) -> None:
    tools.work_inside(pid, lambda: tools.frame(ETH_IP, tools.udp4(seat), device="v1"))


@_add("redirects frames of a child namespace by tc at the veth pair.")
def tc_veth_child(seat: Seat) -> None:
    with _pair() as pid:
        tools.tc("qdisc add dev v0 clsact", _mirred("v0 ingress", "redirect"))
        _from_child(pid, seat)


@_add("forwards frames of a child namespace by nftables (fwd).")
def nft_fwd_veth_child(seat: Seat) -> None:
    with _pair() as pid:
        tools.nft(
            "table netdev mine {\nchain c {\ntype filter hook ingress device v0 priority 0;\n"
            f"fwd to {DEVICE}\n}}\n}}"
        )
        _from_child(pid, seat)


@_add("duplicates frames of a child namespace by nftables (dup).")
def nft_dup_veth_child(seat: Seat) -> None:
    with _pair() as pid:
        tools.nft(
            "table netdev mine {\nchain c {\ntype filter hook ingress device v0 priority 0;\n"
            f"dup to {DEVICE}\n}}\n}}"
        )
        _from_child(pid, seat)


def _nft_loopback(seat: Seat, hook: str, verb: str) -> None:
    tools.nft(
        f"table netdev mine {{\nchain c {{\ntype filter hook {hook} device lo priority 0;\n"
        f"{verb} to {DEVICE}\n}}\n}}"
    )
    _send_on_loopback(seat)


for _hook in ("ingress", "egress"):
    for _verb in ("fwd", "dup"):
        VARIANTS.append(
            f"{'forwards' if _verb == 'fwd' else 'duplicates'} frames of loopback ({_hook}) to the "
            "link by nftables.",
            partial(_nft_loopback, hook=_hook, verb=_verb), "admin", f"nft {_verb} lo {_hook}",
        )  # fmt: skip


@_add("forwards packets of loopback to a neighbour by nftables (fwd ip to).")
def nft_fwd_neighbour(seat: Seat) -> None:
    tools.nft(
        "table netdev mine {\nchain c {\ntype filter hook ingress device lo priority 0;\n"
        f"ip daddr 127.0.0.9 fwd ip to {seat.gateway4} device {DEVICE}\n}}\n}}"
    )
    tools.ip(f"neigh replace {seat.gateway4} lladdr 02:aa:00:00:00:01 dev {DEVICE}")
    _send_on_loopback(seat)


@_add("duplicates refused packets to a gateway before the verdict (dup of ip).")
def nft_dup_of_ip(seat: Seat) -> None:
    tools.nft(
        "table ip mine { chain c { type filter hook output priority -300; "
        f"udp dport 53 dup to {seat.gateway4} device {DEVICE}; }}; }}"
    )
    tools.udp(seat)


@_add("duplicates packets that arrive on loopback to a gateway.")
def nft_dup_in_prerouting(seat: Seat) -> None:
    tools.nft(
        "table ip mine { chain c { type filter hook prerouting priority -300; "
        f"udp dport 9 dup to {seat.gateway4} device {DEVICE}; }}; }}"
    )
    tools.udp(seat, seat.own4, 9)


@_add("duplicates packets to the proxy on the link's egress, to everybody's link address.")
def nft_dup_on_egress(seat: Seat) -> None:
    tools.nft(
        f"table netdev mine {{\nchain c {{\ntype filter hook egress device {DEVICE} priority -10;\n"
        f"ip daddr {seat.gateway4} ether daddr set {seat.mac_text} dup to {DEVICE}\n}}\n}}"
    )
    tools.whole4(tools.syn4(seat), seat.gateway4)


@_add("writes frames to a TAP device, and redirects them by tc.")
def tc_tap(seat: Seat) -> None:
    descriptor = tools.tap("t0")
    tools.ip("link set t0 up")
    tools.tc("qdisc add dev t0 clsact", _mirred("t0 ingress", "redirect"))
    os.write(descriptor, tools.own_frame(ETH_IP, tools.udp4(seat)))


@_add(
    "writes frames to a TAP device with CAP_NET_ADMIN of the initial namespace.", attacker="cap-add"
)
def nft_fwd_tap(seat: Seat) -> None:
    descriptor = tools.tap("t0")
    tools.ip("link set t0 up")
    tools.nft(
        "table netdev mine {\nchain c {\ntype filter hook ingress device t0 priority 0;\n"
        f"fwd to {DEVICE}\n}}\n}}"
    )
    os.write(descriptor, tools.own_frame(ETH_IP, tools.udp4(seat)))


@_add("writes frames to a TAP device that is bridged with the link.")
def bridged_tap(seat: Seat) -> None:
    descriptor = tools.tap("t0")
    tools.ip(
        "link add br7 type bridge", "link set t0 master br7", f"link set {DEVICE} master br7",
        "link set t0 up", "link set br7 up",
    )  # fmt: skip
    time.sleep(0.05)
    os.write(descriptor, tools.own_frame(ETH_IP, tools.udp4(seat)))


@_add("bridges the link with a child namespace, and sends packets to the proxy as a neighbour.")
def bridged_child(seat: Seat) -> None:
    with _pair() as pid:
        tools.ip(
            "link add br7 type bridge", "link set v0 master br7", f"link set {DEVICE} master br7",
            "link set br7 up",
        )  # fmt: skip
        time.sleep(0.05)
        body = tools.syn4(seat, to=INTERNET4)
        tools.work_inside(pid, lambda: tools.frame(ETH_IP, body, device="v1"))


@_add("bridges the link with a child namespace, and sends ARP from there with data.")
def bridged_arp(seat: Seat) -> None:
    with _pair() as pid:
        tools.ip(
            "link add br7 type bridge", "link set v0 master br7", f"link set {DEVICE} master br7",
            "link set br7 up",
        )  # fmt: skip
        time.sleep(0.05)
        body = struct.pack("!HHBBH", 1, ETH_IP, 6, 4, 1) + seat.token
        body += socket.inet_aton(seat.own4) + seat.token + socket.inet_aton(seat.gateway4)
        tools.work_inside(pid, lambda: tools.frame(0x0806, body, device="v1"))


@_add("bridges the link with a child namespace, and sends packets to the proxy with data.")
def bridged_to_the_proxy(seat: Seat) -> None:
    with _pair() as pid:
        tools.ip(
            "link add br7 type bridge", "link set v0 master br7", f"link set {DEVICE} master br7",
            "link set br7 up",
        )  # fmt: skip
        time.sleep(0.05)
        tools.work_inside(
            pid, lambda: tools.frame(ETH_IP, tools.syn4(seat), device="v1", to=seat.token)
        )


@_add("sends ARP with data from a macvlan child of the link, in a child namespace.")
def macvlan_arp(seat: Seat) -> None:
    with tools.child_namespace() as pid:
        tools.ip(f"link add link {DEVICE} name m0 type macvlan mode bridge",
                 f"link set m0 netns {pid}")  # fmt: skip
        tools.inside(pid, "ip", "link", "set", "m0", "up")
        body = struct.pack("!HHBBH", 1, ETH_IP, 6, 4, 1) + seat.token
        body += socket.inet_aton(seat.own4) + seat.token + socket.inet_aton(seat.gateway4)
        tools.work_inside(pid, lambda: tools.frame(0x0806, body, device="m0"))


@_add("takes the link over by a macvlan child (passthru) in a child namespace.")
def macvlan_passthru(seat: Seat) -> None:
    with tools.child_namespace() as pid:
        tools.ip(f"link add link {DEVICE} name m0 type macvlan mode passthru",
                 f"link set m0 netns {pid}")  # fmt: skip
        tools.inside(pid, "ip", "link", "set", "m0", "up")
        tools.work_inside(pid, lambda: tools.frame(ETH_IP, tools.udp4(seat), device="m0"))


@_add("redirects frames of a macvlan child by tc.")
def tc_macvlan(seat: Seat) -> None:
    tools.ip(f"link add link {DEVICE} name m0 type macvlan mode bridge", "link set m0 up")
    tools.tc("qdisc add dev lo clsact", _mirred("lo egress", "redirect").replace(DEVICE, "m0"))
    _send_on_loopback(seat)


@_add("encapsulates frames in VXLAN to the internet.")
def vxlan(seat: Seat) -> None:
    tools.ip(
        f"link add x0 type vxlan id 7 remote {INTERNET4} dstport 4789 dev {DEVICE}",
        "link set x0 up",
    )
    tools.frame(ETH_IP, tools.udp4(seat), device="x0")


@_add("encapsulates frames in VXLAN to the proxy's port.")
def vxlan_to_the_proxy(seat: Seat) -> None:
    tools.ip(
        f"link add x0 type vxlan id 7 remote {seat.gateway4} dstport 3128 dev {DEVICE}",
        "link set x0 up",
    )
    tools.frame(ETH_IP, tools.udp4(seat), device="x0")
