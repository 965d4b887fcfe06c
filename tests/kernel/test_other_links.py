"""Links beside the link to the proxy: nested namespaces, child devices, later links."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.spec import DEFAULT_GROUP
from ocsf_nft.fence.values import Endpoint
from ocsf_nft.lab import (
    GATEWAY4,
    GATEWAY_MAC,
    INTERNET4,
    PROXY_PORT,
    SANDBOX4,
    SANDBOX6,
    ip,
    new_namespace,
)
from ocsf_nft.sources.nflog import Nflog
from tests.kernel import far_side, packets
from tests.kernel.reading import refused_at, rest, until_found

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace
    from ocsf_nft.record import Record

pytestmark = pytest.mark.kernel


@pytest.fixture
def nested(fenced: Lab) -> Iterator[Namespace]:
    """Create a namespace inside the sandbox, after the fence, that routes through the sandbox."""
    name = f"{fenced.sandbox}-nested"
    with new_namespace(name) as made:
        ip("-n", fenced.sandbox, "link", "add", "n0", "type", "veth", "peer", "name", "n1",
           "netns", name)  # fmt: skip
        for namespace, device, address in ((fenced.sandbox, "n0", 1), (name, "n1", 2)):
            ip("-n", namespace, "address", "add", f"10.201.0.{address}/24", "dev", device)
            ip("-n", namespace, "link", "set", device, "up")
        ip("-n", name, "route", "add", "default", "via", "10.201.0.1")
        forward = "/proc/sys/net/ipv4/ip_forward"
        fenced.sandbox_namespace.call(lambda: _write(forward, "1"))
        _until_up(fenced.sandbox, "n0")
        yield made


def _until_up(namespace: str, device: str) -> None:
    """Wait for the device's queue, which the kernel creates some time after both ends are up."""
    command, end = ["ip", "-n", namespace, "link", "show", device], time.monotonic() + 60
    while True:
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if "state UP" in shown and "qdisc noop " not in shown:
            return
        assert time.monotonic() < end, shown
        time.sleep(0.01)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:  # noqa: PTH123 - procfs
        file.write(text)


async def test_nested_namespace_is_refused_at_once(fenced: Lab, nested: Namespace) -> None:
    with far_side.watch(fenced) as far:
        far.strays()
        async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
            started = time.perf_counter()
            with pytest.raises(ConnectionRefusedError):
                nested.call(lambda: socket.create_connection((INTERNET4, 443), 60))
            assert time.perf_counter() - started < 30  # a busy machine may take seconds
            assert await refused_at(source, "forward", 6)
        assert not far.strays()


async def test_nested_namespace_known_to_the_fence_is_refused_at_once(
    fenced: Lab, nested: Namespace, spec: FenceSpec, state: StateDirectory
) -> None:
    installed = installer.install(spec, fenced.sandbox_namespace, state)
    assert installed.around.links == ("sb0", "n0")
    assert installed.around.uplinks == ("sb0",)
    ip("-n", fenced.sandbox, "neigh", "flush", "all")
    async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
        with pytest.raises(ConnectionRefusedError):
            nested.call(lambda: socket.create_connection((INTERNET4, 443), 60))
        assert await refused_at(source, "forward", 6)


async def test_forged_source_from_a_nested_namespace_gets_no_answer(
    fenced: Lab, nested: Namespace
) -> None:
    """An answer quotes the packet, so it would carry data to an address of the forger's choice."""
    ip("-n", fenced.sandbox, "link", "add", "late0", "type", "veth", "peer", "name", "far0",
       "netns", fenced.gateway)  # fmt: skip
    ip("-n", fenced.sandbox, "address", "add", "10.77.0.2/24", "dev", "late0")
    for namespace, device in ((fenced.sandbox, "late0"), (fenced.gateway, "far0")):
        ip("-n", namespace, "link", "set", device, "up")
    ip("-n", fenced.sandbox, "neigh", "add", "10.77.0.1", "lladdr", GATEWAY_MAC, "dev", "late0")
    forged = packets.ip4("10.77.0.1", INTERNET4, 17, packets.udp(53, b"by quotation"))
    to_itself = packets.ip4("10.77.0.1", "10.77.0.2", 17, packets.udp(53, b"by quotation"))

    def send(packet: bytes, to: str) -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock,
            contextlib.suppress(OSError),
        ):
            sock.sendto(packet, (to, 0))

    def open_socket() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sock.bind(("far0", 3))
        sock.settimeout(0.3)
        return sock

    with fenced.gateway_namespace.call(open_socket) as far:
        nested.call(lambda: send(forged, INTERNET4))
        fenced.sandbox_namespace.call(lambda: send(to_itself, "10.77.0.2"))
        arrived = []
        with contextlib.suppress(TimeoutError):
            while True:
                arrived.append(far.recv(2000))
        assert not [frame for frame in arrived if b"by quotation" in frame]


