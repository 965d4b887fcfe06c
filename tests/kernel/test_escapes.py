"""What gets past the usual ruleset does not get past ours, and is on record."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.spec import DEFAULT_GROUP
from ocsf_nft.fence.values import endpoint
from ocsf_nft.lab import (
    GATEWAY4,
    GATEWAY_MAC,
    INTERNET4,
    PROXY_PORT,
    SANDBOX4,
    ip,
)
from ocsf_nft.netns import named
from ocsf_nft.sources.nflog import Nflog
from tests.kernel import far_side, packets, xdp
from tests.kernel.escapes import ESCAPES, Escape

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace
    from ocsf_nft.record import Record

pytestmark = pytest.mark.kernel

_QUIET_SECONDS = 0.15


async def records_of(source: Nflog) -> AsyncIterator[Record]:
    async for batch in source.batches():
        assert not batch.rejects
        for record in batch.records:
            yield record


async def taken(source: Nflog, wanted: Callable[[Record], bool]) -> list[Record]:
    """What the source gives until a wanted record came, or nothing came for a while."""
    found: list[Record] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_QUIET_SECONDS) as quiet:
            async for record in records_of(source):
                found.append(record)
                if wanted(record):
                    break
                quiet.reschedule(asyncio.get_running_loop().time() + _QUIET_SECONDS)
    return found


async def test_every_way_round_the_usual_ruleset_is_refused_and_logged(fenced: Lab) -> None:
    missed: dict[str, str] = {}
    async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
        with far_side.watch(fenced) as far:
            far.strays()
            for escape in ESCAPES:

                def wanted(record: Record, escape: Escape = escape) -> bool:
                    said = record.ethertype if record.protocol is None else record.protocol
                    wanted = escape.rule, escape.protocol, escape.is_owned
                    return (record.rule, said, record.uid is not None) == wanted

                fenced.sandbox_namespace.call(escape.attempt)
                if not any(map(wanted, await taken(source, wanted))):
                    missed[escape.name] = "not logged"
                if far.strays():
                    missed[escape.name] = "got out"
    assert not missed


def test_without_a_fence_every_one_of_these_ways_leads_out(lab: Lab) -> None:
    held: list[str] = []
    with far_side.watch(lab) as far:
        for escape in ESCAPES:
            time.sleep(0.002)
            far.strays()
            lab.sandbox_namespace.call(escape.attempt)
            if not _eventually(far.strays):
                held.append(escape.name)
    assert not held


def _eventually(look: Callable[[], object]) -> bool:
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        if look():
            return True
        time.sleep(0.002)
    return False


@contextlib.contextmanager
def established(
    client: Namespace, server: Namespace, address: str
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection between two namespaces: the client's and the server's socket."""
    with (
        server.call(lambda: socket.create_server((address, 9000))) as listener,
        client.call(lambda: socket.create_connection((address, 9000), 2)) as near,
        listener.accept()[0] as far,
    ):
        yield near, far


async def _refused_at(source: Nflog, rule: str, protocol: int) -> bool:
    found = await taken(source, lambda record: (record.rule, record.protocol) == (rule, protocol))
    return any((record.rule, record.protocol) == (rule, protocol) for record in found)


