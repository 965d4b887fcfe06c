"""Ways that turn the uplink into a link to a nested namespace, so that weaker rules apply."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

from tests.kernel import packets
from tests.kernel.ways import tools
from tests.kernel.ways.variant import DEVICE, INTERNET4, Register, Seat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VARIANTS: Final = Register("turning the uplink into a nested link", "admin")
_add = VARIANTS.add
#: Time in which the service notices a change of the links, and pause between attempts.
_NOTICE_SECONDS: Final = 8.0
_PAUSE_SECONDS: Final = 0.2
_WATCHED: Final = frozenset({"guarded", "unguarded", "sidecar"})


@contextlib.contextmanager
def _false_uplink(seat: Seat) -> Iterator[int]:
    """Route the proxy over an own veth pair; let the service check the links again."""
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
        tools.ip(f"neigh replace 10.99.0.1 lladdr 02:00:00:00:00:07 dev {DEVICE}")
        yield pid


def _again(seat: Seat, attempt: Callable[[], None]) -> None:
    """Make the attempt until the service has noticed the change; once where no service watches."""
    end = time.monotonic() + (_NOTICE_SECONDS if seat.form in _WATCHED else 0)
    while True:
        attempt()
        time.sleep(_PAUSE_SECONDS)
        if time.monotonic() > end:
            return


@_add(
    "routes the proxy over an own link, and lets the answers to forged packets leave.", spoils=True
)
def answers_to_forged_packets(seat: Seat) -> None:
    with _false_uplink(seat):
        packet = tools.udp4(seat, source=INTERNET4, to="203.0.113.9")
        _again(seat, lambda: tools.whole4(packet, "203.0.113.9"))


@_add(
    "routes the proxy over an own link, and sends a segment that imitates a fence's answer.",
    spoils=True,
)
def imitated_reset(seat: Seat) -> None:
    with _false_uplink(seat):
        segment = packets.tcp(443, packets.RST) + seat.payload
        packet = packets.summed(packets.ip4(seat.own4, INTERNET4, 6, segment))
        _again(seat, lambda: tools.whole4(packet))


@_add(
    "routes the proxy over an own link, and resets a forged connection by the kernel.",
    is_short=True,
    spoils=True,
)
def reset_of_a_forged_connection(seat: Seat) -> None:
    with _false_uplink(seat):
        segment = packets.tcp(443, packets.SYN)
        packet = packets.summed(packets.ip4(seat.address, "203.0.113.9", 6, segment))
        _again(seat, lambda: tools.whole4(packet, "203.0.113.9"))


@_add(
    "routes the proxy over an own link, and asks for an address that is the payload.",
    is_short=True,
    spoils=True,
)
def arp_of_a_nested_link(seat: Seat) -> None:
    with _false_uplink(seat):
        _again(seat, lambda: tools.ip(f"neigh replace {seat.address} dev {DEVICE} use"))


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
