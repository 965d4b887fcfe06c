"""End of a stream connection, as its peer receives it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme

from ocsf_nft.delivery.sinks.stream_connection import Stream

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield our non-blocking socket and the peer's socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    theirs.settimeout(60)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


async def test_stream_with_a_complete_delivery_ends_without_a_reset() -> None:
    with connected() as (ours, theirs):
        stream = Stream(ours)
        await stream.send(b"line\n")
        await stream.wait_until_acknowledged()
        stream.close()
        assert [theirs.recv(100), theirs.recv(100)] == [b"line\n", b""]


async def test_stream_with_an_incomplete_delivery_ends_with_a_reset() -> None:
    with connected() as (ours, theirs):
        stream = Stream(ours)
        await stream.send(b"line\n")
        stream.close()
        with pytest.raises(ConnectionResetError), theirs.makefile("rb") as file:
            file.read()


async def test_stream_with_tls_sends_close_notify() -> None:
    authority = trustme.CA()
    client = ssl.create_default_context()
    authority.configure_trust(client)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)

    def read(peer: socket.socket) -> bytes:
        # An end without close_notify would be an SSLEOFError.
        with server.wrap_socket(peer, server_side=True, suppress_ragged_eofs=False) as theirs:
            return theirs.recv(100) + theirs.recv(100)

    with connected() as (plain, peer):
        reading = asyncio.create_task(asyncio.to_thread(read, peer))
        ours = client.wrap_socket(plain, server_hostname="127.0.0.1", do_handshake_on_connect=False)
        stream = Stream(ours)
        await stream.handshake()
        await stream.send(b"line\n")
        await stream.wait_until_acknowledged()
        stream.close()
        assert await reading == b"line\n"
