"""Ports on loopback for servers that can't choose one by themselves."""

from __future__ import annotations

import secrets
import socket
from contextlib import ExitStack
from typing import Final

#: Below those that the kernel gives to clients and to whoever binds to port 0, so that none of
#: them has taken a port before its server has (net.ipv4.ip_local_port_range).
_FIRST, _LAST = 10_000, 32_767
_KINDS: Final = (socket.SOCK_STREAM, socket.SOCK_DGRAM)


def free_ports(number: int) -> list[int]:
    """Return so many ports, each another one, that are free on 127.0.0.1 by TCP and UDP."""
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
    """Return one such port."""
    (port,) = free_ports(1)
    return port
