"""Ways that attack the fence's own tables and its log."""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.kernel.packets import ETH_IP
from tests.kernel.ways import tools
from tests.kernel.ways.variant import INTERNET4, Register, Seat

if TYPE_CHECKING:
    from collections.abc import Callable

VARIANTS: Final = Register("the fence itself", "admin")
_add = VARIANTS.add


def _quiet(rules: str) -> None:
    """Load rules; a namespace without the fence refuses them."""
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, capture_output=True, check=False)


def _changed(seat: Seat, commands: tuple[str, ...]) -> None:
    _quiet("\n".join(commands))
    tools.udp(seat)
    tools.frame(ETH_IP, tools.udp4(seat))


_DELETED: Final = ("delete table inet ocsf_nft", "delete table netdev ocsf_nft")
for _name, _summary, _commands in (
    ("deleted", "deletes the fence", _DELETED),
    ("flushed ruleset", "flushes the ruleset", ("flush ruleset",)),
    ("accepting rule", "inserts rules that accept", (
        "insert rule inet ocsf_nft output accept", "insert rule netdev ocsf_nft egress accept",
    )),
    ("accepting policy", "changes the policy of the chains", (
        "add chain inet ocsf_nft output { policy accept; }",
        "flush chain inet ocsf_nft refuse_egress",
        "add chain netdev ocsf_nft egress { policy accept; }",
        "flush chain netdev ocsf_nft refuse_link",
    )),
    ("allowed element", "adds a destination to the allowed ones", (
        f"add element inet ocsf_nft allowed4 {{ {INTERNET4} . udp . 53 }}",
        f"add element netdev ocsf_nft allowed4 {{ {INTERNET4} . udp . 53 }}",
    )),
):  # fmt: skip
    VARIANTS.append(
        f"{_summary}, and sends.", partial(_changed, commands=_commands), "admin",
        f"tables {_name}", races=True,
    )  # fmt: skip


@_add(
    "deletes the fence with CAP_NET_ADMIN of the initial user namespace.",
    attacker="cap-add",
    races=True,
)
def tables_deleted_by_cap_add(seat: Seat) -> None:
    _changed(seat, _DELETED)


@_add("removes the fence, sends, and loads what it has saved, as fast as it can.", races=True)
def removed_and_loaded_again(seat: Seat) -> None:
    saved = subprocess.run(
        ["nft", "-s", "list", "ruleset"], capture_output=True, text=True, check=False
    ).stdout
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, tools.refused():
        sock.connect((INTERNET4, 53))
        _quiet("flush ruleset")
        sock.send(seat.payload)
    _quiet(saved)


@_add("removes the fence again and again, until the service stops to restore it.", races=True)
def removed_again_and_again(seat: Seat) -> None:
    for _ in range(12):
        _quiet("flush ruleset")
        tools.udp(seat)


@_add("resets the counters of the fence, and sends.")
def counters_reset(seat: Seat) -> None:
    subprocess.run(["nft", "reset", "counters"], capture_output=True, check=False)
    subprocess.run(["nft", "reset", "rules"], capture_output=True, check=False)
    tools.udp(seat)


@_add("takes the log group of the fence, and sends.")
def log_group_taken(seat: Seat) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
        body = struct.pack("=BBH", 0, 0, socket.htons(4001)) + struct.pack("=HHB3x", 5, 1, 1)
        sock.send(struct.pack("=IHHII", 16 + len(body), 0x401, 5, 1, 0) + body)
        sock.recv(4096)
        tools.udp(seat)
        time.sleep(0.1)


@_add("accepts all packets in chains of its own, before the fence.")
def accepting_chains(seat: Seat) -> None:
    tools.nft(
        "table inet mine { chain c { type filter hook output priority -400; policy accept; accept; "
        "}; }\ntable netdev mine { chain c { type filter hook egress device eth0 priority -400; "
        "policy accept; accept; }; }"
    )
    tools.udp(seat)
    tools.frame(ETH_IP, tools.udp4(seat))


@_add("accepts all packets by the older iptables.")
def accepting_iptables(seat: Seat) -> None:
    _iptables("-I OUTPUT -j ACCEPT")
    tools.udp(seat)


@_add("copies packets to a gateway by the older iptables (TEE).")
def iptables_tee(seat: Seat) -> None:
    _iptables(f"-t mangle -I OUTPUT -p udp -j TEE --gateway {seat.gateway4}")
    tools.udp(seat)


def _iptables(arguments: str) -> None:
    # It locks a file that this user can't write.
    command = ["iptables-legacy", *arguments.split()]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env={"XTABLES_LOCKFILE": "/dev/null", "PATH": "/usr/sbin:/usr/bin"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)


def _raced(seat: Seat, change: Callable[[], None]) -> None:
    change()
    tools.udp(seat)


VARIANTS.append(
    "gives the fence's tables an owner that is itself, and sends.",
    partial(_raced, change=lambda: _quiet("table inet ocsf_nft { flags owner; }")),
    "admin", "tables owned",
)  # fmt: skip
