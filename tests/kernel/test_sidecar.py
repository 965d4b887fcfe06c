"""Connections of a pod's proxy: they and their answers pass the fence under all conditions."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import socket
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.lab import GATEWAY4, SANDBOX4, SANDBOX6, ip
from tests.kernel import conftest, sidecar, tap
from tests.kernel.sidecar import GATEWAY, OWN, PORT, PROXY_UID, SPEC, WORKLOAD_UID
from tests.kernel.users import as_user

if TYPE_CHECKING:
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_FAMILIES = pytest.mark.parametrize("family", list(GATEWAY), ids=["ip4", "ip6"])
_MEGABYTE = 1 << 20


@pytest.fixture
def pod(lab: Lab, state: StateDirectory) -> Lab:
    """Return the lab with its sandbox fenced as a pod."""
    lab.sandbox_namespace.call(sidecar.allow_ping_sockets)
    installer.install(SPEC, lab.sandbox_namespace, state, "nflog")
    return lab


@_FAMILIES
def test_only_the_proxy_connects(pod: Lab, family: socket.AddressFamily) -> None:
    with sidecar.server(pod, family, socket.SOCK_STREAM) as server:
        ours, theirs = sidecar.connected(pod, family, server)
        with ours, theirs:
            ours.sendall(b"question")
            assert theirs.recv(100) == b"question"
            theirs.sendall(b"answer")
            assert ours.recv(100) == b"answer"
        with pytest.raises(ConnectionRefusedError):
            sidecar.workload(pod, lambda: sidecar.connect(family, GATEWAY[family]))


def test_proxy_may_have_several_users(lab: Lab, state: StateDirectory) -> None:
    spec = dataclasses.replace(SPEC, proxy_uids=(0, PROXY_UID, 0))
    installer.install(spec, lab.sandbox_namespace, state, "nflog")
    reached = []
    for user in (0, PROXY_UID, WORKLOAD_UID):
        connect = as_user(
            user,
            lambda: sidecar.connect(socket.AF_INET, GATEWAY4),
            capabilities=frozenset(),
        )
        with (
            sidecar.server(lab, socket.AF_INET, socket.SOCK_STREAM),
            contextlib.suppress(ConnectionRefusedError),
            lab.sandbox_namespace.call(connect),
        ):
            reached.append(user)
    assert reached == [0, PROXY_UID]


@_FAMILIES
@pytest.mark.parametrize("is_connected", [True, False], ids=["connected", "not connected"])
def test_only_the_proxy_sends_over_udp_and_receives_answers(
    pod: Lab, family: socket.AddressFamily, is_connected: bool
) -> None:
    to = (GATEWAY[family], PORT)

    def ask(sock: socket.socket) -> None:
        sock.settimeout(60)
        if is_connected:
            sock.connect(to)
            sock.send(b"question")
        else:
            sock.sendto(b"question", to)

    def opened() -> socket.socket:
        return socket.socket(family, socket.SOCK_DGRAM)

    with sidecar.server(pod, family, socket.SOCK_DGRAM) as server:
        with sidecar.proxy(pod, opened) as sock:
            ask(sock)
            question, asker = server.recvfrom(100)
            assert question == b"question"
            server.sendto(b"answer", asker)
            assert sock.recv(100) == b"answer"
        with sidecar.workload(pod, opened) as sock, pytest.raises(PermissionError):
            ask(sock)


@_FAMILIES
def test_fragmented_answers_are_reassembled(pod: Lab, family: socket.AddressFamily) -> None:
    content = bytes(4000)
    with (
        sidecar.server(pod, family, socket.SOCK_DGRAM) as server,
        sidecar.proxy(pod, lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock,
    ):
        sock.settimeout(60)
        sock.sendto(content, (GATEWAY[family], PORT))
        question, asker = server.recvfrom(5000)
        server.sendto(question, asker)
        assert sock.recv(5000) == content

    def ping() -> bytes:
        return sidecar.ping(family, GATEWAY[family], seconds=60, content=content)

    assert sidecar.proxy(pod, ping).endswith(content)
    assert not any(sidecar.refused(pod, "ingress", each) for each in ("udp", "icmp", "ipv6-icmp"))


@_FAMILIES
def test_only_the_proxy_pings(pod: Lab, family: socket.AddressFamily) -> None:
    answer = sidecar.proxy(pod, lambda: sidecar.ping(family, GATEWAY[family], seconds=60))
    assert answer.endswith(b"bypass")
    # Over IPv6 the kernel does not report the refusal to the sender (net/ipv6/ping.c).
    with pytest.raises((PermissionError, TimeoutError)):
        sidecar.workload(pod, lambda: sidecar.ping(family, GATEWAY[family], seconds=0.2))


@_FAMILIES
def test_host_that_the_proxy_pings_cannot_ping_the_pod(
    pod: Lab, family: socket.AddressFamily
) -> None:
    pod.gateway_namespace.call(sidecar.allow_ping_sockets)
    sidecar.proxy(pod, lambda: sidecar.ping(family, GATEWAY[family], seconds=60))
    with pytest.raises(TimeoutError):
        pod.gateway_namespace.call(lambda: sidecar.ping(family, OWN[family], seconds=0.3))
    protocol = "icmp" if family == socket.AF_INET else "ipv6-icmp"
    # Refused on its way in, instead of logged as an attempt to get out when the kernel answers it.
    assert sidecar.refused(pod, "ingress", protocol) == 1


@_FAMILIES
def test_idle_connection_receives_data_after_its_flow_was_evicted(
    pod: Lab, family: socket.AddressFamily
) -> None:
    with sidecar.server(pod, family, socket.SOCK_STREAM) as server:
        ours, theirs = sidecar.connected(pod, family, server)
        with ours, theirs:
            _evict_all_flows(pod)
            theirs.sendall(b"at last")
            assert ours.recv(100) == b"at last"


@_FAMILIES
def test_connection_works_by_its_flow_without_early_demultiplexing(
    pod: Lab, family: socket.AddressFamily
) -> None:
    def without_early_demultiplexing() -> None:
        Path("/proc/sys/net/ipv4/tcp_early_demux").write_text("0", encoding="ascii")

    pod.sandbox_namespace.call(without_early_demultiplexing)
    with sidecar.server(pod, family, socket.SOCK_STREAM) as server:
        ours, theirs = sidecar.connected(pod, family, server)
        with ours, theirs:
            theirs.sendall(b"answer")
            assert ours.recv(100) == b"answer"


@_FAMILIES
def test_buffered_data_of_a_closed_proxy_connection_arrives(
    pod: Lab, family: socket.AddressFamily
) -> None:
    with sidecar.server(pod, family, socket.SOCK_STREAM) as server:
        ours, theirs = sidecar.connected(pod, family, server)
        with theirs:
            with ours:
                sent = sidecar.fill(ours)
            # The socket is closed and has no owner. Only now the receiver has room for the rest.
            assert len(_all_of(theirs)) == sent
    assert sidecar.refused(pod, "egress", "tcp") == 0
    assert sidecar.refused(pod, "ingress", "tcp") == 0


@_FAMILIES
def test_large_transfer_with_packet_loss_is_complete_and_nothing_is_refused(
    pod: Lab, family: socket.AddressFamily
) -> None:
    content = bytes(range(256)) * (20 * _MEGABYTE // 256)
    with sidecar.server(pod, family, socket.SOCK_STREAM) as server:
        ours, theirs = sidecar.connected(pod, family, server)
        # A lost packet may be sent again several times, after 0.2 s, 0.4 s, 0.8 s …
        ours.settimeout(120)
        theirs.settimeout(120)
        _drop_packets(pod)
        with theirs:
            with ours:
                echo = threading.Thread(target=_echo, args=(theirs,))
                echo.start()
                sender = threading.Thread(target=ours.sendall, args=(content,))
                sender.start()
                received = _all_of(ours, len(content))
                sender.join()
            echo.join()
    assert hashlib.sha256(received).digest() == hashlib.sha256(content).digest()
    # Retransmissions, acknowledgements in TIME_WAIT and resets had to pass too.
    sidecar.until(lambda: not _connections(pod, "LAST_ACK", "FIN_WAIT1", "CLOSING"))
    assert sidecar.refused(pod, "egress", "tcp") == 0
    assert sidecar.refused(pod, "ingress", "tcp") == 0


@_FAMILIES
def test_download_aborted_by_the_proxy_is_reset_without_a_refusal(
    pod: Lab, family: socket.AddressFamily
) -> None:
    with sidecar.server(pod, family, socket.SOCK_STREAM) as server:
        ours, theirs = sidecar.connected(pod, family, server)
        with theirs:
            theirs.setblocking(False)
            with ours:
                sidecar.fill(theirs)
            theirs.settimeout(60)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):  # noqa: PT012 - whichever
                while True:
                    theirs.sendall(bytes(_MEGABYTE))
    assert sidecar.refused(pod, "egress", "tcp") == 0
    assert sidecar.refused(pod, "ingress", "tcp") == 0


@_FAMILIES
def test_connection_works_if_the_fence_has_no_room_for_its_flow(
    pod: Lab, family: socket.AddressFamily
) -> None:
    version = 4 if family == socket.AF_INET else 6
    conftest.load(pod.sandbox_namespace, _full(version))
    with sidecar.server(pod, family, socket.SOCK_STREAM) as server:
        ours, theirs = sidecar.connected(pod, family, server)
        with ours, theirs:
            theirs.sendall(b"answer")
            assert ours.recv(100) == b"answer"


@_FAMILIES
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_hosts_outside_cannot_reach_servers_in_the_pod(
    pod: Lab, family: socket.AddressFamily, kind: socket.SocketKind
) -> None:
    def listen() -> socket.socket:
        sock = socket.socket(family, kind)
        sock.bind((OWN[family], PORT))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        sock.setblocking(False)
        return sock

    def knock() -> socket.socket:
        sock = socket.socket(family, kind)
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect((OWN[family], PORT))
            sock.send(b"from outside")
        return sock

    def is_refused_more(before: int) -> bool:
        return sidecar.refused(pod, "ingress", protocol) > before

    protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
    # The proxy's servers neither: the proxy opens its connections to the outside itself.
    for user in (PROXY_UID, WORKLOAD_UID):
        before = sidecar.refused(pod, "ingress", protocol)
        opened = as_user(user, listen, capabilities=frozenset())
        with pod.sandbox_namespace.call(opened) as own, pod.gateway_namespace.call(knock):
            sidecar.until(partial(is_refused_more, before))
            with pytest.raises(BlockingIOError):
                own.accept() if kind == socket.SOCK_STREAM else own.recv(100)


@pytest.mark.parametrize("address", ["127.0.0.1", SANDBOX4, "::1", SANDBOX6, "fe80::7"])
def test_all_users_may_use_loopback_and_the_pods_own_address(pod: Lab, address: str) -> None:
    ip("-n", pod.sandbox, "address", "add", "fe80::7/64", "dev", "sb0", "nodad")
    pod.sandbox_namespace.call(lambda: tap.wait_until_local("fe80::7"))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    scope = pod.sandbox_namespace.call(lambda: socket.if_nametoindex("sb0"))
    end = (address, PORT, 0, scope) if address.startswith("fe80:") else (address, PORT)
    with (
        sidecar.proxy(pod, lambda: socket.socket(family)) as server,
        sidecar.workload(pod, lambda: socket.socket(family)) as sock,
    ):
        server.bind(end)
        server.listen()
        sock.settimeout(60)
        sock.connect(end)
        with server.accept()[0] as accepted:
            sock.sendall(b"CONNECT")
            assert accepted.recv(100) == b"CONNECT"


def _evict_all_flows(pod: Lab) -> None:
    for name in ("proxied4", "proxied6"):
        conftest.nft(pod.sandbox_namespace, "flush", "set", "inet", "ocsf_nft", name)


def _full(version: int) -> str:
    """Return a command that fills the set of the proxy's flows."""
    host = "192.0.2.1" if version == 4 else "2001:db8::1"
    elements = ", ".join(f"{host} . {port} . {host} . {port} . udp" for port in range(65_536))
    return f"add element inet ocsf_nft proxied{version} {{ {elements} }}\n"


