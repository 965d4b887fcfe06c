"""Counted attempts to leave a sandbox, which the kernel logs for the tests of the sources.

Run as a program, inside the sandbox and as the selected user, this file makes the attempts.
Imported, it gives the expected attempts.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ocsf_nft.netns import Namespace

INTERNET4: Final = "203.0.113.7"
INTERNET6: Final = "2001:db8::7"
PORT: Final = 443
EXPERIMENT: Final = 253  # RFC 3692
GROUP: Final = 71

#: (kind, IP version, protocol number, destination port)
UNPRIVILEGED: Final = (
    ("tcp4", 4, 6, PORT),
    ("tcp6", 6, 6, PORT),
    ("udp4", 4, 17, PORT),
    ("udp6", 6, 17, PORT),
    ("ping4", 4, 1, None),
    ("ping6", 6, 58, None),
)
PRIVILEGED: Final = (("raw4", 4, EXPERIMENT, None), ("raw6", 6, EXPERIMENT, None))

_RULES: Final = """
table inet attempts {{
    counter refused {{ }}
    chain refuse {{
        {log}
        counter name refused drop
    }}
    chain output {{
        type filter hook output priority 0; policy accept;
        ip daddr {four} jump refuse
        ip6 daddr {six} jump refuse
    }}
}}
"""


def fence(namespace: Namespace, sandbox: str, *, nflog: bool = False, kmsg: bool = False) -> None:
    """Refuse and count packets to the internet, and log them if requested."""
    prefix = f"ocsf-nft:{sandbox}:egress:"
    logs = [f'log prefix "{prefix}" group {GROUP} snaplen 128'] if nflog else []
    logs += [f'log prefix "{prefix}" flags all'] if kmsg else []
    rules = _RULES.format(log="\n        ".join(logs), four=INTERNET4, six=INTERNET6)
    namespace.call(lambda: subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True))
    namespace.call(allow_ping)


def refused(namespace: Namespace) -> int:
    """Return the number of packets that the kernel refused."""
    listed = namespace.call(
        lambda: subprocess.run(
            ["nft", "list", "counter", "inet", "attempts", "refused"],
            capture_output=True,
            text=True,
            check=True,
        )
    )
    return int(listed.stdout.split("packets")[1].split()[0])


def attempt(namespace: Namespace, uid: int, times: int, *kinds: str) -> None:
    """Make each kind of attempt ``times`` times, as the user ``uid``."""
    if namespace.call(lambda: _program(uid, times, *kinds)).wait(120) != 0:
        raise RuntimeError("the attempts were not made")


def start_attempts(
    namespace: Namespace, uid: int, times: int, *kinds: str
) -> subprocess.Popen[bytes]:
    """Start the attempts in the background. The caller must wait for the returned process."""
    return namespace.call(lambda: _program(uid, times, *kinds))


def _program(uid: int, times: int, *kinds: str) -> subprocess.Popen[bytes]:
    # Through standard input: the user may have no permission to read this file's folder.
    with Path(__file__).open("rb") as source:
        return subprocess.Popen(
            ["/usr/bin/python3", "-I", "-", str(times), *kinds],
            stdin=source,
            user=uid,
            group=uid,
            extra_groups=[],
        )


def allow_ping() -> None:
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647", encoding="ascii")


def _make(kind: str) -> None:
    name, family = kind[:-1], socket.AF_INET if kind.endswith("4") else socket.AF_INET6
    target = (INTERNET4 if family == socket.AF_INET else INTERNET6, PORT)
    echo = struct.pack("!BBHHH", 8 if family == socket.AF_INET else 128, 0, 0, 7, 1)
    sort, protocol, payload = {
        "tcp": (socket.SOCK_STREAM, 0, b""),
        "udp": (socket.SOCK_DGRAM, 0, b"bypass"),
        "ping": (
            socket.SOCK_DGRAM,
            socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6,
            echo,
        ),
        "raw": (socket.SOCK_RAW, EXPERIMENT, b"bypass"),
    }[name]
    with socket.socket(family, sort, protocol) as sock, contextlib.suppress(OSError):
        # Close before an answer arrives, so that TCP does not send its SYN again.
        sock.setblocking(False)
        if name == "tcp":
            sock.connect(target)
        else:
            # A raw IPv6 socket reads the port as the number of the protocol.
            sock.sendto(payload, (target[0], 0) if name == "raw" else target)


def _flood(times: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(times):
            with contextlib.suppress(OSError):
                sock.sendto(b"flood", (INTERNET4, PORT))


def _sweep(times: int) -> None:
    """Send each datagram to a different port, so that each makes its own flow."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for port in range(1, times + 1):
            with contextlib.suppress(OSError):
                sock.sendto(b"sweep", (INTERNET4, port))


if __name__ == "__main__":
    for kind in sys.argv[2:]:
        if many := {"flood": _flood, "sweep": _sweep}.get(kind):
            many(int(sys.argv[1]))
            continue
        for _ in range(int(sys.argv[1])):
            _make(kind)
