"""Answers of a pod's kernel: no process but the proxy gets data out by them."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import socket
import struct
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.spec import DEFAULT_GROUP
from ocsf_nft.fence.values import endpoint
from ocsf_nft.lab import INTERNET4, INTERNET6, SANDBOX4, SANDBOX6
from ocsf_nft.sources.nflog import Nflog
from tests.kernel import conftest, far_side, means, packets, sidecar
from tests.kernel.packets import ACK, FIN, PSH, RST, SYN
from tests.kernel.reading import until_found
from tests.kernel.sidecar import GATEWAY, PORT, SPEC, WORKLOAD_UID
from tests.kernel.users import CAP_NET_RAW, as_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.record import Record

pytestmark = pytest.mark.kernel

_FAMILIES = pytest.mark.parametrize("family", list(GATEWAY), ids=["ip4", "ip6"])
_STRANGER4, _STRANGER6 = "10.200.0.77", "fd00:200::77"
_RAW = frozenset({CAP_NET_RAW})


@pytest.fixture
def pod(lab: Lab, state: StateDirectory) -> Lab:
    """Return the lab with its sandbox fenced as a pod."""
    lab.sandbox_namespace.call(sidecar.allow_ping_sockets)
    installer.install(SPEC, lab.sandbox_namespace, state, "nflog")
    return lab


@_FAMILIES
@pytest.mark.parametrize(
    "flags",
    [SYN, SYN | ACK, PSH | ACK, ACK, FIN | ACK, RST],
    ids=["syn", "syn ack", "data", "ack", "fin", "rst"],
)
async def test_forged_segment_of_the_proxys_flow_is_neither_accepted_nor_answered(
    pod: Lab, family: socket.AddressFamily, flags: int
) -> None:
    """The kernel would answer with a reset that carries sequence numbers of the forger."""
    with sidecar.server(pod, family, socket.SOCK_STREAM) as server, sidecar.far(pod) as strays:
        port = sidecar.closed_proxy_port(pod, family, server)
        strays()
        forge = sidecar.forged(family, GATEWAY[family], 6, packets.tcp(port, flags, PORT))
        async with Nflog(pod.sandbox_namespace, DEFAULT_GROUP) as source:
            pod.sandbox_namespace.call(as_user(0, forge, capabilities=_RAW))
            assert await _is_logged(source, "egress" if flags == RST else "ingress")
        assert not strays()


@_FAMILIES
async def test_forged_segment_of_another_flow_is_neither_accepted_nor_answered(
    pod: Lab, family: socket.AddressFamily
) -> None:
    internet = INTERNET4 if family == socket.AF_INET else INTERNET6
    with sidecar.far(pod) as strays:
        forge = sidecar.forged(family, internet, 6, packets.tcp(9, PSH | ACK, PORT))
        async with Nflog(pod.sandbox_namespace, DEFAULT_GROUP) as source:
            pod.sandbox_namespace.call(as_user(0, forge, capabilities=_RAW))
            assert await _is_logged(source, "ingress")
        assert not strays()


@_FAMILIES
@pytest.mark.parametrize("way", ["raw socket", "frame"])
@pytest.mark.parametrize("flags", [PSH | ACK, RST], ids=["data", "rst"])
async def test_forged_segment_of_an_evicted_flow_is_neither_accepted_nor_answered(
    pod: Lab, family: socket.AddressFamily, way: str, flags: int
) -> None:
    """Five minutes without a packet evict a flow, or another user's packet with its ports."""
    with sidecar.server(pod, family, socket.SOCK_STREAM) as server, sidecar.far(pod) as strays:
        ours, theirs = sidecar.connected(pod, family, server)
        with ours, theirs:
            for name in ("proxied4", "proxied6"):
                conftest.nft(pod.sandbox_namespace, "flush", "set", "inet", "ocsf_nft", name)
            strays()
            segment = packets.tcp(ours.getsockname()[1], flags, PORT)
            forged = sidecar.forged if way == "raw socket" else sidecar.forged_frame
            async with Nflog(pod.sandbox_namespace, DEFAULT_GROUP) as source:
                forge = forged(family, GATEWAY[family], 6, segment)
                pod.sandbox_namespace.call(as_user(0, forge, capabilities=_RAW))
                is_owned_reset = flags == RST and way == "raw socket"
                assert await _is_logged(source, "egress" if is_owned_reset else "ingress")
            assert not strays()
            theirs.sendall(b"answer")
            assert ours.recv(100) == b"answer"


async def _is_logged(source: Nflog, rule: str) -> bool:
    def is_expected(record: Record) -> bool:
        return (record.rule, record.source_port) == (rule, PORT)

    return any(map(is_expected, await until_found(source, is_expected)))


