"""Named network namespaces that a test makes and deletes, with a route to nowhere."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft.lab import INTERNET4, ip, set_sysctls
from ocsf_nft.netns import named

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Proxy of the sandboxes, at an address of the peer that nobody has.
PROXY: Final = "10.250.0.1:3128"
#: Prints the outcome for each port: ``refused``, ``sent`` as soon as the packet has arrived at the
#: other end of the interface, or the name of another error.
_CONNECT: Final = """
import errno, select, socket, struct, sys

def is_to(frame, port):
    # A TCP packet, after Ethernet and an IPv4 header of 20 bytes.
    is_tcp = frame[12:14] == b"\\x08\\0" and frame[23] == socket.IPPROTO_TCP
    return is_tcp and frame[36:38] == struct.pack("!H", port)

def attempt(sock, peer, port):
    sock.setblocking(False)
    code = sock.connect_ex((sys.argv[1], port))
    waiting = select.poll()
    waiting.register(sock, select.POLLOUT)
    waiting.register(peer, select.POLLIN)
    while code == errno.EINPROGRESS:
        ready = dict(waiting.poll(5000))
        if sock.fileno() in ready:
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        elif not ready:
            code = errno.ETIMEDOUT
        elif is_to(peer.recv(2048), port):
            return "sent"
    if code == errno.ECONNREFUSED:
        return "refused"
    return type(OSError(code, "")).__name__ if code else None

with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as peer:
    peer.bind(("peer", 0))
    for port in map(int, sys.argv[2:]):
        with socket.socket() as sock:
            if outcome := attempt(sock, peer, port):
                print(port, outcome)
"""


@contextlib.contextmanager
def names(number: int) -> Iterator[tuple[str, ...]]:
    """Yield names for namespaces that the test makes; delete those that exist at the end."""
    prefix = f"ocsf-nft-{secrets.token_hex(3)}"
    found = tuple(f"{prefix}-{each}" for each in range(number))
    try:
        yield found
    finally:
        for name in found:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def make(name: str) -> None:
    """Make a namespace in which packets to the internet leave through an interface."""
    ip("netns", "add", name)
    furnish(name)


def furnish(name: str) -> None:
    """Give a namespace an interface with IPv4, and a route to the internet."""
    named(name).call(set_sysctls)
    _ip_batch(name, "link set lo up", "link add uplink type veth peer name peer")
    named(name).call(_without_ipv6)
    _ip_batch(
        name,
        "link set uplink up",
        "link set peer up",
        # Before the address, which shows a run that it is the uplink: later it would be a change.
        "neigh add 10.250.0.1 lladdr 02:00:00:00:00:09 dev uplink",
        "addr add 10.250.0.2/24 dev uplink",
        "route add default via 10.250.0.1",
    )


def _ip_batch(name: str, *commands: str) -> None:
    """Run commands of ip(8) in a namespace, with one process."""
    batch = ["ip", "-n", name, "-batch", "-"]
    subprocess.run(batch, input="\n".join(commands), text=True, check=True)


def _without_ipv6() -> None:
    """Turn IPv6 off for both devices. Otherwise, the kernel itself sends packets."""
    for device in ("uplink", "peer"):
        Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6").write_text("1", encoding="ascii")


def delete(name: str) -> None:
    """Delete a namespace."""
    ip("netns", "del", name)


def connect(name: str, *ports: int) -> dict[int, str]:
    """Try to connect to ports of a host on the internet; return each outcome, as ``refused``."""
    command = [sys.executable, "-c", _CONNECT, INTERNET4, *map(str, ports)]
    done = named(name).call(
        lambda: subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    )
    return {int(port): how for port, how in map(str.split, done.stdout.splitlines())}
