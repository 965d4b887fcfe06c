"""Replacement of a pod's fence: nothing gets out, and the proxy is not disturbed."""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.values import exception
from ocsf_nft.lab import INTERNET4, ip
from tests.kernel import conftest, flooding, sidecar
from tests.kernel.sidecar import GATEWAY, PORT, SPEC, WORKLOAD_UID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace

pytestmark = pytest.mark.kernel

_FAMILIES = pytest.mark.parametrize("family", list(GATEWAY), ids=["ip4", "ip6"])
_FLOOD: Final = Path(__file__).with_name("flood.py")
_OTHER: Final = dataclasses.replace(SPEC, exceptions=(exception("udp:10.200.0.9:53"),))
#: Ten replacements are the minimum that includes every kind.
_TIMES = pytest.mark.parametrize(
    "times", [10, pytest.param(24, marks=(pytest.mark.slow, pytest.mark.alone))]
)


@pytest.fixture
def flood(lab: Lab) -> Iterator[subprocess.Popen[str]]:
    """Run a flood of the workload's user until the test stops it."""
    with _FLOOD.open("rb") as program:
        process = lab.sandbox_namespace.call(
            lambda: subprocess.Popen(
                ["/usr/bin/python3", "-I", "-", INTERNET4, "60"],
                stdin=program,
                stdout=subprocess.PIPE,
                text=True,
                user=WORKLOAD_UID,
                group=WORKLOAD_UID,
                extra_groups=[],
            )
        )
    flooding.wait_for_sigterm_handler(process.pid)
    yield process
    process.kill()
    process.communicate()


def _replacements(lab: Lab, state: StateDirectory, times: int) -> Iterator[None]:
    """Replace the fence in turn by another policy, for other links, and after tampering."""
    for replaced in range(times):
        if replaced % 5 == 4:
            conftest.nft(lab.sandbox_namespace, "add chain inet ocsf_nft foreign { "
                         "type filter hook output priority -5; }; "
                         "add rule inet ocsf_nft foreign accept")  # fmt: skip
        if replaced % 4 == 2:
            ip("-n", lab.sandbox, "link", "add", "late0", "type", "veth", "peer", "late1")
        elif replaced % 4 == 0 and replaced:
            ip("-n", lab.sandbox, "link", "del", "late0")
        requested = SPEC if replaced % 2 else _OTHER
        assert installer.install(requested, lab.sandbox_namespace, state, "nflog").spec == requested
        yield


@_TIMES
def test_replacement_under_a_flood_lets_nothing_out_keeps_counts_and_the_proxys_connection(
    lab: Lab,
    state: StateDirectory,
    counters: Callable[[Namespace], dict[str, int]],
    flood: subprocess.Popen[str],
    times: int,
) -> None:
    conftest.nft(lab.gateway_namespace, 'add table netdev far; add counter netdev far out; '
                 'add chain netdev far ingress '
                 '{ type filter hook ingress device "gw0" priority 0; }; '
                 "add rule netdev far ingress udp dport 9 counter name out")  # fmt: skip
    installer.install(SPEC, lab.sandbox_namespace, state, "nflog")
    out, since = counters(lab.gateway_namespace)["out"], time.monotonic()
    while time.monotonic() - since < 1:  # until earlier packets have left every queue
        if (now := counters(lab.gateway_namespace)["out"]) != out:
            out, since = now, time.monotonic()
        time.sleep(0.05)
    with sidecar.server(lab, socket.AF_INET, socket.SOCK_STREAM) as server:
        ours, theirs = sidecar.connected(lab, socket.AF_INET, server)
        with theirs, ours:
            echo = threading.Thread(target=_echo, args=(theirs,))
            echo.start()
            rounds = _Rounds(ours)
            rounds.start()
            seen = [counters(lab.sandbox_namespace)["refused_egress"]]
            seen += [
                counters(lab.sandbox_namespace)["refused_egress"]
                for _ in _replacements(lab, state, times)
            ]
            rounds.end()
            ours.shutdown(socket.SHUT_WR)
            echo.join()
    flood.terminate()
    flood.communicate(timeout=60)
    assert counters(lab.gateway_namespace)["out"] == out
    assert seen == sorted(seen)
    assert rounds.made > times
    assert sidecar.refused(lab, "egress", "tcp") == sidecar.refused(lab, "ingress", "tcp") == 0


@_TIMES
@_FAMILIES
def test_buffered_data_of_a_closed_connection_arrives_during_replacements(
    lab: Lab, state: StateDirectory, family: socket.AddressFamily, times: int
) -> None:
    installer.install(SPEC, lab.sandbox_namespace, state, "nflog")
    with sidecar.server(lab, family, socket.SOCK_STREAM) as server:
        ours, theirs = sidecar.connected(lab, family, server)
        with theirs:
            with ours:
                sent = sidecar.fill(ours)
            replacing = threading.Thread(target=lambda: list(_replacements(lab, state, times)))
            replacing.start()
            received = 0
            while part := theirs.recv(sent // times):
                received += len(part)
                time.sleep(0.01)
            replacing.join()
    assert received == sent
    assert sidecar.refused(lab, "egress", "tcp") == sidecar.refused(lab, "ingress", "tcp") == 0


@_FAMILIES
def test_udp_answer_arrives_after_a_replacement(
    lab: Lab, state: StateDirectory, family: socket.AddressFamily
) -> None:
    installer.install(SPEC, lab.sandbox_namespace, state, "nflog")
    with (
        sidecar.server(lab, family, socket.SOCK_DGRAM) as server,
        sidecar.proxy(lab, lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock,
    ):
        sock.settimeout(60)
        sock.sendto(b"question", (GATEWAY[family], PORT))
        _, asker = server.recvfrom(100)
        installer.install(_OTHER, lab.sandbox_namespace, state, "nflog")
        server.sendto(b"answer", asker)
        assert sock.recv(100) == b"answer"


class _Rounds(threading.Thread):
    """Repeated exchange of data over a connection."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._sock = sock
        self._ends = threading.Event()
        self.made = 0

    def run(self) -> None:
        while not self._ends.wait(0.001):
            self._sock.sendall(b"to and fro")
            if self._sock.recv(100) != b"to and fro":
                return
            self.made += 1

    def end(self) -> None:
        self._ends.set()
        self.join()


def _echo(sock: socket.socket) -> None:
    while part := sock.recv(100):
        sock.sendall(part)
