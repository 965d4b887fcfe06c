"""Packets that the kernel sends for sockets without an owner: only the proxy's may leave."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.fence import installer
from tests.kernel import conftest, packets, sidecar
from tests.kernel.packets import ACK, FIN
from tests.kernel.sidecar import GATEWAY, OWN, PORT, SPEC

if TYPE_CHECKING:
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_FAMILIES = pytest.mark.parametrize("family", list(GATEWAY), ids=["ip4", "ip6"])


@_FAMILIES
def test_earlier_connection_sends_nothing_when_it_is_closed(
    lab: Lab, state: StateDirectory, family: socket.AddressFamily
) -> None:
    with sidecar.server(lab, family, socket.SOCK_STREAM) as server, sidecar.far(lab) as strays:
        ours, theirs = _connected_by_the_workload(lab, family, server)
        with theirs:
            with ours:
                sidecar.fill(ours)
                _fence(lab, state)
                strays()
            # The closed socket's buffer is full, and from here on the receiver has room.
            _drain(theirs)
            assert not strays()
    assert sidecar.refused(lab, "ingress", "tcp") > 0


@_FAMILIES
def test_connection_closed_before_the_fence_sends_no_answer(
    lab: Lab, state: StateDirectory, family: socket.AddressFamily
) -> None:
    with sidecar.server(lab, family, socket.SOCK_STREAM) as server, sidecar.far(lab) as strays:
        ours, theirs = _connected_by_the_workload(lab, family, server)
        ours.close()
        theirs.recv(1)
        port = theirs.getpeername()[1]
        theirs.close()
        sidecar.until(lambda: _in_time_wait(lab, port))
        _fence(lab, state)
        strays()
        before = sidecar.refused(lab, "egress", "tcp")
        # As from the server, but on loopback, where no rule refuses it on its way in.
        conftest.nft(lab.sandbox_namespace, "insert rule inet ocsf_nft input iif lo accept")
        lab.sandbox_namespace.call(
            sidecar.forged(family, GATEWAY[family], 6, packets.tcp(port, FIN | ACK, PORT))
        )
        assert sidecar.refused(lab, "egress", "tcp") > before
        assert not strays()


@_FAMILIES
def test_user_of_the_proxys_former_port_gets_nothing_out(
    lab: Lab, state: StateDirectory, family: socket.AddressFamily
) -> None:
    _fence(lab, state)
    with sidecar.server(lab, family, socket.SOCK_STREAM) as server, sidecar.far(lab) as strays:
        port = sidecar.closed_proxy_port(lab, family, server)
        assert _flows(lab, family) == {port}
        strays()

        def connect() -> None:
            with socket.socket(family) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((OWN[family], port))
                sock.settimeout(60)
                sock.connect((GATEWAY[family], PORT))

        with pytest.raises(ConnectionRefusedError):
            sidecar.workload(lab, connect)
        assert not strays()
    # Later packets of that socket do not count as the proxy's either.
    assert not _flows(lab, family)


@_FAMILIES
def test_earlier_connection_ends_with_its_first_packet_and_loses_the_proxys_flow(
    lab: Lab, state: StateDirectory, family: socket.AddressFamily
) -> None:
    with sidecar.server(lab, family, socket.SOCK_STREAM) as server, sidecar.far(lab) as strays:
        ours, theirs = _connected_by_the_workload(lab, family, server)
        with theirs, ours:
            _fence(lab, state)
            # As if the workload had the flow's port right after the proxy.
            _store_flow(lab, family, ours.getsockname()[1])
            strays()
            ours.send(b"refused")
            with pytest.raises(ConnectionResetError):
                ours.send(b"reset")
            assert not _flows(lab, family)
        assert not strays()


def _fence(lab: Lab, state: StateDirectory) -> None:
    installer.install(SPEC, lab.sandbox_namespace, state, "nflog")


def _connected_by_the_workload(
    lab: Lab, family: socket.AddressFamily, server: socket.socket
) -> tuple[socket.socket, socket.socket]:
    ours = sidecar.workload(lab, lambda: sidecar.connect(family, GATEWAY[family]))
    theirs, _ = server.accept()
    theirs.settimeout(60)
    return ours, theirs


def _drain(sock: socket.socket) -> None:
    """Read until no data arrives for a second: TCP probes for room every 200 ms."""
    sock.settimeout(1)
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while sock.recv(1 << 20):
            pass


def _in_time_wait(lab: Lab, port: int) -> bool:
    def listed() -> str:
        return "".join(
            Path(f"/proc/thread-self/net/{name}").read_text("ascii") for name in ("tcp", "tcp6")
        )

    lines = (line.split() for line in lab.sandbox_namespace.call(listed).splitlines())
    return any(line[1].endswith(f":{port:04X}") and line[3] == "06" for line in lines)


def _flows(lab: Lab, family: socket.AddressFamily) -> set[int]:
    """Return the proxy's ports in the flows that the fence stores."""
    name = "proxied4" if family == socket.AF_INET else "proxied6"
    listed = json.loads(
        conftest.nft(lab.sandbox_namespace, "-j", "list", "set", "inet", "ocsf_nft", name)
    )
    return {
        element["elem"]["val"]["concat"][1]
        for element in listed["nftables"][1]["set"].get("elem", ())
    }


def _store_flow(lab: Lab, family: socket.AddressFamily, port: int) -> None:
    name = "proxied4" if family == socket.AF_INET else "proxied6"
    flow = f"{OWN[family]} . {port} . {GATEWAY[family]} . {PORT} . tcp"
    conftest.nft(lab.sandbox_namespace, f"add element inet ocsf_nft {name} {{ {flow} }}")
