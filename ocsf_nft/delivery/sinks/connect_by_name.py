"""Connecting to a host by its name."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

#: For one address: a host that is down must not keep us from its next one.
_CONNECT_SECONDS: Final = 5.0


async def connected(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    """A socket that does not block, connected to the first address that answers; raises OSError."""
    loop = asyncio.get_running_loop()
    failure = OSError("it has no address")
    for family, _, protocol, _, address in await loop.getaddrinfo(host, port, type=kind):
        opened = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await loop.sock_connect(opened, address)
        except OSError as error:  # TimeoutError is one
            opened.close()
            failure = error
        except BaseException:
            opened.close()
            raise
        else:
            return opened
    raise failure
