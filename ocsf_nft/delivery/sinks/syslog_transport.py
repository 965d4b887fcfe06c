"""What syslog messages go by: datagrams, or a connection."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Final

from ocsf_nft.delivery.sinks.connect_by_name import connected
from ocsf_nft.delivery.sinks.error_text import cause
from ocsf_nft.delivery.sinks.stream_connection import Stream
from ocsf_nft.errors import DeliveryError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.delivery.tls import Tls

_HANDSHAKE_SECONDS: Final = 10.0

#: How long a new connection has to stay until what was sent through it counts. Who is let in, and
#: shown out when his certificate or address was looked at, would lose a batch each time; so with
#: TLS 1.3, whose handshake is at an end before that, and with a balancer whose receiver is down.
#: A UDP sink waits the same time for an ICMP error after the first datagrams of a new socket.
_PROBATION_SECONDS: Final = 0.5

#: Datagrams are sent in bursts that a receiver's socket has room for by default.
_BURST_BYTES: Final = 1 << 16
_PAUSE_SECONDS: Final = 0.002


class Connection:
    """A connection of TCP, with TLS in it where ``tls`` is given."""

    def __init__(self, host: str, port: int, tls: Tls | None) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._stream: Stream | None = None
        self._is_new = True

    async def open(self) -> None:
        """Connect; raises DeliveryError."""
        try:
            self._stream = Stream(await self._connected())
            self._is_new = True
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                await self._stream.shake_hands()
        except (OSError, ValueError) as error:  # the latter: a name that no certificate can have
            self.close()
            raise DeliveryError(f"{self._name} can't be connected to: {cause(error)}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection, if there is one."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    async def carry(self, frames: Sequence[bytes]) -> None:
        """Send messages; returns when the receiver's system has them. Raises DeliveryError."""
        if self._stream is None:
            raise DeliveryError(f"{self._name} is not connected")
        try:
            await self._stream.send(b"".join(b"%d %b" % (len(each), each) for each in frames))
            await self._stream.acknowledged()
            if self._is_new:
                await self._stream.stays(_PROBATION_SECONDS)
                self._is_new = False
        except OSError as error:
            raise DeliveryError(f"{self._name} was cut: {cause(error)}") from error

    @property
    def _name(self) -> str:
        return _named(self._host, self._port)

    async def _connected(self) -> socket.socket:
        context = None if self._tls is None else await asyncio.to_thread(self._tls.context)
        opened = await connected(self._host, self._port, socket.SOCK_STREAM)
        try:
            # Else the end of a batch waits until the rest of it is acknowledged.
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is None:
                return opened
            return context.wrap_socket(
                opened, server_hostname=self._host, do_handshake_on_connect=False
            )
        except (OSError, ValueError):
            opened.close()
            raise


class Datagrams:
    """Datagrams of UDP."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._socket: socket.socket | None = None
        self._is_new = True

    async def open(self) -> None:
        """Find the receiver's address; raises DeliveryError."""
        try:
            self._socket = await connected(self._host, self._port, socket.SOCK_DGRAM)
            self._is_new = True
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Close the socket, if there is one."""
        opened, self._socket = self._socket, None
        if opened is not None:
            opened.close()

    async def carry(self, frames: Sequence[bytes]) -> None:
        """Send messages, each as one datagram.

        Raises DeliveryError when the receiver's system says that nobody listens, RefusedError when
        a message is longer than what can be sent.
        """
        if self._socket is None:
            raise DeliveryError(f"{_named(self._host, self._port)} is not open")
        try:
            await self._send(self._socket, frames)
            if self._is_new and frames:
                await _wait_for_refusal(self._socket)
                self._is_new = False
        except OSError as error:
            raise self._failure(error) from error

    async def _send(self, opened: socket.socket, frames: Sequence[bytes]) -> None:
        burst = 0
        for each in frames:
            burst += len(each)
            if burst > _BURST_BYTES:
                await asyncio.sleep(_PAUSE_SECONDS)
                burst = len(each)
            await asyncio.get_running_loop().sock_sendall(opened, each)
        # What an answer to the last one said, if there was one already.
        if number := opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(number, os.strerror(number))

    def _failure(self, error: OSError) -> DeliveryError:
        sentence = f"{_named(self._host, self._port)} can't be sent to: {cause(error)}"
        return (RefusedError if error.errno == errno.EMSGSIZE else DeliveryError)(sentence)


async def _wait_for_refusal(opened: socket.socket) -> None:
    """Wait a short time for an ICMP error; raise the OSError that the kernel derives from it.

    On a busy machine the error may come after the send, even on the same host.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PROBATION_SECONDS):
            await asyncio.get_running_loop().sock_recv(opened, 1)


def _named(host: str, port: int) -> str:
    return f"the syslog receiver {host} port {port}"