async def test_a_connection_that_was_open_before_the_fence_is_cut(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    with (
        established(lab.sandbox_namespace, lab.gateway_namespace, GATEWAY4) as (near, _far),
        far_side.watch(lab) as far,
    ):
        near.sendall(b"before")
        installer.install(spec, lab.sandbox_namespace, state)
        async with Nflog(lab.sandbox_namespace, DEFAULT_GROUP) as source:
            await asyncio.sleep(0.05)
            far.strays()
            near.sendall(b"after")
            assert await _refused_at(source, "egress", 6)
        assert not far.strays()
        with pytest.raises(ConnectionResetError):
            near.recv(1)


async def test_data_does_not_leave_over_a_connection_that_came_in(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    with (
        established(lab.gateway_namespace, lab.sandbox_namespace, SANDBOX4) as (_near, inside),
        far_side.watch(lab) as far,
    ):
        installer.install(spec, lab.sandbox_namespace, state)
        async with Nflog(lab.sandbox_namespace, DEFAULT_GROUP) as source:
            await asyncio.sleep(0.05)
            far.strays()
            inside.sendall(b"after")
            assert await _refused_at(source, "egress", 6)
        assert not far.strays()


async def test_a_datagram_from_outside_is_not_answered(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    def bound(address: str) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((address, 9001))
        sock.settimeout(1)
        return sock

    with (
        lab.sandbox_namespace.call(lambda: bound(SANDBOX4)) as inside,
        lab.gateway_namespace.call(lambda: bound(GATEWAY4)) as outside,
        far_side.watch(lab) as far,
    ):
        outside.sendto(b"question", (SANDBOX4, 9001))
        _, asker = inside.recvfrom(100)
        installer.install(spec, lab.sandbox_namespace, state)
        far.strays()
        async with Nflog(lab.sandbox_namespace, DEFAULT_GROUP) as source:
            with contextlib.suppress(OSError):
                inside.sendto(b"answer", asker)
            assert await _refused_at(source, "egress", 17)
            outside.sendto(b"another question", (SANDBOX4, 9001))
            assert await _refused_at(source, "ingress", 17)
        assert not far.strays()


async def test_a_connection_from_outside_does_not_come_in(fenced: Lab) -> None:
    with fenced.sandbox_namespace.call(lambda: socket.create_server((SANDBOX4, 9000))):
        async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
            with pytest.raises(TimeoutError):
                fenced.gateway_namespace.call(
                    lambda: socket.create_connection((SANDBOX4, 9000), 0.3)
                )
            assert await _refused_at(source, "ingress", 6)


async def test_not_even_the_proxy_opens_a_connection_into_the_sandbox(fenced: Lab) -> None:
    def connect() -> None:
        socket.create_connection((SANDBOX4, 9000), 0.3, source_address=(GATEWAY4, PROXY_PORT))

    with fenced.sandbox_namespace.call(lambda: socket.create_server((SANDBOX4, 9000))):
        async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
            with pytest.raises(TimeoutError):
                fenced.gateway_namespace.call(connect)
            assert await _refused_at(source, "ingress", 6)


@pytest.fixture
def nested(fenced: Lab) -> Iterator[Namespace]:
    """A namespace inside the sandbox that routes through it, made after the fence."""
    name = f"{fenced.sandbox}-nested"
    ip("netns", "add", name)
    try:
        ip("-n", fenced.sandbox, "link", "add", "n0", "type", "veth", "peer", "name", "n1",
           "netns", name)  # fmt: skip
        for namespace, device, address in ((fenced.sandbox, "n0", 1), (name, "n1", 2)):
            ip("-n", namespace, "address", "add", f"10.201.0.{address}/24", "dev", device)
            ip("-n", namespace, "link", "set", device, "up")
        ip("-n", name, "route", "add", "default", "via", "10.201.0.1")
        forward = "/proc/sys/net/ipv4/ip_forward"
        fenced.sandbox_namespace.call(lambda: _write(forward, "1"))
        yield named(name)
    finally:
        ip("netns", "del", name)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:  # noqa: PTH123 - procfs
        file.write(text)


async def test_a_nested_namespace_is_refused_at_once(fenced: Lab, nested: Namespace) -> None:
    with far_side.watch(fenced) as far:
        far.strays()
        async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
            started = time.perf_counter()
            with pytest.raises(ConnectionRefusedError):
                nested.call(lambda: socket.create_connection((INTERNET4, 443), 2))
            assert time.perf_counter() - started < 1
            assert await _refused_at(source, "forward", 6)
        assert not far.strays()


async def test_a_nested_namespace_that_the_fence_knows_is_refused_as_quickly(
    fenced: Lab, nested: Namespace, spec: FenceSpec, state: StateDirectory
) -> None:
    installed = installer.install(spec, fenced.sandbox_namespace, state)
    assert installed.around.links == ("sb0", "n0")
    assert installed.around.uplinks == ("sb0",)
    ip("-n", fenced.sandbox, "neigh", "flush", "all")
    async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
        with pytest.raises(ConnectionRefusedError):
            nested.call(lambda: socket.create_connection((INTERNET4, 443), 2))
        assert await _refused_at(source, "forward", 6)


async def test_a_nested_namespace_with_a_forged_source_draws_no_answer(
    fenced: Lab, nested: Namespace
) -> None:
    """An answer quotes the packet: it would carry data wherever the forger likes."""
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


async def test_a_socket_bound_to_another_link_does_not_reach_a_false_proxy(
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
        # The reset comes by loopback, which is not the socket's device: it waits.
        with pytest.raises(TimeoutError):
            fenced.sandbox_namespace.call(connect)
        found = await taken(source, lambda record: record.destination_port == PROXY_PORT)
        links = {each.out_interface for each in found if each.destination_port == PROXY_PORT}
        assert links == {"sb1"}


async def test_a_source_route_over_the_proxy_is_refused(fenced: Lab) -> None:
    def connect() -> None:
        with socket.socket() as sock:
            hop, end = socket.inet_aton(GATEWAY4), socket.inet_aton(INTERNET4)
            sock.setsockopt(
                socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x83\x0b\x04" + hop + end + b"\0"
            )
            sock.settimeout(1)
            sock.connect((INTERNET4, PROXY_PORT))

    async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
        with pytest.raises(OSError, match=r"refused|timed out"):
            fenced.sandbox_namespace.call(connect)
        assert await _refused_at(source, "egress", 6)


@pytest.mark.parametrize("checksum", [False, True], ids=["plain", "checksum over the destination"])
async def test_a_raw_frame_to_the_proxy_is_refused(fenced: Lab, checksum: bool) -> None:
    """With PACKET_VNET_HDR a device may write a checksum over the destination, after every hook."""
    packet = packets.ip4(SANDBOX4, GATEWAY4, 6, packets.tcp(PROXY_PORT, 2))
    gateway = bytes.fromhex(GATEWAY_MAC.replace(":", ""))
    # struct virtio_net_hdr: NEEDS_CSUM, no segmentation, checksum from byte 30 at offset 0
    header = struct.pack("=BBHHHH", 1 if checksum else 0, 0, 0, 0, 30 if checksum else 0, 0)

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind(("sb0", 0))
            sock.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
            frame = packets.frame(gateway, sock.getsockname()[4], packets.ETH_IP, packet)
            with contextlib.suppress(OSError):
                sock.sendto(header + frame, ("sb0", packets.ETH_IP))

    async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
        fenced.sandbox_namespace.call(send)
        assert await _refused_at(source, "link", 6)


async def test_the_proxy_may_ask_for_the_sandbox_by_its_own_address(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    """Linux ARPs with the source of the packet it has to send: the proxy's, not the gateway's."""
    ip("-n", lab.gateway, "address", "add", "10.99.0.1/32", "dev", "lo")
    routed = type(spec)(sandbox=spec.sandbox, proxies=(endpoint("10.99.0.1:3128"),))
    installer.install(routed, lab.sandbox_namespace, state)

    def connect() -> None:
        socket.create_connection(("10.99.0.1", PROXY_PORT), 2).close()

    with lab.gateway_namespace.call(lambda: socket.create_server(("10.99.0.1", PROXY_PORT))):
        lab.sandbox_namespace.call(connect)
        ip("-n", lab.gateway, "neigh", "flush", "all")
        lab.sandbox_namespace.call(connect)


@pytest.mark.parametrize(
    ("protocol", "packet"),
    [(6, packets.tcp(9000, 0x04)), (1, b"\x03\x01" + bytes(6) + packets.PAYLOAD)],
    ids=["reset", "icmp error"],
)
async def test_what_looks_like_the_fences_own_answer_does_not_pass(
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
        assert await _refused_at(source, "egress", protocol)


async def test_a_macvlan_child_of_the_link_is_refused_at_the_link(fenced: Lab) -> None:
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
            found = await taken(source, lambda record: record.ethertype == 0x88B5)
            assert any(record.rule == "link" and record.ethertype == 0x88B5 for record in found)
            assert not [stray for stray in far.strays() if b"bypass" in stray]


async def test_ip_traffic_on_an_interface_that_came_later_is_refused(fenced: Lab) -> None:
    ip("-n", fenced.sandbox, "link", "add", "later", "type", "veth", "peer", "name", "far",
       "netns", fenced.gateway)  # fmt: skip
    ip("-n", fenced.sandbox, "address", "add", "10.202.0.2/24", "dev", "later")
    ip("-n", fenced.sandbox, "link", "set", "later", "up")
    ip("-n", fenced.gateway, "link", "set", "far", "up")
    async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
        with pytest.raises(ConnectionRefusedError):
            fenced.sandbox_namespace.call(lambda: socket.create_connection(("10.202.0.1", 80), 1))
        found = await taken(source, lambda record: record.protocol == 6)
        assert [record.out_interface for record in found if record.protocol == 6] == ["later"]


def _xdp_frame(fenced: Lab) -> None:
    frame = packets.frame(
        bytes.fromhex(GATEWAY_MAC.replace(":", "")), b"\x02\0\0\0\0\x02", 0x88B5, b"by af_xdp"
    )
    fenced.sandbox_namespace.call(lambda: xdp.send("sb0", frame))


def test_af_xdp_passes_every_hook_inside_as_the_readme_says(fenced: Lab) -> None:
    with far_side.watch(fenced) as far:
        _xdp_frame(fenced)
        assert _eventually(lambda: any(b"by af_xdp" in stray for stray in far.strays()))


async def test_the_guard_on_the_hosts_side_stops_af_xdp_and_not_the_proxy(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    guarded = _guarded(spec, lab.gateway_device)
    # The guard stands where the installer runs: here, that is the gateway's namespace.
    lab.gateway_namespace.call(
        lambda: installer.install(guarded, lab.sandbox_namespace, state, "nflog")
    )
    async with Nflog(lab.gateway_namespace, DEFAULT_GROUP) as source:
        _xdp_frame(lab)
        found = await taken(source, lambda record: record.ethertype == 0x88B5)
        assert [(record.rule, record.in_interface) for record in found] == [("guard", "gw0")]
    with lab.gateway_namespace.call(lambda: socket.create_server((GATEWAY4, PROXY_PORT))):
        lab.sandbox_namespace.call(
            lambda: socket.create_connection((GATEWAY4, PROXY_PORT), 2)
        ).close()
    lab.gateway_namespace.call(lambda: installer.remove(spec.sandbox, state))
    assert (
        lab.gateway_namespace.call(lambda: installer.verify(spec.sandbox, state)).verdict
        == "absent"
    )


def _guarded(spec: FenceSpec, device: str) -> FenceSpec:
    return type(spec)(sandbox=spec.sandbox, proxies=spec.proxies, guard_device=device)
