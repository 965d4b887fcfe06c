"""A pod to fence, and what its users do: the proxy's, the workload's, root."""

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
#: Where users of a user namespace begin in ours.
FIRST: Final = 100_000
#: The proxy of a pod, as its programs know it.
ADDRESS: Final = "127.0.0.1:3128"
SPEC: Final = FenceSpec(sandbox=POD, proxy_uids=(PROXY_UID,), proxies=(endpoint(ADDRESS),))

OWN: Final = {socket.AF_INET: SANDBOX4, socket.AF_INET6: SANDBOX6}
GATEWAY: Final = {socket.AF_INET: GATEWAY4, socket.AF_INET6: GATEWAY6}
PORT: Final = 8080
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
    """Do something in the pod as the proxy's user, who has no capability."""
    return lab.sandbox_namespace.call(as_user(PROXY_UID, work, capabilities=frozenset()))


def workload(lab: Lab, work: Callable[[], T]) -> T:
    """The same as another user."""
    return lab.sandbox_namespace.call(as_user(WORKLOAD_UID, work, capabilities=frozenset()))


def let_everybody_ping() -> None:
    """Let all groups of the calling thread's namespace have ping sockets (icmp(7))."""
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647", encoding="ascii")


def ping(
    family: socket.AddressFamily, to: str, *, seconds: float, content: bytes = b"bypass"
) -> bytes:
    """An echo request by a ping socket, and what came back; raises OSError."""
    protocol, kind = _ECHO[family]
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
        sock.settimeout(seconds)
        sock.sendto(struct.pack("!BBHHH", kind, 0, 0, 0, 1) + content, (to, 0))
        return sock.recv(5000)


def connect(family: socket.AddressFamily, to: str, port: int = PORT) -> socket.socket:
    """A connection; raises OSError."""
    # Not by create_connection: that imports more, which a user may not be allowed to read.
    sock = socket.socket(family)
    try:
        sock.settimeout(10)
        sock.connect((to, port))
    except OSError:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def server(
    lab: Lab, family: socket.AddressFamily, kind: socket.SocketKind
) -> Iterator[socket.socket]:
    """A socket on the gateway, listening where its kind does, that waits for ten seconds."""

    def made() -> socket.socket:
        sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((GATEWAY[family], PORT))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        sock.settimeout(10)
        return sock

    with lab.gateway_namespace.call(made) as sock:
        yield sock


def connected(
    lab: Lab, family: socket.AddressFamily, server: socket.socket
) -> tuple[socket.socket, socket.socket]:
    """A connection of the proxy's to the server: both ends, first the proxy's."""
    ours = proxy(lab, lambda: connect(family, GATEWAY[family]))
    theirs, _ = server.accept()
    theirs.settimeout(10)
    return ours, theirs


def refused(lab: Lab, rule: str, protocol: str) -> int:
    """How many packets of a protocol (as nft calls it) a rule of the fence refused."""
    packets = 0
    for version in (4, 6):
        table = ("netdev" if rule == "link" else "inet", "ocsf_nft")
        wanted = ("list", "set", *table, f"flows{version}_{rule}")
        listed = json.loads(nft(lab.sandbox_namespace, "-j", *wanted))
        for element in listed["nftables"][1]["set"].get("elem", ()):
            if element["elem"]["val"]["concat"][1] == protocol:
                packets += element["elem"]["counter"]["packets"]
    return packets


def fill(sock: socket.socket) -> int:
    """Send until no more fits; how many bytes did."""
    sock.setblocking(False)
    sent, end = 0, time.monotonic() + 0.3
    while time.monotonic() < end:
        try:
            sent += sock.send(bytes(65_536))
        except BlockingIOError:
            time.sleep(0.01)
    return sent


def until(true: Callable[[], object]) -> None:
    """Wait for it, at most twenty seconds."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def port_the_proxy_had(lab: Lab, family: socket.AddressFamily, server: socket.socket) -> int:
    """Of a connection that the proxy reset: nobody has it any more, not even TIME_WAIT."""
    ours, theirs = connected(lab, family, server)
    port: int = ours.getsockname()[1]
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    ours.close()
    theirs.close()
    return port


@contextlib.contextmanager
def far(lab: Lab) -> Iterator[Callable[[], list[bytes]]]:
    """What arrives at the far end, less what the kernel sends by itself."""
    with far_side.watch(lab, has_proxy=False) as watched:

        def strays() -> list[bytes]:
            time.sleep(0.02)
            return [stray for stray in watched.strays() if not _is_multicast6(stray)]

        yield strays


def _is_multicast6(frame: bytes) -> bool:
    """Before there is a fence a kernel looks for routers, and tells of its groups."""
    return frame[:2] == b"\x33\x33"


def forged(
    family: socket.AddressFamily, source: str, protocol: int, payload: bytes
) -> Callable[[], None]:
    """A packet to the pod itself, so on loopback, from whomever; the checksum in it is right."""
    packet = _forged(family, source, protocol, payload)
    whole = means.whole4 if family == socket.AF_INET else means.whole6
    return whole(packet, OWN[family])


def forged_frame(
    family: socket.AddressFamily, source: str, protocol: int, payload: bytes
) -> Callable[[], None]:
    """The same as a frame on loopback, which the pod's IP stack does not send."""
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
    """The lab with its link in a namespace that a user namespace of its own owns.

    There users count from 100,000 of ours, but for root: who there is root, is root here without a
    capability over anything of ours, for the tree that is tested is root's alone to read. With it
    comes what to put before a command for root there to run it.
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
