"""Program that tries once to send a packet or a request out of the sandbox.

The program prints the result and the duration in milliseconds as JSON. The exit code is 1 if the
attempt fails.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_TIMEOUT_SECONDS: Final = 2.0
#: An experimental ethertype for private use (IEEE 802, local experimental 1).
ETHERTYPE: Final = 0x88B5
_DNS_PORT: Final = 53
_ICMP_ECHO: Final = 8
_ICMPV6_ECHO_REQUEST: Final = 128


# Each public function prepares an attempt, and returns a function that makes it: only the attempt
# is timed. The returned function raises OSError if the attempt fails.


def http(url: str, proxy: str = "") -> Callable[[], object]:
    """Return a function that fetches ``url`` and returns the status, such as ``200 OK``.

    ``proxy`` is the URL of a proxy for ``http://`` URLs; without it, the request is sent directly.
    Proxy settings in environment variables are ignored.
    """
    import urllib.request  # noqa: PLC0415 - takes longer than the other attempts together

    proxies = {"http": proxy} if proxy else {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))

    def attempt() -> str:
        with opener.open(url, timeout=_TIMEOUT_SECONDS) as response:
            return f"{response.status} {response.reason}"

    return attempt


def dns(server: str) -> Callable[[], object]:
    """Return a function that sends a DNS query for example.com to ``server`` by UDP (RFC 1035).

    The function does not wait for the answer.
    """
    name = b"".join(bytes([len(label)]) + label for label in (b"example", b"com")) + b"\0"
    query = struct.pack("!HHHHHH", 1, 0x0100, 1, 0, 0, 0) + name + struct.pack("!HH", 1, 1)
    sock = socket.socket(_family(server), socket.SOCK_DGRAM)
    return lambda: sock.sendto(query, (server, _DNS_PORT))


def raw(protocol: str, address: str) -> Callable[[], object]:
    """Return a function that sends a packet to ``address`` by a raw socket.

    ``protocol`` is the number of the IP protocol, in decimal digits.
    """
    sock = socket.socket(_family(address), socket.SOCK_RAW, int(protocol))
    return lambda: sock.sendto(bytes(20), (address, 0))


def ping(address: str) -> Callable[[], object]:
    """Return a function that sends one ICMP echo request to ``address``."""
    if _family(address) == socket.AF_INET6:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        # The kernel adds the checksum (RFC 3542).
        echo = struct.pack("!BBHHH", _ICMPV6_ECHO_REQUEST, 0, 0, 0, 1)
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        checksum = 0xFFFF - (_ICMP_ECHO << 8) - 1
        echo = struct.pack("!BBHHH", _ICMP_ECHO, 0, checksum, 0, 1)
    return lambda: sock.sendto(echo, (address, 0))


def frame(device: str, destination: str) -> Callable[[], object]:
    """Return a function that sends an Ethernet frame without an IP packet.

    ``device`` is the interface that sends the frame. ``destination`` is the receiver's MAC address.
    The frame bypasses the IP stack.
    """
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind((device, 0))
    addresses = bytes.fromhex(destination.replace(":", "")) + sock.getsockname()[4]
    return lambda: sock.send(addresses + ETHERTYPE.to_bytes(2, "big") + bytes(46))


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _main(kind: str, *arguments: str) -> int:
    kinds: dict[str, Callable[..., Callable[[], object]]] = {
        "http": http,
        "dns": dns,
        "raw": raw,
        "ping": ping,
        "frame": frame,
    }
    attempt = kinds[kind](*arguments)
    start = time.perf_counter()
    try:
        result, code = attempt(), 0
        saw = result if isinstance(result, str) else "sent"
    except OSError as error:
        # urllib wraps the error of the socket, which has the result.
        cause = getattr(error, "reason", error)
        saw, code = getattr(cause, "strerror", None) or str(cause), 1
    milliseconds = (time.perf_counter() - start) * 1000
    sys.stdout.write(json.dumps({"saw": saw, "milliseconds": milliseconds}) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