def _all_of(sock: socket.socket, length: int | None = None) -> bytes:
    content = bytearray()
    while length is None or len(content) < length:
        part = sock.recv(_MEGABYTE)
        if not part:
            break
        content += part
    return bytes(content)


def _echo(sock: socket.socket) -> None:
    while part := sock.recv(_MEGABYTE):
        sock.sendall(part)


def _drop_packets(pod: Lab) -> None:
    """Drop one in fifty packets, in each direction, at the far end."""
    conftest.load(
        pod.gateway_namespace,
        "table netdev lossy {\n"
        '\tchain in { type filter hook ingress device "gw0" priority 0\n'
        "\t\tether type { ip, ip6 } numgen random mod 50 < 1 drop\n\t}\n"
        '\tchain out { type filter hook egress device "gw0" priority 0\n'
        "\t\tether type { ip, ip6 } numgen random mod 50 < 1 drop\n\t}\n}\n",
    )


_STATES = {"FIN_WAIT1": "04", "CLOSING": "0B", "LAST_ACK": "09"}


def _connections(pod: Lab, *states: str) -> list[str]:
    """Return the connections of both ends that are in these states."""

    def listed() -> list[str]:
        return [
            line
            for name in ("tcp", "tcp6")
            for line in Path(f"/proc/thread-self/net/{name}").read_text("ascii").splitlines()[1:]
        ]

    selected = {_STATES[state] for state in states}
    lines = pod.sandbox_namespace.call(listed) + pod.gateway_namespace.call(listed)
    return [line for line in lines if line.split()[3] in selected]
