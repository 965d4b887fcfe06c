"""Host, internet and seats of a run of the matrix: namespaces that few processes make."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft.netns import named
from tests.kernel.ways import tidy
from tests.kernel.ways.variant import (
    DEVICE,
    GATEWAY_MAC,
    HOST_BRIDGE,
    HOST_UPLINK,
    INTERNET4,
    INTERNET6,
    MAC,
    Seat,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ocsf_nft.netns import Namespace

UPLINK, INTERNET_END = HOST_UPLINK, "in0"
#: Port of the host's bridge, and its other end, which is another machine's.
_PORT, LAN_END = "lan1", "in1"
UPLINK4, UPLINK6 = "198.51.100.1", "2001:db8:1::1"
NEXT4, NEXT6 = "198.51.100.254", "2001:db8:1::fe"
#: Devices of the host that repeat what passed the guards, and what the host's sockets got.
PASSED, LOCAL = "passed", "local"
_PEERS: Final = {PASSED: "passed1", LOCAL: "local1"}
_NETNS: Final = Path("/run/netns")
_MS_BIND: Final = 4096
_WORKERS: Final = 4
_SETTINGS: Final = {
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/default/router_solicitations": "0",
    "ipv6/conf/default/mldv2_unsolicited_report_interval": "1",
    "ipv4/conf/default/igmpv3_unsolicited_report_interval": "1",
    "ipv4/tcp_fastopen": "3",
    "ipv4/ping_group_range": "0 2147483647",
}
#: Makes one network namespace after the other, all owned by its user namespace.
_MAKER: Final = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for line in sys.stdin:
    if libc.unshare(0x40000000):
        raise OSError(ctypes.get_errno(), "unshare")
    print(line, end="", flush=True)
"""


@dataclass(frozen=True)
class World:
    host: Namespace
    internet: Namespace
    host_name: str
    seats: tuple[Seat, ...]


def batch(name: str, lines: Iterable[str]) -> None:
    """Run commands of ip(8) in a namespace, with one process."""
    command = ["ip", "-n", name, "-batch", "-"]
    done = subprocess.run(
        command, input="\n".join(lines), text=True, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def world(plan: Sequence[tuple[str, bool]]) -> Iterator[World]:
    """Create a host with a seat for each (form, is it owned by a user namespace)."""
    token = secrets.token_hex(3)
    prefix = f"ocsf-nft-{token}-"
    host, internet = prefix + "host", prefix + "inet"
    seats = tuple(
        Seat(form, number, f"{prefix}{number}", f"h{number}")  # type: ignore[arg-type]
        for number, (form, _) in enumerate(plan)
    )
    owned = [seat.namespace for seat, (_, is_owned) in zip(seats, plan, strict=True) if is_owned]
    plain = [seat.namespace for seat in seats if seat.namespace not in owned]
    everything = [host, internet, *(seat.namespace for seat in seats)]
    try:
        _run_batch(f"netns add {name}" for name in (host, internet, *plain))
        _make_owned(owned)
        _connect(host, internet, seats)
        yield World(named(host), named(internet), host, seats)
    finally:
        # Not in one batch: a name may be missing.
        existing = [name for name in everything if (_NETNS / name).exists()]
        _run_batch(f"netns del {name}" for name in existing)


def _run_batch(lines: Iterable[str]) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


def _make_owned(names: Sequence[str]) -> None:
    """Create named network namespaces that belong to a new user namespace."""
    if not names:
        return
    mapped = ("--map-users=0:100000:65536", "--map-groups=0:100000:65536")
    command = [
        "unshare",
        "--user",
        *mapped,
        "--setuid=0",
        "--setgid=0",
        "/usr/bin/python3",
        "-I",
        "-c",
        _MAKER,
    ]
    libc = ctypes.CDLL(None, use_errno=True)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as maker:
        assert maker.stdin is not None
        assert maker.stdout is not None
        for name in names:
            maker.stdin.write(f"{name}\n")
            maker.stdin.flush()
            assert maker.stdout.readline() == f"{name}\n"
            target = _NETNS / name
            target.touch()
            source = f"/proc/{maker.pid}/ns/net"
            if libc.mount(source.encode(), str(target).encode(), None, _MS_BIND, None):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), source)
        maker.stdin.close()


def _connect(host: str, internet: str, seats: Sequence[Seat]) -> None:
    for name in (host, internet):
        named(name).call(_set_sysctls)
        named(name).call(lambda: _write("ipv4/ip_forward", "1"))
        named(name).call(lambda: _write("ipv6/conf/all/forwarding", "1"))
    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(lambda seat: named(seat.namespace).call(_set_sysctls), seats))
        batch(
            host,
            (
                "link set lo up",
                f"link add {UPLINK} type veth peer name {INTERNET_END} netns {internet}",
                *(f"link add {name} type veth peer name {peer}" for name, peer in _PEERS.items()),
                f"link add {HOST_BRIDGE} type bridge mcast_snooping 0",
                f"link add {_PORT} type veth peer name {LAN_END} netns {internet}",
                f"link set {_PORT} master {HOST_BRIDGE}",
                *(f"link set {each} up" for each in (UPLINK, *_PEERS, *_PEERS.values())),
                *(f"link set {each} up" for each in (HOST_BRIDGE, _PORT)),
                f"address add {UPLINK4}/24 dev {UPLINK}",
                f"address add {UPLINK6}/64 dev {UPLINK}",
                f"route add default via {NEXT4}",
                f"route add ::/0 via {NEXT6} dev {UPLINK}",
                f"neigh add 192.0.2.99 lladdr 02:00:00:00:00:99 dev {LOCAL}",
                f"neigh add 2001:db8:99::99 lladdr 02:00:00:00:00:99 dev {LOCAL}",
            ),
        )
        batch(
            internet,
            (
                "link set lo up",
                f"link set {INTERNET_END} up",
                f"link set {LAN_END} up",
                f"address add {NEXT4}/24 dev {INTERNET_END}",
                f"address add {NEXT6}/64 dev {INTERNET_END}",
                f"address add {INTERNET4}/32 dev lo",
                f"address add {INTERNET6}/128 dev lo",
                f"route add default via {UPLINK4}",
                f"route add ::/0 via {UPLINK6} dev {INTERNET_END}",
            ),
        )
        batch(host, (line for seat in seats for line in _host_lines(seat)))
        list(pool.map(lambda seat: batch(seat.namespace, _seat_lines(seat)), seats))


def _host_lines(seat: Seat) -> Iterator[str]:
    device = seat.host_device
    yield (
        f"link add {device} address {GATEWAY_MAC.hex(':')} type veth peer name {DEVICE} "
        f"address {MAC.hex(':')} netns {seat.namespace}"
    )
    yield f"address add {seat.gateway4}/24 dev {device}"
    yield f"address add {seat.gateway6}/64 dev {device}"
    yield f"link set {device} up"


def _seat_lines(seat: Seat) -> Iterator[str]:
    yield "link set lo up"
    yield f"address add {seat.own4}/24 dev {DEVICE}"
    yield f"address add {seat.own6}/64 dev {DEVICE}"
    yield f"link set {DEVICE} up"
    yield f"route add default via {seat.gateway4}"
    yield f"route add ::/0 via {seat.gateway6} dev {DEVICE}"
    yield from tidy.neighbours(seat)


def _set_sysctls() -> None:
    for key, value in _SETTINGS.items():
        _write(key, value)


def _write(key: str, value: str) -> None:
    Path("/proc/sys/net", key).write_text(value, encoding="ascii")
