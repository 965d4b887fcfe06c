"""Connection to a host by its name, which may have several addresses."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

#: Timeout for one address: an address that does not answer must not block the next one.
_CONNECT_SECONDS: Final = 5.0


async def connect(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    """Connect to a host by its name; return a non-blocking socket.

    ``kind`` is ``SOCK_STREAM`` or ``SOCK_DGRAM``. The host's addresses are tried in order, each for
    at most 5 s. Raises OSError.
    """
    loop = asyncio.get_running_loop()
    failure = OSError("it has no address")
    for family, _, protocol, _, address in await loop.getaddrinfo(host, port, type=kind):
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await loop.sock_connect(sock, address)
        except OSError as error:  # TimeoutError is one
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure
