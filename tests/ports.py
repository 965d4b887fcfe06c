"""Loopback ports for servers that cannot choose a free port."""

from __future__ import annotations

import secrets
import socket
from contextlib import ExitStack
from typing import Final

#: Below the ports that the kernel gives to clients and to sockets that bind to port 0
#: (net.ipv4.ip_local_port_range). So no other socket takes a port before its server does.
_FIRST, _LAST = 10_000, 32_767
_KINDS: Final = (socket.SOCK_STREAM, socket.SOCK_DGRAM)


def free_ports(number: int) -> list[int]:
    """Return `number` different ports that are free on 127.0.0.1 for TCP and UDP."""
    found: list[int] = []
    with ExitStack() as bound:
        while len(found) < number:
            port = _FIRST + secrets.randbelow(_LAST - _FIRST + 1)
            try:
                for kind in _KINDS:
                    bound.enter_context(socket.socket(type=kind)).bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    return found


def free_port() -> int:
    """Return a port that is free on 127.0.0.1 for TCP and UDP."""
    (port,) = free_ports(1)
    return port
