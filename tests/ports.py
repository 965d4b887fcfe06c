"""Loopback ports for servers that cannot choose a free port."""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import ExitStack
from typing import Final

#: Below the ports that the kernel gives to clients and to sockets that bind to port 0
#: (net.ipv4.ip_local_port_range). So no other socket takes a port before its server does.
_FIRST, _LAST = 10_000, 32_767
_KINDS: Final = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
#: More than there are workers, also if some crash: a new worker has the next number.
_MOST_WORKERS: Final = 32
#: Ports that this process has returned. A server may not have bound them yet.
_returned: set[int] = set()


def free_ports(number: int) -> list[int]:
    """Return `number` different ports that are free on 127.0.0.1 for TCP and UDP.

    No port is returned twice, and no two workers of pytest-xdist get the same port.
    """
    found: list[int] = []
    own = _ports_of_worker()
    with ExitStack() as bound:
        while len(found) < number:
            port = secrets.choice(own)
            if port in _returned:
                continue
            try:
                for kind in _KINDS:
                    bound.enter_context(socket.socket(type=kind)).bind(("127.0.0.1", port))
            except OSError:
                continue
            _returned.add(port)
            found.append(port)
    return found


def free_port() -> int:
    """Return a port that is free on 127.0.0.1 for TCP and UDP."""
    (port,) = free_ports(1)
    return port


def _ports_of_worker() -> range:
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return range(_FIRST + number % _MOST_WORKERS, _LAST + 1, _MOST_WORKERS)
