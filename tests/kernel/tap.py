"""A virtual machine from its host's side: a TAP device, with a substitute for the VM behind it.

The substitute is a network namespace, whose kernel answers ARP and TCP. A thread carries frames
between it and the TAP device. Tests can also send hand-made frames.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import secrets
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ocsf_nft import lab_links
from ocsf_nft.fence.spec import FenceSpec, Tap
from ocsf_nft.fence.values import endpoint, subnet
from ocsf_nft.lab import INTERNET4, INTERNET6, configure, ip, new_namespace, new_namespaces
from ocsf_nft.netns import Namespace, named
from tests.kernel import packets

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICE = "vmtap-0"
GATEWAY4, GATEWAY6 = "172.16.7.1", "fd00:7::1"
VM4, VM6 = "172.16.7.2", "fd00:7::2"
SUBNETS = (f"{GATEWAY4}/29", f"{GATEWAY6}/64")
PORT = 3128
VM_MAC = bytes.fromhex("020000000702")
HOST_MAC = bytes.fromhex("020000000701")
#: The host's address on its uplink, and the next hop there.
UPLINK, INTERNET_END = "up0", "in0"
UPLINK4, UPLINK6 = "198.51.100.1", "2001:db8:1::1"
NEXT_HOPS = _NEXT4, _NEXT6 = "198.51.100.254", "2001:db8:1::fe"

_TUNSETIFF = 0x400454CA  # include/uapi/linux/if_tun.h
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_FRAME_BYTES = 65535
#: Guards against waiting forever: a kernel worker or a thread may be held up for seconds.
_SECONDS = 60
_ROUTES6 = Path("/proc/thread-self/net/ipv6_route")
_RTF_LOCAL = 0x80000000  # include/uapi/linux/ipv6_route.h


def spec(
    sandbox: str,
    device: str = DEVICE,
    *subnets: str,
    mac: str | None = None,
    is_strict: bool = False,
) -> FenceSpec:
    """Return the specification of a VM's fence, with one gateway port for each subnet."""
    parsed = tuple(map(subnet, subnets or SUBNETS))
    ends = (f"[{each.ip}]" if each.version == 6 else str(each.ip) for each in parsed)
    return FenceSpec(
        sandbox=sandbox,
        proxies=tuple(endpoint(f"{end}:{PORT}") for end in ends),
        tap=Tap(device=device, subnets=parsed, mac=mac, is_strict=is_strict),
    )


def made(namespace: Namespace, device: str, mac: bytes | None = None) -> int:
    """Create a TAP device in a namespace. It exists as long as the returned descriptor is open."""

    def make() -> int:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        request = struct.pack("16sH22x", device.encode(), _IFF_TAP | _IFF_NO_PI)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
        if mac is not None:
            ip("link", "set", device, "address", mac.hex(":"))
        return descriptor

    return namespace.call(make)


@dataclass
class Machine:
    """A VM. ``host_end`` is the descriptor that a hypervisor would hold.

    ``guest`` is the namespace of its kernel and ``guest_end`` that kernel's TAP device. Without a
    ``guest_end`` the VM sends only hand-made frames and answers nothing.
    """

    host: Namespace
    device: str
    host_end: int
    guest: Namespace
    guest_end: int | None
    #: Frames that the VM has received.
    received: list[bytes] = field(default_factory=list)

    def send(self, frame: bytes) -> None:
        """Send a frame as the VM."""
        os.write(self.host_end, frame)

    def send_ip(self, packet: bytes, source: bytes = VM_MAC) -> None:
        """Send a packet to the gateway's link address."""
        kind = packets.ETH_IP if packet[0] >> 4 == 4 else packets.ETH_IP6
        self.send(packets.frame(HOST_MAC, source, kind, packet))

    def carry(self, stop: int) -> None:
        """Carry frames until ``stop`` can be read."""
        ends = {self.host_end: self.guest_end}
        if self.guest_end is not None:
            ends[self.guest_end] = self.host_end
        while True:
            ready, _, _ = select.select([*ends, stop], [], [])
            if stop in ready:
                return
            for end in ready:
                # A device that is down or removed accepts no frame and delivers none.
                with contextlib.suppress(OSError):
                    frame = os.read(end, _FRAME_BYTES)
                    if end == self.host_end:
                        self.received.append(frame)
                    if (other := ends[end]) is not None:
                        os.write(other, frame)


@dataclass(frozen=True)
class Site:
    """A host with an uplink to the internet, without VMs."""

    host: Namespace
    internet: Namespace
    host_name: str
    internet_name: str


