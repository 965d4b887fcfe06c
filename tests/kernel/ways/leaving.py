"""Ways that take the link away from the fence, or give it another identity."""

from __future__ import annotations

import os
import time
from typing import Final

from tests.kernel.packets import ETH_IP
from tests.kernel.ways import tools
from tests.kernel.ways.variant import DEVICE, Register, Seat

VARIANTS: Final = Register("leaving with the device", "admin")
_add = VARIANTS.add


def _up_inside(seat: Seat, pid: int, device: str = DEVICE) -> None:
    lines = (
        "link set lo up",
        f"address add {seat.own4}/24 dev {device}",
        f"link set {device} up",
        f"route add default via {seat.gateway4}",
    )
    tools.inside(pid, "ip", "-batch", "-", stdin="\n".join(lines))


def _frame_of_new_link(seat: Seat) -> None:
    tools.set_up(DEVICE)
    for _ in range(10):  # the kernel makes the queue of the link some time later
        time.sleep(0.1)
        tools.frame(ETH_IP, tools.udp4(seat))


@_add("moves the link into a child namespace and sends from there.", ends_link=True)
def moved(seat: Seat) -> None:
    with tools.child_namespace() as pid:
        tools.ip(f"link set {DEVICE} netns {pid}")
        _up_inside(seat, pid)
        time.sleep(0.3)
        tools.work_inside(pid, lambda: tools.tcp(seat))


@_add("does it with CAP_NET_ADMIN of the initial namespace.", attacker="cap-add", ends_link=True)
def moved_by_cap_add(seat: Seat) -> None:
    with tools.child_namespace() as pid:
        tools.ip(f"link set {DEVICE} netns {pid}")
        tools.work_inside(pid, lambda: _frame_of_new_link(seat), user=True)


@_add("moves the link away and back, so that the link has no hooks of the fence.", races=True)
def moved_and_returned(seat: Seat) -> None:
    descriptor = os.open("/proc/self/ns/net", os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    with tools.child_namespace() as pid:
        tools.ip(f"link set {DEVICE} netns {pid}")
        tools.run(
            "nsenter", f"--net=/proc/{pid}/ns/net", "ip", "link", "set", DEVICE, "netns",
            f"{os.getpid()}",
        )  # fmt: skip
        tools.ip(f"link set {DEVICE} up")
        tools.frame(ETH_IP, tools.udp4(seat))
        time.sleep(0.05)


@_add("moves the link into another user's namespace, and sends frames there.", ends_link=True)
def moved_to_another_user(seat: Seat) -> None:
    with tools.child_namespace(new_user=True) as pid:
        tools.ip(f"link set {DEVICE} netns {pid}")
        tools.work_inside(pid, lambda: _frame_of_new_link(seat), user=True)


@_add("sets the link down and up, and sends a frame meanwhile.")
def down_and_up(seat: Seat) -> None:
    for _ in range(5):
        tools.ip(f"link set {DEVICE} down", f"link set {DEVICE} up")
        tools.frame(ETH_IP, tools.udp4(seat))


@_add("moves a macvlan child with the link's own address into a child namespace.")
def macvlan_with_the_links_address(seat: Seat) -> None:
    with tools.child_namespace() as pid:
        tools.ip(
            f"link add link {DEVICE} name m0 type macvlan mode private",
            f"link set m0 netns {pid}",
        )
        _up_inside(seat, pid, "m0")
        tools.work_inside(pid, lambda: tools.tcp(seat))


@_add("leaves by the link after its group, alias and queue length have changed.")
def relabelled(seat: Seat) -> None:
    tools.ip(f"link set {DEVICE} group 7 alias lo txqueuelen 7")
    tools.frame(ETH_IP, tools.udp4(seat))
