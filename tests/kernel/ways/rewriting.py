"""Ways that rewrite a packet after the fence's verdict, or before it."""

from __future__ import annotations

import socket
from functools import partial
from typing import Final

from tests.kernel.ways import tools
from tests.kernel.ways.variant import DEVICE, INTERNET4, INTERNET6, PROXY_PORT, Register, Seat

VARIANTS: Final = Register("rewriting after the verdict", "admin")
_add = VARIANTS.add


def _egress(statement: str, priority: str = "100", table: str = "mine") -> None:
    """Add a chain of a later priority on the link's way out."""
    tools.nft(
        f"table netdev {table} {{\nchain c {{\ntype filter hook egress device {DEVICE} priority "
        f"{priority}; policy accept;\n{statement}\n}}\n}}"
    )


def _rewrites(seat: Seat, statement: str, priority: str, version: int) -> None:
    _egress(statement.format(seat=seat), priority)
    tools.syn_to_proxy(seat, version)


_TO_INTERNET: Final = f"ip daddr set {INTERNET4}"
for _name, _summary, _statement, _priority, _version in (
    ("destination", "rewrites the destination", _TO_INTERNET, "100", 4),
    ("destination6", "rewrites the IPv6 destination",
     f"tcp dport 3128 ip6 daddr set {INTERNET6}", "100", 6),
    ("destination at the last priority", "does it at the last priority", _TO_INTERNET,
     "2147483647", 4),
    ("destination at an equal priority", "does it at the fence's priority", _TO_INTERNET, "0", 4),
    ("source", "rewrites the source to the payload", "ip saddr set {seat.address}", "100", 4),
    ("ethertype", "rewrites the ethertype", "ip protocol 6 ether type set 0x88b5", "100", 4),
    ("link destination", "rewrites the destination link address to the payload",
     "ether daddr set {seat.mac_text}", "100", 4),
    ("link source", "rewrites the source link address to the payload",
     "ether saddr set {seat.mac_text}", "100", 4),
    ("vlan", "turns the packet into a tagged frame", "ip protocol 6 ether type set 0x8100",
     "100", 4),
    ("next header", "turns the packet into a fragment of IPv6",
     "tcp dport 3128 ip6 nexthdr set 44", "100", 6),
):  # fmt: skip
    VARIANTS.append(
        f"{_summary} of a packet to the proxy in an egress chain.",
        partial(_rewrites, statement=_statement, priority=_priority, version=_version),
        "admin", f"egress chain: {_name}", _name == "source",
    )  # fmt: skip


@_add("does it with CAP_NET_ADMIN of the initial user namespace.", attacker="cap-add")
def egress_chain_of_cap_add(seat: Seat) -> None:
    _rewrites(seat, _TO_INTERNET, "100", 4)


@_add("rewrites both ways, so that a whole TCP connection reaches another host.")
def rewritten_connection(seat: Seat) -> None:
    _egress(f"ip daddr {seat.gateway4} ip daddr set {INTERNET4}")
    tools.nft(
        f"table netdev mine {{\nchain back {{\ntype filter hook ingress device {DEVICE} priority "
        f"-600; policy accept;\nip saddr {INTERNET4} ip saddr set {seat.gateway4}\n}}\n}}"
    )
    tools.to_proxy(seat)


@_add("rewrites by bytes of the frame instead of by names of fields.")
def rewriting_by_offset(seat: Seat) -> None:
    number = int.from_bytes(socket.inet_aton(INTERNET4), "big")
    _egress(f"@nh,128,32 set {number:#x}")
    tools.whole4(tools.syn4(seat), seat.gateway4)


def _inet(seat: Seat, chain: str, statement: str, version: int) -> None:
    tools.chain(chain, statement.format(seat=seat))
    tools.syn_to_proxy(seat, version)


_LATE: Final = "inet filter hook postrouting priority 300"
for _name, _summary, _chain, _statement, _version in (
    ("postrouting", "rewrites the destination in a postrouting chain", _LATE,
     f"tcp dport {PROXY_PORT} ip daddr set {INTERNET4}", 4),
    ("postrouting6", "rewrites the IPv6 destination in a postrouting chain", _LATE,
     f"tcp dport {PROXY_PORT} ip6 daddr set {INTERNET6}", 6),
    ("late output", "rewrites the destination in an output chain after the fence's",
     "ip filter hook output priority 500", f"tcp dport {PROXY_PORT} ip daddr set {INTERNET4}", 4),
    ("late route", "reroutes after it has rewritten (a route chain)",
     "ip route hook output priority 500",
     f"tcp dport {PROXY_PORT} ip daddr set {INTERNET4} meta mark set 7", 4),
    ("destination nat", "translates the destination before the fence's verdict",
     "ip nat hook output priority -100", f"tcp dport {PROXY_PORT} dnat to {INTERNET4}:443", 4),
    ("port", "rewrites the port in a postrouting chain", _LATE,
     f"tcp dport {PROXY_PORT} tcp dport set 443", 4),
):  # fmt: skip
    VARIANTS.append(
        f"{_summary}, for a packet to the proxy.",
        partial(_inet, chain=_chain, statement=_statement, version=_version), "admin",
        f"inet chain: {_name}",
    )  # fmt: skip


@_add("disguises a packet as one to the proxy, and undoes that on egress.")
def disguise(seat: Seat) -> None:
    tools.chain(
        "ip filter hook output priority -10",
        f"ip daddr {INTERNET4} udp dport 53 ip protocol set 6 ip daddr set {seat.gateway4} "
        f"th dport set {PROXY_PORT}",
    )
    _egress(f"ip protocol set 17 ip daddr set {INTERNET4} th dport set 53")
    tools.udp(seat)
