"""A pod to fence, and actions of its users: the proxy's user, the workload's user, root."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.values import endpoint
from ocsf_nft.lab import GATEWAY4, GATEWAY6, SANDBOX4, SANDBOX6, ip, set_sysctls
from tests.kernel import far_side, means, packets
from tests.kernel.conftest import nft
from tests.kernel.users import as_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.lab import Lab

T = TypeVar("T")

POD: Final = "pod"
PROXY_UID: Final = 3128
WORKLOAD_UID: Final = 1001
#: The first user of the user namespace, as the initial user namespace numbers it.
FIRST: Final = 100_000
#: Address of the proxy, for the programs in the pod.
ADDRESS: Final = "127.0.0.1:3128"
SPEC: Final = FenceSpec(sandbox=POD, proxy_uids=(PROXY_UID,), proxies=(endpoint(ADDRESS),))

OWN: Final = {socket.AF_INET: SANDBOX4, socket.AF_INET6: SANDBOX6}
GATEWAY: Final = {socket.AF_INET: GATEWAY4, socket.AF_INET6: GATEWAY6}
PORT: Final = 8080
#: Guards against waiting forever: a thread or a subprocess may be held up for seconds.
_SECONDS: Final = 60
_LINK: Final = f"""
link set lo up
address add {SANDBOX4}/24 dev sb0
address add {SANDBOX6}/64 dev sb0 nodad
link set sb0 up
route add default via {GATEWAY4}
route add ::/0 via {GATEWAY6}
"""
_RESET_ON_CLOSE: Final = struct.pack("=ii", 1, 0)  # struct linger
_CHECKSUM_AT: Final = {6: 16, 17: 6, 58: 2}
_ECHO: Final = {
    socket.AF_INET: (socket.IPPROTO_ICMP, 8),
    socket.AF_INET6: (socket.IPPROTO_ICMPV6, 128),
}


def proxy(lab: Lab, work: Callable[[], T]) -> T:
    """Run ``work`` in the pod as the proxy's user, without capabilities."""
    return lab.sandbox_namespace.call(as_user(PROXY_UID, work, capabilities=frozenset()))


def workload(lab: Lab, work: Callable[[], T]) -> T:
    """Run ``work`` in the pod as the workload's user, without capabilities."""
    return lab.sandbox_namespace.call(as_user(WORKLOAD_UID, work, capabilities=frozenset()))


def allow_ping_sockets() -> None:
    """Allow ping sockets to all groups of the calling thread's namespace (icmp(7))."""
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647", encoding="ascii")


def ping(
    family: socket.AddressFamily, to: str, *, seconds: float, content: bytes = b"bypass"
) -> bytes:
    """Send an echo request by a ping socket and return the answer; raises OSError."""
    protocol, kind = _ECHO[family]
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
        sock.settimeout(seconds)
        sock.sendto(struct.pack("!BBHHH", kind, 0, 0, 0, 1) + content, (to, 0))
        return sock.recv(5000)


def connect(family: socket.AddressFamily, to: str, port: int = PORT) -> socket.socket:
    """Return a new connection; raises OSError."""
    # create_connection imports further modules, which the user may have no permission to read.
    sock = socket.socket(family)
    try:
        sock.settimeout(_SECONDS)
        sock.connect((to, port))
    except OSError:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def server(
    lab: Lab, family: socket.AddressFamily, kind: socket.SocketKind
) -> Iterator[socket.socket]:
    """Open a server socket on the gateway, with a timeout of a minute."""

    def made() -> socket.socket:
        sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((GATEWAY[family], PORT))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        sock.settimeout(_SECONDS)
        return sock

    with lab.gateway_namespace.call(made) as sock:
        yield sock


def connected(
    lab: Lab, family: socket.AddressFamily, server: socket.socket
) -> tuple[socket.socket, socket.socket]:
    """Connect the proxy to the server; return the proxy's end and the server's end."""
    ours = proxy(lab, lambda: connect(family, GATEWAY[family]))
    theirs, _ = server.accept()
    theirs.settimeout(_SECONDS)
    return ours, theirs


def refused(lab: Lab, rule: str, protocol: str) -> int:
    """Return the number of refused packets of a rule and a protocol (nft's name for it)."""
    packets = 0
    for version in (4, 6):
        table = ("netdev" if rule == "link" else "inet", "ocsf_nft")
        command = ("list", "set", *table, f"flows{version}_{rule}")
        listed = json.loads(nft(lab.sandbox_namespace, "-j", *command))
        for element in listed["nftables"][1]["set"].get("elem", ()):
            if element["elem"]["val"]["concat"][1] == protocol:
                packets += element["elem"]["counter"]["packets"]
    return packets