@contextlib.contextmanager
def site() -> Iterator[Site]:
    """Create a host that forwards nothing, with an uplink to the internet."""
    token = secrets.token_hex(3)
    with contextlib.ExitStack() as cleanup:
        host, internet = (f"ocsf-nft-{token}-{kind}" for kind in ("host", "inet"))
        cleanup.enter_context(new_namespaces(host, internet))
        ip("-n", host, "link", "add", UPLINK, "type", "veth", "peer", "name", INTERNET_END,
           "netns", internet)  # fmt: skip
        _up(host, UPLINK, f"{UPLINK4}/24", f"{UPLINK6}/64", gateways=NEXT_HOPS)
        _up(internet, INTERNET_END, f"{_NEXT4}/24", f"{_NEXT6}/64")
        for address in (f"{INTERNET4}/32", f"{INTERNET6}/128"):
            named(internet).call(partial(lab_links.add_address, "lo", address))
        for address in (UPLINK4, UPLINK6):
            named(internet).call(partial(_await, address))
        for address in (INTERNET4, INTERNET6):
            named(host).call(partial(_await, address))
        yield Site(named(host), named(internet), host, internet)


@contextlib.contextmanager
def machine(
    site: Site,
    device: str = DEVICE,
    gateways: tuple[str, ...] = SUBNETS,
    addresses: tuple[str, ...] = (f"{VM4}/29", f"{VM6}/64"),
    mac: bytes = VM_MAC,
) -> Iterator[Machine]:
    """Plug a VM into a host. It has the addresses, and the host is its gateway."""
    name = f"{site.host_name}-{device}"
    with contextlib.ExitStack() as cleanup:
        cleanup.enter_context(new_namespace(name))
        guest_end = made(named(name), "eth0", mac)
        cleanup.callback(os.close, guest_end)
        next_hops = tuple(gateway.split("/")[0] for gateway in gateways)
        _up(name, "eth0", *addresses, gateways=next_hops)
        with _plugged(site, device, gateways, named(name), guest_end) as plugged:
            yield plugged


@contextlib.contextmanager
def silent_machine(
    site: Site, device: str = DEVICE, gateways: tuple[str, ...] = SUBNETS
) -> Iterator[Machine]:
    """Plug in a VM that does nothing by itself."""
    with _plugged(site, device, gateways, site.host, None) as plugged:
        yield plugged


@contextlib.contextmanager
def _plugged(
    site: Site, device: str, gateways: tuple[str, ...], guest: Namespace, guest_end: int | None
) -> Iterator[Machine]:
    host_end = made(site.host, device, HOST_MAC)
    try:
        _up(site.host_name, device, *gateways)
        plugged = Machine(site.host, device, host_end, guest, guest_end)
        stopped, stop = os.pipe()
        thread = threading.Thread(target=plugged.carry, args=(stopped,), name=f"carry {device}")
        thread.start()
        try:
            yield plugged
        finally:
            os.close(stop)
            thread.join()
            os.close(stopped)
    finally:
        os.close(host_end)


def routes_back(site: Site) -> None:
    """Let the internet send to the VM's own addresses, as a neighbour on the uplink can."""
    for network, gateway in (("172.16.7.0/29", UPLINK4), ("fd00:7::/64", UPLINK6)):
        version = "-6" if ":" in network else "-4"
        ip("-n", site.internet_name, version, "route", "add", network, "via", gateway)


def _await(address: str) -> None:
    """Wait until an address answers: a link accepts nothing for a short time after it is up."""
    end = time.monotonic() + _SECONDS
    while True:
        try:
            socket.create_connection((address, 9), 0.1).close()
        except ConnectionRefusedError:
            return
        except OSError as error:
            if time.monotonic() > end:
                raise TimeoutError(address) from error
            time.sleep(0.02)


def wait_until_local(address: str) -> None:
    """Wait until the calling thread's namespace accepts packets to its new IPv6 address.

    A kernel worker adds the route of the address some time later, even with ``nodad``.
    """
    route = f"{ipaddress.IPv6Address(address).packed.hex()} 80 "
    end = time.monotonic() + _SECONDS
    while not any(
        line.startswith(route) and int(line.split()[-2], 16) & _RTF_LOCAL
        for line in _ROUTES6.read_text(encoding="ascii").splitlines()
    ):
        if time.monotonic() > end:
            raise TimeoutError(address)
        time.sleep(0.002)


def _up(namespace: str, device: str, *addresses: str, gateways: tuple[str, ...] = ()) -> None:
    configure(namespace, device, *addresses, gateways=gateways)
    for address in addresses:
        if ":" in address:
            named(namespace).call(partial(wait_until_local, address.split("/")[0]))


def settings(namespace: Namespace) -> dict[str, str]:
    """Return the readable settings in a namespace's /proc/sys/net that change only on request."""
    return namespace.call(lambda: dict(_settings()))


def _settings() -> Iterator[tuple[str, str]]:
    for directory, _, names in os.walk("/proc/sys/net"):
        for name in names:
            path = os.path.join(directory, name)  # noqa: PTH118 - thousands of paths
            with contextlib.suppress(OSError), open(path, "rb") as file:  # noqa: PTH123 - the same
                if name != "nf_conntrack_count":
                    yield path, file.read().decode("latin-1")


@contextlib.contextmanager
def listening(namespace: Namespace, address: str, port: int) -> Iterator[socket.socket]:
    """Run a TCP server that accepts every connection."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = namespace.call(lambda: socket.create_server((address, port), family=family))
    with server:
        server.settimeout(_SECONDS)
        yield server
