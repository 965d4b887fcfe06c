"""Flows other than from the sandbox to its proxy are blocked, whenever they were opened."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.spec import DEFAULT_GROUP
from ocsf_nft.fence.values import endpoint
from ocsf_nft.lab import GATEWAY4, GATEWAY6, INTERNET4, PROXY_PORT, SANDBOX4, ip
from ocsf_nft.sources.nflog import Nflog
from tests.kernel import far_side, packets
from tests.kernel.reading import refused_at, until_found

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace
    from ocsf_nft.record import Record

pytestmark = pytest.mark.kernel

#: Guards against waiting forever for what must arrive: a thread may be held up for seconds.
_SECONDS = 60


@contextlib.contextmanager
def established(
    client: Namespace, server: Namespace, address: str
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Open a TCP connection between two namespaces; return the client's and the server's socket."""
    with (
        server.call(lambda: socket.create_server((address, 9000))) as listener,
        client.call(lambda: socket.create_connection((address, 9000), _SECONDS)) as near,
        listener.accept()[0] as far,
    ):
        yield near, far


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
            assert await refused_at(source, "egress", 6)
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
            assert await refused_at(source, "egress", 6)
        assert not far.strays()


async def test_a_datagram_from_outside_is_not_answered(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    def bound(address: str) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((address, 9001))
        sock.settimeout(_SECONDS)
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
            assert await refused_at(source, "egress", 17)
            outside.sendto(b"another question", (SANDBOX4, 9001))
            assert await refused_at(source, "ingress", 17)
        assert not far.strays()


async def test_a_connection_from_outside_does_not_come_in(fenced: Lab) -> None:
    with fenced.sandbox_namespace.call(lambda: socket.create_server((SANDBOX4, 9000))):
        async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
            with pytest.raises(TimeoutError):
                fenced.gateway_namespace.call(
                    lambda: socket.create_connection((SANDBOX4, 9000), 0.3)
                )
            assert await refused_at(source, "ingress", 6)


async def test_proxy_can_not_open_a_connection_into_the_sandbox(fenced: Lab) -> None:
    def connect() -> None:
        socket.create_connection((SANDBOX4, 9000), 0.3, source_address=(GATEWAY4, PROXY_PORT))

    with fenced.sandbox_namespace.call(lambda: socket.create_server((SANDBOX4, 9000))):
        async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
            with pytest.raises(TimeoutError):
                fenced.gateway_namespace.call(connect)
            assert await refused_at(source, "ingress", 6)


@pytest.mark.parametrize(
    ("family", "proxy"), [(socket.AF_INET, GATEWAY4), (socket.AF_INET6, GATEWAY6)]
)
def test_the_proxy_is_found_on_the_link_and_reached(
    fenced: Lab, family: socket.AddressFamily, proxy: str
) -> None:
    def exchange() -> bytes:
        with socket.create_connection((proxy, PROXY_PORT), _SECONDS) as sock:
            sock.sendall(b"hello")
            return sock.recv(16)

    with fenced.gateway_namespace.call(
        lambda: socket.create_server((proxy, PROXY_PORT), family=family)
    ) as listener:
        for end in (fenced.sandbox, fenced.gateway):
            ip("-n", end, "neigh", "flush", "all")
        answer = threading.Thread(target=_echo, args=(listener,))
        answer.start()
        assert fenced.sandbox_namespace.call(exchange) == b"hello"
        answer.join()


def _echo(listener: socket.socket) -> None:
    listener.settimeout(_SECONDS)
    with contextlib.suppress(TimeoutError), listener.accept()[0] as sock:
        sock.settimeout(_SECONDS)
        sock.sendall(sock.recv(16))


async def test_the_proxy_may_ask_for_the_sandbox_by_its_own_address(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    """Linux sends ARP with the source of the packet to send: the proxy's, not the gateway's."""
    ip("-n", lab.gateway, "address", "add", "10.99.0.1/32", "dev", "lo")
    routed = type(spec)(sandbox=spec.sandbox, proxies=(endpoint("10.99.0.1:3128"),))
    installer.install(routed, lab.sandbox_namespace, state)

    def connect() -> None:
        socket.create_connection(("10.99.0.1", PROXY_PORT), _SECONDS).close()

    with lab.gateway_namespace.call(lambda: socket.create_server(("10.99.0.1", PROXY_PORT))):
        lab.sandbox_namespace.call(connect)
        ip("-n", lab.gateway, "neigh", "flush", "all")
        lab.sandbox_namespace.call(connect)


def _with_checksum(segment: bytes, source: str, destination: str) -> bytes:
    """Return the TCP segment with its checksum: the kernel sends no reset without it."""
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    total = packets.checksum(ends + struct.pack("!HH", 6, len(segment)) + segment)
    return segment[:16] + struct.pack("!H", total) + segment[18:]


@pytest.mark.parametrize(
    ("protocol", "payload", "answer"),
    [(6, _with_checksum(packets.tcp(443, 2), INTERNET4, GATEWAY4), 6), (17, packets.udp(53), 1)],
    ids=["reset", "icmp error"],
)
async def test_a_refusal_is_not_sent_outside_to_a_forged_source(
    fenced: Lab, protocol: int, payload: bytes, answer: int
) -> None:
    """A forger could choose its bytes: the sequence number, or the quoted packet."""
    forged = packets.ip4(INTERNET4, GATEWAY4, protocol, payload)

    def send() -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock,
            contextlib.suppress(OSError),
        ):
            sock.sendto(forged, (GATEWAY4, 0))

    def is_expected(record: Record) -> bool:
        seen = record.rule, record.protocol, record.destination, record.out_interface, record.uid
        return seen == ("egress", answer, INTERNET4, fenced.sandbox_device, None)

    async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
        with far_side.watch(fenced) as far:
            far.strays()
            fenced.sandbox_namespace.call(send)
            assert any(map(is_expected, await until_found(source, is_expected)))
            assert not far.strays()


async def test_unknown_host_on_the_link_gets_no_arp_answer(fenced: Lab) -> None:
    """By default the kernel answers ARP for any sender."""
    question = packets.frame(
        b"\xff" * 6,
        stranger := b"\2\0\0\0\0\x77",
        packets.ETH_ARP,
        packets.arp("10.200.0.77", SANDBOX4, stranger),
    )

    def ask() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind((fenced.gateway_device, 0))
            sock.send(question)

    def is_expected(record: Record) -> bool:
        return (record.rule, record.ethertype) == ("link", packets.ETH_ARP)

    async with Nflog(fenced.sandbox_namespace, DEFAULT_GROUP) as source:
        with far_side.watch(fenced) as far:
            far.strays()
            fenced.gateway_namespace.call(ask)
            assert any(map(is_expected, await until_found(source, is_expected)))
            assert not far.strays()