def fill(sock: socket.socket) -> int:
    """Send until the buffers are full; return the number of sent bytes."""
    sock.setblocking(False)
    sent, end = 0, time.monotonic() + 0.3
    while time.monotonic() < end:
        try:
            sent += sock.send(bytes(65_536))
        except BlockingIOError:
            time.sleep(0.01)
    return sent


def until(is_true: Callable[[], object]) -> None:
    """Wait until ``is_true`` returns a true value, at most a minute."""
    end = time.monotonic() + _SECONDS
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.02)


def closed_proxy_port(lab: Lab, family: socket.AddressFamily, server: socket.socket) -> int:
    """Return the port of a connection that the proxy reset: now unused, without TIME_WAIT."""
    ours, theirs = connected(lab, family, server)
    port: int = ours.getsockname()[1]
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    ours.close()
    theirs.close()
    return port


@contextlib.contextmanager
def far(lab: Lab) -> Iterator[Callable[[], list[bytes]]]:
    """Capture frames at the far end, without those that the kernel sends by itself."""
    with far_side.watch(lab, has_proxy=False) as watched:

        def strays() -> list[bytes]:
            time.sleep(0.02)
            return [stray for stray in watched.strays() if not _is_multicast6(stray)]

        yield strays


def _is_multicast6(frame: bytes) -> bool:
    """Return whether it is IPv6 multicast: a kernel solicits routers and reports its groups."""
    return frame[:2] == b"\x33\x33"


def forged(
    family: socket.AddressFamily, source: str, protocol: int, payload: bytes
) -> Callable[[], None]:
    """Send a packet from any source to the pod itself, on loopback, with a valid checksum."""
    packet = _forged(family, source, protocol, payload)
    whole = means.whole4 if family == socket.AF_INET else means.whole6
    return whole(packet, OWN[family])


def forged_frame(
    family: socket.AddressFamily, source: str, protocol: int, payload: bytes
) -> Callable[[], None]:
    """Send it as a frame on loopback, which bypasses the sending side of the pod's IP stack."""
    kind = packets.ETH_IP if family == socket.AF_INET else packets.ETH_IP6
    frame = packets.frame(bytes(6), bytes(6), kind, _forged(family, source, protocol, payload))

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind(("lo", 0))
            sock.send(frame)

    return send


def _forged(family: socket.AddressFamily, source: str, protocol: int, payload: bytes) -> bytes:
    own = OWN[family]
    if family == socket.AF_INET:
        if protocol == socket.IPPROTO_TCP:
            payload = _with_checksum(source, own, protocol, payload)
        return packets.ip4(source, own, protocol, payload)
    if protocol in _CHECKSUM_AT:
        payload = _with_checksum(source, own, protocol, payload)
    return packets.ip6(source, own, protocol, payload)


def _with_checksum(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    at = _CHECKSUM_AT[protocol]
    ends = b"".join(ipaddress.ip_address(end).packed for end in (source, destination))
    empty = payload[:at] + bytes(2) + payload[at + 2 :]
    total = packets.checksum(ends + struct.pack("!HH", protocol, len(payload)) + empty)
    return payload[:at] + struct.pack("!H", total) + payload[at + 2 :]


@contextlib.contextmanager
def rootless(lab: Lab) -> Iterator[tuple[Lab, list[str]]]:
    """Yield the lab with its link in a namespace of a new user namespace, and a command prefix.

    The new users map to 100,000 and above. Root maps to root, because only root may read the tested
    tree. Inside, root has no capability over the machine. The prefix runs a command as that root.
    """
    users = [
        part
        for kind in ("users", "groups")
        for part in (f"--map-{kind}=0:0:1", f"--map-{kind}=1:{FIRST + 1}:65535")
    ]
    with subprocess.Popen(
        ["unshare", "--user", *users, "--net", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"ready")
        assert holder.stdout.read(5) == b"ready"
        made = dataclasses.replace(lab, sandbox=f"/proc/{holder.pid}/ns/net")
        ip("-n", lab.sandbox, "link", "set", "sb0", "netns", str(holder.pid))
        made.sandbox_namespace.call(set_sysctls)
        try:
            made.sandbox_namespace.call(
                lambda: subprocess.run(["ip", "-batch", "-"], input=_LINK, text=True, check=True)
            )
            enter = ["nsenter", f"--target={holder.pid}", "--user", "--net"]
            yield made, [*enter, "--setuid=0", "--setgid=0"]
        finally:
            holder.stdin.close()
