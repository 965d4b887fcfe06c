"""Pods with exceptions, with another link, and with nested namespaces."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson
import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.spec import DEFAULT_GROUP
from ocsf_nft.fence.values import exception
from ocsf_nft.lab import GATEWAY4, GATEWAY_MAC, INTERNET4, SANDBOX4, SANDBOX6, ip, new_namespace
from ocsf_nft.sources.nflog import Nflog
from tests.kernel import command, conftest, packets, sidecar
from tests.kernel.reading import refused_at, until_found
from tests.kernel.sidecar import GATEWAY, PORT, SPEC, WORKLOAD_UID
from tests.kernel.users import CAP_NET_RAW, as_user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace
    from ocsf_nft.record import Record

pytestmark = pytest.mark.kernel

_FAMILIES = pytest.mark.parametrize("family", list(GATEWAY), ids=["ip4", "ip6"])
_EXCEPTIONS: Final = tuple(
    exception(
        f"{protocol}:[{address}]:{PORT}" if ":" in address else f"{protocol}:{address}:{PORT}"
    )
    for protocol in ("tcp", "udp")
    for address in GATEWAY.values()
)
_NESTED4: Final = "10.201.0.2"
_MPTCP: Final = 262  # IPPROTO_MPTCP
_FEW_PORTS: Final = range(40_000, 40_010)


@pytest.fixture
def pod(lab: Lab, state: StateDirectory) -> Lab:
    """Return the lab with its sandbox fenced as a pod whose users may all reach one service."""
    spec = dataclasses.replace(SPEC, exceptions=_EXCEPTIONS)
    installer.install(spec, lab.sandbox_namespace, state, "nflog")
    return lab


@pytest.fixture
def nested(lab: Lab) -> Iterator[Namespace]:
    """Create a namespace inside the pod that routes through the pod."""
    name = f"{lab.sandbox}-nested"
    with new_namespace(name) as made:
        ip("-n", lab.sandbox, "link", "add", "n0", "type", "veth", "peer", "name", "n1",
           "netns", name)  # fmt: skip
        ip("-n", lab.sandbox, "address", "add", "10.201.0.1/24", "dev", "n0")
        ip("-n", lab.sandbox, "link", "set", "n0", "up")
        ip("-n", name, "address", "add", f"{_NESTED4}/24", "dev", "n1")
        ip("-n", name, "link", "set", "n1", "up")
        ip("-n", name, "route", "add", "default", "via", "10.201.0.1")
        lab.sandbox_namespace.call(_forward)
        yield made


def _forward() -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")


@_FAMILIES
def test_all_users_reach_an_exception_and_receive_answers(
    pod: Lab, family: socket.AddressFamily
) -> None:
    for user in (0, WORKLOAD_UID, sidecar.PROXY_UID):
        connect = as_user(
            user, lambda: sidecar.connect(family, GATEWAY[family]), capabilities=frozenset()
        )
        with (
            sidecar.server(pod, family, socket.SOCK_STREAM) as server,
            pod.sandbox_namespace.call(connect) as ours,
            server.accept()[0] as theirs,
        ):
            ours.sendall(b"question")
            assert theirs.recv(100) == b"question"
            theirs.sendall(b"answer")
            assert ours.recv(100) == b"answer"
        opened = as_user(
            user, lambda: socket.socket(family, socket.SOCK_DGRAM), capabilities=frozenset()
        )
        with (
            sidecar.server(pod, family, socket.SOCK_DGRAM) as server,
            pod.sandbox_namespace.call(opened) as sock,
        ):
            sock.settimeout(60)
            sock.sendto(b"question", (GATEWAY[family], PORT))
            server.sendto(b"answer", server.recvfrom(100)[1])
            assert sock.recv(100) == b"answer"


@_FAMILIES
def test_buffered_data_of_a_closed_connection_to_an_exception_arrives(
    pod: Lab, family: socket.AddressFamily
) -> None:
    with sidecar.server(pod, family, socket.SOCK_STREAM) as server:
        ours = sidecar.workload(pod, lambda: sidecar.connect(family, GATEWAY[family]))
        theirs, _ = server.accept()
        with theirs:
            theirs.settimeout(60)
            with ours:
                sent = sidecar.fill(ours)
            received = 0
            while part := theirs.recv(1 << 20):
                received += len(part)
            assert received == sent
    for rule in ("egress", "ingress", "link"):
        assert sidecar.refused(pod, rule, "tcp") == 0


async def test_source_route_over_an_exception_is_refused(pod: Lab) -> None:
    def connect() -> None:
        with socket.socket() as sock:
            hop, end = socket.inet_aton(GATEWAY4), socket.inet_aton(INTERNET4)
            route = b"\x83\x0b\x04" + hop + end + b"\0"
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, route)
            sock.settimeout(1)
            with contextlib.suppress(OSError):
                sock.connect((INTERNET4, PORT))

    # A source route needs this capability. A router at the exception's address would forward it.
    attempt = as_user(WORKLOAD_UID, connect, capabilities=frozenset({CAP_NET_RAW}))
    async with Nflog(pod.sandbox_namespace, DEFAULT_GROUP) as source:
        with sidecar.far(pod) as strays:
            pod.sandbox_namespace.call(attempt)
            assert await refused_at(source, "egress", 6)
            assert not strays()


async def test_socket_bound_to_another_link_does_not_reach_an_exceptions_address_there(
    lab: Lab, state: StateDirectory
) -> None:
    ip("-n", lab.sandbox, "link", "add", "sb1", "type", "veth", "peer", "name", "far1",
       "netns", lab.gateway)  # fmt: skip
    ip("-n", lab.sandbox, "link", "set", "sb1", "up")
    spec = dataclasses.replace(SPEC, exceptions=_EXCEPTIONS)
    installer.install(spec, lab.sandbox_namespace, state, "nflog")

    def connect() -> None:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"sb1")
            sock.settimeout(0.3)
            sock.connect((GATEWAY4, PORT))

    async with Nflog(lab.sandbox_namespace, DEFAULT_GROUP) as source:
        sidecar.workload(lab, connect)
        found = await until_found(source, lambda record: record.destination_port == PORT)
        about_it = [each for each in found if each.destination_port == PORT]
        assert {(each.out_interface, each.uid) for each in about_it} == {("sb1", WORKLOAD_UID)}


def test_nested_namespace_gets_no_packet_out_and_no_answer(
    pod: Lab, nested: Namespace, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    where = ("--sandbox", sidecar.POD, "--state-dir", str(state.path), "--output", str(output))
    with sidecar.far(pod) as strays, command.running(*where) as running:
        with nested.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.connect((INTERNET4, 53))
            sock.send(b"bypass")
            sidecar.until(lambda: b'"forward"' in output.read_bytes())
            sock.send(b"the first datagram caused no error")
        assert running.stop(signal.SIGTERM)[0] == 0
        assert not strays()
    events = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    about_it = [event for event in events if event.get("dst_endpoint", {}).get("ip") == INTERNET4]
    assert sum(event["count"] for event in about_it) == 2
    for event in about_it:
        assert event["connection_info"]["direction"] == "Unknown"
        assert "status_code" not in event


@pytest.mark.parametrize("kind", ["tcp", "udp", "raw", "frame"])
async def test_nested_namespace_with_a_device_on_the_link_is_refused_at_the_link(
    pod: Lab, nested: Namespace, kind: str
) -> None:
    """Its packets pass only this hook of the pod, and have neither owner nor address there."""
    name = f"{pod.sandbox}-nested"
    ip("-n", pod.sandbox, "link", "add", "link", "sb0", "name", "child", "type", "macvlan")
    ip("-n", pod.sandbox, "link", "set", "child", "netns", name)
    ip("-n", name, "link", "set", "child", "up")
    ip("-n", name, "address", "add", "10.200.0.9/24", "dev", "child")
    ip("-n", name, "neigh", "add", GATEWAY4, "lladdr", GATEWAY_MAC, "dev", "child")
    gateway = bytes.fromhex(GATEWAY_MAC.replace(":", ""))
    solicitation = packets.ip6(
        SANDBOX6, "ff02::1", 58, packets.solicitation(packets.PAYLOAD.ljust(16)), hop_limit=255
    )

    def attempt() -> None:
        sort, protocol = {
            "tcp": (socket.SOCK_STREAM, 0),
            "udp": (socket.SOCK_DGRAM, 0),
            "raw": (socket.SOCK_RAW, 253),
        }[kind]
        with socket.socket(socket.AF_INET, sort, protocol) as sock, contextlib.suppress(OSError):
            sock.settimeout(0.1)
            sock.connect((GATEWAY4, 0 if kind == "raw" else PORT))
            sock.send(packets.PAYLOAD)

    def send() -> None:
        frame = packets.frame(gateway, b"\2\0\0\0\0\x09", packets.ETH_IP6, solicitation)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind(("child", 0))
            with contextlib.suppress(OSError):
                sock.send(frame)

    protocol_number = {"tcp": 6, "udp": 17, "raw": 253, "frame": 58}[kind]

    def is_expected(record: Record) -> bool:
        return (record.rule, record.protocol) == ("link", protocol_number)

    async with Nflog(pod.sandbox_namespace, DEFAULT_GROUP) as source:
        with sidecar.far(pod) as strays:
            nested.call(send if kind == "frame" else attempt)
            assert any(map(is_expected, await until_found(source, is_expected)))
            assert not strays()


async def test_kernels_own_multipath_connection_is_refused(pod: Lab) -> None:
    """With Multipath TCP the server announces another address, and the kernel connects to it."""
    other = "10.200.0.3"
    for namespace in (pod.sandbox, pod.gateway):
        ip("-n", namespace, "mptcp", "limits", "set", "subflow", "2", "add_addr_accepted", "2")
    ip("-n", pod.gateway, "address", "add", f"{other}/24", "dev", "gw0")
    ip("-n", pod.gateway, "mptcp", "endpoint", "add", other, "dev", "gw0", "signal")
    pod.sandbox_namespace.call(_connect_from_few_ports)
    # As if the proxy had already had every flow that the kernel may choose.
    flows = ", ".join(f"{SANDBOX4} . {port} . {other} . {PORT}" for port in _FEW_PORTS)
    flows_of_tcp = flows.replace(f" . {PORT}", f" . {PORT} . tcp")
    for family, elements in (("inet", flows_of_tcp), ("netdev", flows)):
        conftest.nft(
            pod.sandbox_namespace, f"add element {family} ocsf_nft proxied4 {{ {elements} }}"
        )

    def listen() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, _MPTCP)
        sock.bind(("", PORT))
        sock.listen()
        return sock

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, _MPTCP)
        sock.settimeout(60)
        sock.connect((GATEWAY4, PORT))
        return sock

    def is_expected(record: Record) -> bool:
        return (record.rule, record.destination, record.uid) == ("egress", other, None)

    async with Nflog(pod.sandbox_namespace, DEFAULT_GROUP) as source:
        with (
            sidecar.far(pod) as strays,
            pod.gateway_namespace.call(listen) as server,
            sidecar.workload(pod, connect) as ours,
            server.accept()[0] as theirs,
        ):
            ours.sendall(b"to the exception")
            assert theirs.recv(100) == b"to the exception"
            theirs.sendall(b"with another address")
            found: list[Record] = []
            end = time.monotonic() + 30  # a kernel worker opens the other path
            while not any(map(is_expected, found)) and time.monotonic() < end:
                found += await until_found(source, is_expected)
            assert any(map(is_expected, found))
            address = socket.inet_aton(other)
            assert not [stray for stray in strays() if stray[30:34] == address]


def _connect_from_few_ports() -> None:
    first, last = _FEW_PORTS[0], _FEW_PORTS[-1]
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"{first} {last}", encoding="ascii")


def test_proxy_with_the_capability_may_send_frames_of_any_kind(pod: Lab) -> None:
    gateway = bytes.fromhex(GATEWAY_MAC.replace(":", ""))

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind(("sb0", 0))
            sock.send(packets.frame(gateway, b"\2\0\0\0\0\x02", 0x88B5, b"by the proxy"))

    with sidecar.far(pod) as strays:
        pod.sandbox_namespace.call(
            as_user(sidecar.PROXY_UID, send, capabilities=frozenset({CAP_NET_RAW}))
        )
        sidecar.until(lambda: any(b"by the proxy" in stray for stray in strays()))