async def test_packet_to_forward_from_outside_gets_no_answer(
    fenced: Lab, nested: Namespace
) -> None:
    """The answer would be refused on its way out, but be logged as an attempt of the sandbox."""
    assert nested

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"question", ("10.201.0.2", 53))

    ip("-n", fenced.gateway, "route", "add", "10.201.0.0/24", "via", SANDBOX4)
    async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
        fenced.gateway_namespace.call(send)
        found = await until_found(source, lambda record: record.protocol == 17)
        found += await rest(source)
        about_it = [record.rule for record in found if record.protocol in {1, 17}]
        assert about_it == ["forward"]


async def test_forged_source_on_loopback_gets_no_answer(fenced: Lab, nested: Namespace) -> None:
    """This also holds if the route to the source is a loopback route that discards a network."""
    assert nested
    ip("-n", fenced.sandbox, "route", "add", "10.77.0.0/24", "dev", "lo")
    forged = packets.ip4("10.77.0.1", INTERNET4, 17, packets.udp(53, b"by quotation"))

    def open_socket() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sock.bind(("lo", 3))
        sock.settimeout(0.3)
        return sock

    with fenced.sandbox_namespace.call(open_socket) as loopback:
        async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
            loopback.send(packets.frame(bytes(6), bytes(6), packets.ETH_IP, forged))
            assert await refused_at(source, "forward", 17)
        protocols = set()
        with contextlib.suppress(TimeoutError):
            while True:
                protocols.add(loopback.recv(2000)[23])
        assert protocols == {17}


@pytest.mark.parametrize(
    ("protocol", "packet"),
    [(6, packets.tcp(9000, 0x04)), (1, b"\x03\x01" + bytes(6) + packets.PAYLOAD)],
    ids=["reset", "icmp error"],
)
async def test_imitation_of_the_fences_answer_is_refused(
    fenced: Lab, nested: Namespace, protocol: int, packet: bytes
) -> None:
    assert nested

    def send() -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as sock,
            contextlib.suppress(OSError),
        ):
            sock.sendto(packet, ("10.201.0.2", 0))

    async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
        fenced.sandbox_namespace.call(send)
        assert await refused_at(source, "egress", protocol)


async def test_socket_bound_to_another_link_does_not_reach_a_false_proxy(
    fenced: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    ip("-n", fenced.sandbox, "link", "add", "sb1", "type", "veth", "peer", "name", "far1",
       "netns", fenced.gateway)  # fmt: skip
    ip("-n", fenced.sandbox, "link", "set", "sb1", "up")
    installer.install(spec, fenced.sandbox_namespace, state)

    def connect() -> None:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"sb1")
            sock.settimeout(0.3)
            sock.connect((GATEWAY4, PROXY_PORT))

    async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
        # The reset arrives on loopback, not on the socket's device, so the socket times out.
        with pytest.raises(TimeoutError):
            fenced.sandbox_namespace.call(connect)
        found = await until_found(source, lambda record: record.destination_port == PROXY_PORT)
        links = {each.out_interface for each in found if each.destination_port == PROXY_PORT}
        assert links == {"sb1"}


@pytest.mark.parametrize("inside", ["127.0.0.1", "::1", SANDBOX4, SANDBOX6])
def test_packets_to_an_inner_proxy_do_not_leave_by_a_link(
    lab: Lab, spec: FenceSpec, state: StateDirectory, inside: str
) -> None:
    """A socket that is bound to a link sends even packets to 127.0.0.1 out by that link."""
    family = socket.AF_INET6 if ":" in inside else socket.AF_INET
    proxy = Endpoint("tcp", ipaddress.ip_address(inside), PROXY_PORT)
    installer.install(dataclasses.replace(spec, proxies=(proxy,)), lab.sandbox_namespace, state)

    def connect() -> None:
        with socket.socket(family) as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"sb0")
            sock.settimeout(0.2)
            sock.connect((inside, PROXY_PORT))

    with far_side.watch(lab, has_proxy=False) as far:
        far.strays()
        lab.sandbox_namespace.call(connect)
        time.sleep(0.05)
        assert not far.strays()