@_FAMILIES
@pytest.mark.parametrize("kind", ["datagram", "echo request", "protocol"])
async def test_forged_source_gets_no_data_out_by_the_kernels_answer(
    pod: Lab, family: socket.AddressFamily, kind: str
) -> None:
    """The sender forges the source and sends to the pod. The kernel's answer has its bytes."""
    internet = INTERNET4 if family == socket.AF_INET else INTERNET6
    icmp = 1 if family == socket.AF_INET else 58
    protocol, payload = {
        "datagram": (17, packets.udp(9, packets.PAYLOAD * 20)),
        "echo request": (icmp, _echo_request(family)),
        "protocol": (253, packets.PAYLOAD * 20),
    }[kind]
    answer = protocol if kind == "echo request" else icmp

    def is_expected(record: Record) -> bool:
        found = record.rule, record.protocol, record.destination, record.uid
        return found == ("egress", answer, internet, None)

    async with Nflog(pod.sandbox_namespace, DEFAULT_GROUP) as source:
        with sidecar.far(pod) as strays:
            forge = sidecar.forged(family, internet, protocol, payload)
            pod.sandbox_namespace.call(as_user(0, forge, capabilities=_RAW))
            assert any(map(is_expected, await until_found(source, is_expected)))
            assert not strays()


async def test_icmp_error_without_any_privilege_gets_no_data_out(
    pod: Lab,
) -> None:
    def send() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
            sock.bind((INTERNET6, 5353))
            sock.sendto(b"bypass" * 100, (SANDBOX6, 9))

    def is_expected(record: Record) -> bool:
        return (record.rule, record.protocol, record.destination) == ("egress", 58, INTERNET6)

    async with Nflog(pod.sandbox_namespace, DEFAULT_GROUP) as source:
        with sidecar.far(pod) as strays:
            sidecar.workload(pod, send)
            assert any(map(is_expected, await until_found(source, is_expected)))
            assert not strays()


def test_only_the_proxy_makes_the_kernel_resolve_a_neighbour(pod: Lab) -> None:
    """The targets and times of neighbour requests could carry a message to a host on the link."""

    def sends() -> Iterator[Callable[[], object]]:
        for family, to in ((socket.AF_INET, _STRANGER4), (socket.AF_INET6, _STRANGER6)):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                yield partial(_send, family, kind, to)
            yield partial(sidecar.ping, family, to, seconds=0.01)

    with _neighbour_requests(pod) as requested:
        for send in sends():
            for user in (0, WORKLOAD_UID):
                for capabilities in (frozenset[int](), _RAW):
                    with contextlib.suppress(OSError):
                        pod.sandbox_namespace.call(as_user(user, send, capabilities=capabilities))
        raw = as_user(0, means.raw4(253, to=_STRANGER4), capabilities=_RAW)
        pod.sandbox_namespace.call(raw)
        time.sleep(0.05)
        assert not requested()
        for send in sends():
            with contextlib.suppress(OSError):
                sidecar.proxy(pod, send)
        left = {_STRANGER4, _STRANGER6}

        def are_all_asked_for() -> bool:
            left.difference_update(requested())
            return not left

        sidecar.until(are_all_asked_for)


@pytest.mark.parametrize("capabilities", [frozenset(), _RAW], ids=["", "raw"])
@pytest.mark.parametrize("to", ["127.0.0.1", "::1", SANDBOX4, SANDBOX6])
def test_packets_to_an_inner_proxys_address_do_not_leave_by_a_link(
    lab: Lab, state: StateDirectory, to: str, capabilities: frozenset[int]
) -> None:
    """A socket that is bound to a link sends even packets to 127.0.0.1 out by that link."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    host = f"[{to}]" if ":" in to else to
    spec = dataclasses.replace(SPEC, proxies=(endpoint(f"{host}:{PORT}"),))
    installer.install(spec, lab.sandbox_namespace, state, "nflog")

    def connect() -> None:
        with socket.socket(family) as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"sb0")
            sock.settimeout(0.2)
            sock.connect((to, PORT))

    with sidecar.far(lab) as strays:
        lab.sandbox_namespace.call(as_user(WORKLOAD_UID, connect, capabilities=capabilities))
        time.sleep(0.02)
        assert not strays()


def _send(family: socket.AddressFamily, kind: socket.SocketKind, to: str) -> None:
    with socket.socket(family, kind) as sock:
        sock.settimeout(0.01)
        sock.connect((to, PORT))
        sock.send(b"bypass")


def _echo_request(family: socket.AddressFamily) -> bytes:
    if family == socket.AF_INET:
        return packets.icmp_echo()
    return struct.pack("!BBHHH", 128, 0, 0, 7, 1) + packets.PAYLOAD


@contextlib.contextmanager
def _neighbour_requests(lab: Lab) -> Iterator[Callable[[], set[str]]]:
    """Yield a function that returns the neighbours requested on the link since its last call."""
    with far_side.watch(lab) as far:

        def targets() -> set[str]:
            found = set()
            for frame in far.frames():
                if frame[12:14] == b"\x08\x06":
                    found.add(str(ipaddress.IPv4Address(frame[38:42])))
                elif frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == 135:
                    found.add(str(ipaddress.IPv6Address(frame[62:78])))
            return found

        yield targets
