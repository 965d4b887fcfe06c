"""Stub of an egress proxy: answers requests itself, without a connection to any server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Final

from ocsf_nft.lab import GATEWAY4, GATEWAY6, PROXY_PORT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ocsf_nft.netns import Namespace

_TIMEOUT_SECONDS: Final = 2.0
_PAGE: Final = b"hello from the proxy\n"


@contextlib.asynccontextmanager
async def stub_proxy(gateway: Namespace) -> AsyncIterator[None]:
    """Run the stub proxy in the gateway's namespace until the context ends.

    The stub proxy listens on the gateway's IPv4 and IPv6 addresses, at the port ``PROXY_PORT``.
    """
    async with contextlib.AsyncExitStack() as stack:
        for sock in gateway.call(_listen):
            await stack.enter_async_context(await asyncio.start_server(_serve, sock=sock))
        yield


def _listen() -> tuple[socket.socket, socket.socket]:
    return (
        socket.create_server((GATEWAY4, PROXY_PORT)),
        socket.create_server((GATEWAY6, PROXY_PORT), family=socket.AF_INET6),
    )


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # A client that sends too much, too little or too slowly is disconnected.
    faults = (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError)
    with contextlib.closing(writer), contextlib.suppress(*faults):
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            request = await reader.readuntil(b"\r\n\r\n")
            writer.write(_answer(request))
            await writer.drain()


def _answer(request: bytes) -> bytes:
    # Clients send the absolute form only to proxies (RFC 9112, 3.2.2).
    is_get = request.startswith(b"GET http://")
    status, page = (b"200 OK", _PAGE) if is_get else (b"501 Not Implemented", b"")
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (
        status,
        len(page),
        page,
    )
