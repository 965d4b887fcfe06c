"""Removal of what an attack has changed in its seat, so that the next one begins as the first."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

from tests.kernel.ways.variant import DEVICE, GATEWAY_MAC, MAC

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.kernel.ways.variant import Seat

_RULES: Final = "\n".join(
    f"destroy table {family} mine" for family in ("inet", "ip", "ip6", "netdev")
)
_QUEUES: Final = (
    "qdisc del dev lo clsact", "qdisc del dev lo ingress", "qdisc del dev lo root",
    f"qdisc del dev {DEVICE} clsact", f"qdisc del dev {DEVICE} root",
)  # fmt: skip
_LINKS: Final = ("br7", "v0", "v2", "x0", "m0", "t0", "ifb7")
_SETTINGS: Final = {
    "net.ipv4.ip_forward": "0",
    "net.ipv4.conf.all.accept_local": "0",
    "net.ipv4.conf.all.route_localnet": "0",
    "net.ipv4.conf.all.proxy_arp": "0",
    "net.ipv4.ip_nonlocal_bind": "0",
    f"net.ipv4.conf.{DEVICE}.arp_notify": "0",
    f"net.ipv6.conf.{DEVICE}.accept_dad": "0",
    f"net.ipv6.conf.{DEVICE}.ndisc_notify": "0",
}


def tidy(seat: Seat) -> None:
    """Undo the changes of an attack in the calling process's namespace."""
    _run("nft", "-f", "-", stdin=(_RULES,))
    _run("tc", "-force", "-batch", "-", stdin=_QUEUES)
    settings = (f"{key}={value}" for key, value in _SETTINGS.items())
    _run("sysctl", "-q", *settings)
    _run("ip", "-force", "-batch", "-", stdin=_lines(seat))


def _lines(seat: Seat) -> Iterable[str]:
    yield "link set other0 down"
    yield f"link set other0 name {DEVICE}"
    yield from (f"link del {each}" for each in _LINKS)
    yield "rule del pref 1"
    yield "rule del fwmark 7"
    yield from (f"route flush table {table}" for table in (7, 9))
    for device in (DEVICE, "lo"):
        yield f"address flush dev {device} to 100.64.0.0/10"
        yield f"address flush dev {device} to 2001:db8::/32"
    yield f"address del {seat.stranger4}/24 dev {DEVICE}"
    yield f"route del {seat.gateway4}/32"
    yield f"route del local {seat.gateway4}/32 table local"
    yield f"route del broadcast {seat.gateway4}/32 table local"
    yield f"route del multicast {seat.gateway4}/32 table local"
    yield f"address del {seat.gateway4}/32 dev lo"
    yield f"route del {seat.gateway6}/128"
    yield "route del local 100.64.0.0/10 table local"
    yield "route del local 2001:db8::/32 table local"
    yield "route del 239.0.0.0/8"
    yield "nexthop flush"
    yield f"neigh flush dev {DEVICE} nud permanent"
    yield f"neigh flush dev {DEVICE}"
    yield f"link set {DEVICE} address {MAC.hex(':')} mtu 1500 arp on"
    yield f"link set {DEVICE} up"
    yield f"address replace {seat.own4}/24 dev {DEVICE}"
    yield f"address replace {seat.own6}/64 dev {DEVICE}"
    yield f"route replace default via {seat.gateway4}"
    yield f"route replace ::/0 via {seat.gateway6} dev {DEVICE}"
    yield from neighbours(seat)


def neighbours(seat: Seat) -> Iterable[str]:
    """Yield commands that make the proxy's link address known, so that no packet waits for it."""
    for address in (seat.gateway4, seat.gateway6):
        yield f"neigh replace {address} lladdr {GATEWAY_MAC.hex(':')} dev {DEVICE} nud stale"


def _run(*command: str, stdin: Iterable[str] = ()) -> None:
    # What does not exist can't be removed: such errors are expected.
    subprocess.run(command, input="\n".join(stdin), text=True, capture_output=True, check=False)
