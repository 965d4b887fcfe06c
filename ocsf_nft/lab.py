"""Temporary sandbox for the demo, the tests and the benchmarks.

Two network namespaces are joined by a veth pair: the sandbox, and a gateway, which represents the
rest of the world. Traffic never leaves the two namespaces. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft import lab_links, netns
from ocsf_nft.errors import UnsupportedError, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROXY_PORT: Final = 3128
GATEWAY4: Final = "10.200.0.1"
GATEWAY6: Final = "fd00:200::1"
GATEWAY_MAC: Final = "02:00:00:00:00:01"
SANDBOX4: Final = "10.200.0.2"
SANDBOX6: Final = "fd00:200::2"
#: Documentation addresses (RFC 5737, RFC 3849) that represent the internet.
INTERNET4: Final = "203.0.113.7"
INTERNET6: Final = "2001:db8::7"

_NET: Final = Path("/proc/sys/net")
#: The defaults of the kernel for net.ipv4.conf of each device.
_CONF4: Final = {
    **dict.fromkeys((
        "accept_local", "accept_source_route", "arp_accept", "arp_announce", "arp_filter",
        "arp_ignore", "arp_notify", "bc_forwarding", "bootp_relay", "disable_policy",
        "disable_xfrm", "drop_gratuitous_arp", "drop_unicast_in_l2_multicast",
        "force_igmp_version", "ignore_routes_with_linkdown", "log_martians", "medium_id",
        "promote_secondaries", "proxy_arp", "proxy_arp_pvlan", "route_localnet", "rp_filter",
        "src_valid_mark", "tag",
    ), "0"),
    **dict.fromkeys((
        "accept_redirects", "arp_evict_nocarrier", "secure_redirects", "send_redirects",
        "shared_media",
    ), "1"),
    "igmpv2_unsolicited_report_interval": "10000",
    "igmpv3_unsolicited_report_interval": "1000",
}  # fmt: skip
#: The same for net.ipv6.conf, except that an address is usable at once, no router is solicited, and
#: a new link reports its multicast groups within milliseconds instead of two seconds.
_CONF6: Final = {
    "accept_dad": "0",
    "accept_ra": "1",
    "accept_redirects": "1",
    "addr_gen_mode": "0",
    "autoconf": "1",
    "disable_ipv6": "0",
    "mldv2_unsolicited_report_interval": "1",
    "router_solicitations": "0",
    "use_tempaddr": "0",
}
_ADDRESS_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Lab:
    """Names of the namespaces and devices of a temporary sandbox.

    ``sandbox`` and ``gateway`` are ``ip netns`` names; ``sandbox_device`` and ``gateway_device``
    are the two ends of the veth pair.
    """

    sandbox: str
    gateway: str
    sandbox_device: str
    gateway_device: str

    @property
    def sandbox_namespace(self) -> netns.Namespace:
        """Return the network namespace of the sandbox."""
        return netns.named(self.sandbox)

    @property
    def gateway_namespace(self) -> netns.Namespace:
        """Return the network namespace of the gateway."""
        return netns.named(self.gateway)


def ip(*arguments: str, batch: str | None = None) -> None:
    """Run iproute2's ``ip`` with these arguments; raises UnsupportedError on failure.

    ``batch`` is its standard input, for the argument ``-batch -``.
    """
    binary = shutil.which("ip", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if binary is None:
        raise UnsupportedError("the ip command is missing: install iproute2")
    done = subprocess.run(
        [binary, *arguments],
        input=batch,
        capture_output=True,
        text=True,
        check=False,
        process_group=0,  # Ctrl-C must not interrupt the cleanup
    )
    if done.returncode != 0:
        raise UnsupportedError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@contextlib.contextmanager
def new_namespace(name: str) -> Iterator[netns.Namespace]:
    """Create a network namespace with default sysctls; remove it at the end of the context.

    Raises UnsupportedError if the system does not permit it.
    """
    with new_namespaces(name):
        yield netns.named(name)


@contextlib.contextmanager
def new_namespaces(*names: str) -> Iterator[None]:
    """Create network namespaces as :func:`new_namespace` does, with one process for all."""
    others = set(filter(_exists, names))  # a failure must not remove them
    try:
        ip("-batch", "-", batch="".join(f"netns add {name}\n" for name in names))
        for name in names:
            netns.named(name).call(set_sysctls)
        yield
    finally:
        made = [name for name in names if name not in others and _exists(name)]
        ip("-batch", "-", batch="".join(f"netns del {name}\n" for name in made))


def _exists(name: str) -> bool:
    return (netns.NAMED / name).exists()


def set_sysctls() -> None:
    """Reset sysctls that the calling thread's network namespace may have inherited from the host.

    Most of them get the kernel's default value. Some IPv6 sysctls get another value, for example so
    that a new address is usable at once.
    """
    # These two come first, because they change others.
    _set("ipv4/ip_forward", "0")
    _set("ipv6/conf/all/forwarding", "0")
    for version, values in (("ipv4", _CONF4), ("ipv6", _CONF6)):
        for device in os.listdir(_NET / version / "conf"):  # noqa: PTH208 - names suffice
            for key, value in values.items():
                _set(f"{version}/conf/{device}/{key}", value)
    _set("ipv4/tcp_rmem", "4096 131072 6291456")
    _set("ipv4/tcp_wmem", "4096 16384 4194304")
    _set("ipv4/tcp_congestion_control", "reno")


def _set(key: str, value: str) -> None:
    # Not by pathlib and a text file: a lab sets hundreds of them.
    try:
        descriptor = os.open(f"{_NET}/{key}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # some kernels lack some of them
        return
    try:
        os.write(descriptor, value.encode("ascii"))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def throwaway() -> Iterator[Lab]:
    """Create a temporary sandbox and its gateway; remove both at the end of the context.

    Raises UnsupportedError if the system does not permit it.
    """
    token = secrets.token_hex(3)
    lab = Lab(f"ocsf-nft-{token}-sb", f"ocsf-nft-{token}-gw", "sb0", "gw0")
    with new_namespaces(lab.sandbox, lab.gateway):
        _furnish(lab.sandbox, lambda: _join(lab))
        configure(lab.gateway, lab.gateway_device, f"{GATEWAY4}/24", f"{GATEWAY6}/64")
        configure(
            lab.sandbox, lab.sandbox_device, f"{SANDBOX4}/24", f"{SANDBOX6}/64",
            gateways=(GATEWAY4, GATEWAY6),
        )  # fmt: skip
        lab.gateway_namespace.call(lambda: _wait_for_address(GATEWAY6))
        lab.sandbox_namespace.call(lambda: _wait_for_address(SANDBOX6))
        yield lab


def _join(lab: Lab) -> None:
    """Create the veth pair; its sandbox's end is in the calling thread's namespace."""
    with (netns.NAMED / lab.gateway).open("rb") as gateway:
        lab_links.add_veth(lab.sandbox_device, lab.gateway_device, GATEWAY_MAC, gateway.fileno())


def _wait_for_address(address: str) -> None:
    """Wait until a new IPv6 address of the calling thread's namespace is usable.

    A new address is tentative until a kernel worker has run, even without duplicate address
    detection. Raises UnsupportedError after 10 s.
    """
    deadline = time.monotonic() + _ADDRESS_SECONDS
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        while True:
            try:
                probe.bind((address, 0))
            except OSError as error:
                if time.monotonic() > deadline:
                    raise UnsupportedError(
                        f"the address {address} can't be used: {error.strerror}"
                    ) from error
            else:
                return
            time.sleep(0.001)


def configure(name: str, device: str, *addresses: str, gateways: tuple[str, ...] = ()) -> None:
    """Enable a network device and the loopback in the namespace ``name``.

    ``addresses`` are added to the device, for example ``10.200.0.1/24``. ``gateways`` are the
    addresses of its default routes. Raises UnsupportedError if the kernel refuses one of them.
    """

    def work() -> None:
        lab_links.enable("lo")
        for address in addresses:
            lab_links.add_address(device, address)
        lab_links.enable(device)
        for gateway in gateways:
            lab_links.add_default_route(gateway)

    _furnish(name, work)


def _furnish(name: str, work: Callable[[], None]) -> None:
    try:
        netns.named(name).call(work)
    except OSError as error:
        raise UnsupportedError(
            f"the network namespace {name} can't be configured: {reason_of(error)}"
        ) from error
