"""Ways that forge the source of packets to the proxy, so that its answers go elsewhere."""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.kernel import tap
from tests.kernel.ways import tools
from tests.kernel.ways.variant import DEVICE, PROXY_PORT, Register, Seat

VARIANTS: Final = Register("forged source", "admin")
_add = VARIANTS.add


def _translated(seat: Seat, chain: str, statement: str, version: int) -> None:
    tools.chain(chain, f"tcp dport {PROXY_PORT} {statement.format(seat=seat)}")
    tools.syn_to_proxy(seat, version)


for _name, _summary, _chain, _statement, _version in (
    ("source nat", "translates its source to the payload",
     "ip nat hook postrouting priority 100", "snat to {seat.address}", 4),
    ("source nat6", "translates its IPv6 source to the payload",
     "ip6 nat hook postrouting priority 100", "snat to {seat.address6}", 6),
    ("stateless source", "rewrites its source in a postrouting chain",
     "ip filter hook postrouting priority 300", "ip saddr set {seat.address}", 4),
):  # fmt: skip
    VARIANTS.append(
        f"{_summary}, on a connection to the proxy.",
        partial(_translated, chain=_chain, statement=_statement, version=_version), "admin", _name,
        is_short=_version == 4,
    )  # fmt: skip


@_add("adds an address that is the payload, and connects from it.", is_short=True)
def added_address(seat: Seat) -> None:
    tools.ip(f"address add {seat.address}/32 dev {DEVICE}")
    tools.whole4(tools.syn4(seat, source=seat.address), seat.gateway4)


@_add("adds an IPv6 address that is the payload, and connects from it.")
def added_address6(seat: Seat) -> None:
    tools.ip(f"address add {seat.address6}/128 dev {DEVICE} nodad")
    tap.wait_until_local(seat.address6)
    tools.whole6(tools.syn6(seat, source=seat.address6), seat.gateway6)


@_add(
    "does it with CAP_NET_ADMIN of the initial user namespace.", attacker="cap-add", is_short=True
)
def address_added_by_cap_add(seat: Seat) -> None:
    tools.ip(f"address add {seat.address}/32 dev {DEVICE}")
    tools.whole4(tools.syn4(seat, source=seat.address), seat.gateway4)


@_add("makes a network local by a route, and connects from an address in it.", is_short=True)
def local_route(seat: Seat) -> None:
    tools.ip("route add local 100.64.0.0/10 dev lo")
    tools.whole4(tools.syn4(seat, source=seat.address), seat.gateway4)


@_add("makes a network local in another table by a rule, and connects from it.", is_short=True)
def local_route_by_a_rule(seat: Seat) -> None:
    tools.ip(
        "route add local 100.64.0.0/10 dev lo table 9", "rule add to 100.64.0.0/10 table 9 pref 1"
    )
    tools.whole4(tools.syn4(seat, source=seat.address), seat.gateway4)


@_add("takes the address of a neighbour, and sends to the proxy from it.")
def neighbours_address(seat: Seat) -> None:
    tools.ip(f"address add {seat.stranger4}/24 dev {DEVICE}")
    tools.whole4(tools.syn4(seat, source=seat.stranger4), seat.gateway4)


@_add("takes the proxy's address itself, and sends to the proxy from it.")
def proxys_address(seat: Seat) -> None:
    tools.ip(
        f"address add {seat.gateway4}/32 dev lo", f"route del local {seat.gateway4} table local",
        f"neigh replace {seat.gateway4} lladdr 02:aa:00:00:00:01 dev {DEVICE}",
    )  # fmt: skip
    tools.whole4(tools.syn4(seat, source=seat.gateway4), seat.gateway4)