@pytest.mark.parametrize(
    "command",
    [
        ("address", "add", "10.66.0.1/32", "dev", "lo"),
        ("route", "add", "local", "10.66.0.0/24", "dev", "lo"),
    ],
    ids=["address", "route"],
)
def test_packets_to_an_address_that_is_local_later_do_not_leave_by_a_link(
    lab: Lab, spec: FenceSpec, state: StateDirectory, command: tuple[str, ...]
) -> None:
    inner = Endpoint("tcp", ipaddress.ip_address("10.66.0.1"), PROXY_PORT)
    proxies = (*spec.proxies, inner)
    installer.install(dataclasses.replace(spec, proxies=proxies), lab.sandbox_namespace, state)
    ip("-n", lab.sandbox, *command)

    def connect() -> None:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"sb0")
            sock.settimeout(0.2)
            sock.connect(("10.66.0.1", PROXY_PORT))

    with far_side.watch(lab) as far:
        far.strays()
        lab.sandbox_namespace.call(connect)
        time.sleep(0.05)
        assert not [each for each in far.strays() if socket.inet_aton("10.66.0.1") in each]


async def test_macvlan_child_of_the_link_is_refused_at_the_link(fenced: Lab) -> None:
    ip("-n", fenced.sandbox, "link", "add", "link", "sb0", "name", "child", "type", "macvlan")
    ip("-n", fenced.sandbox, "link", "set", "child", "up")
    frame = packets.frame(
        bytes.fromhex(GATEWAY_MAC.replace(":", "")), b"\x02\0\0\0\0\x09", 0x88B5, b"bypass"
    )

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind(("child", 0))
            with contextlib.suppress(OSError):
                sock.send(frame)

    async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
        with far_side.watch(fenced) as far:
            fenced.sandbox_namespace.call(send)
            found = await until_found(source, lambda record: record.ethertype == 0x88B5)
            assert any(record.rule == "link" and record.ethertype == 0x88B5 for record in found)
            assert not [stray for stray in far.strays() if b"bypass" in stray]


async def test_macvlan_child_in_a_nested_namespace_sends_no_raw_neighbour_discovery(
    fenced: Lab, nested: Namespace
) -> None:
    """Its socket is in another namespace, so the frame has no owner here, as the kernel's own."""
    ip("-n", fenced.sandbox, "link", "add", "link", "sb0", "name", "child", "type", "macvlan")
    ip("-n", fenced.sandbox, "link", "set", "child", "netns", f"{fenced.sandbox}-nested")
    ip("-n", f"{fenced.sandbox}-nested", "link", "set", "child", "up")
    message = packets.solicitation(b"")[:8] + packets.PAYLOAD.ljust(16)
    packet = packets.ip6(SANDBOX6, "ff02::1", 58, message, hop_limit=255)
    gateway = bytes.fromhex(GATEWAY_MAC.replace(":", ""))

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind(("child", 0))
            with contextlib.suppress(OSError):
                sock.send(packets.frame(gateway, b"\2\0\0\0\0\x09", packets.ETH_IP6, packet))

    def is_expected(record: Record) -> bool:
        return (record.rule, record.protocol, record.destination) == ("link", 58, "ff02::1")

    async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
        with far_side.watch(fenced) as far:
            nested.call(send)
            assert any(map(is_expected, await until_found(source, is_expected)))
            assert not [stray for stray in far.strays() if packets.PAYLOAD in stray]


async def test_ip_traffic_on_a_later_interface_is_refused(fenced: Lab) -> None:
    ip("-n", fenced.sandbox, "link", "add", "later", "type", "veth", "peer", "name", "far",
       "netns", fenced.gateway)  # fmt: skip
    ip("-n", fenced.sandbox, "address", "add", "10.202.0.2/24", "dev", "later")
    ip("-n", fenced.sandbox, "link", "set", "later", "up")
    ip("-n", fenced.gateway, "link", "set", "far", "up")
    async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
        with pytest.raises(ConnectionRefusedError):
            fenced.sandbox_namespace.call(lambda: socket.create_connection(("10.202.0.1", 80), 1))
        found = await until_found(source, lambda record: record.protocol == 6)
        assert [record.out_interface for record in found if record.protocol == 6] == ["later"]
