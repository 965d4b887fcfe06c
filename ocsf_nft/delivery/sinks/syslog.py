"""Sink for syslog messages of RFC 5424 over UDP, TCP or TLS.

Over UDP, a dropped datagram is not noticed. Over TCP and TLS, an event counts as delivered when the
receiver's kernel has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ocsf_nft.delivery.receiver_settings import Tls
from ocsf_nft.delivery.rfc5424 import frame
from ocsf_nft.delivery.sinks.base import BatchResult, Message, Refusal, Sink
from ocsf_nft.delivery.sinks.error_text import cause
from ocsf_nft.delivery.sinks.stream_connection import Stream
from ocsf_nft.errors import DeliveryError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: RFC 5426, RFC 6587 and RFC 5425.
Transport: TypeAlias = Literal["udp", "tcp", "tls"]

#: Default limit of rsyslog: its maxMessageSize of "8k" means this number (8.2504).
MAX_BYTES: Final = 8096
#: Number of events framed before other tasks can run: about a millisecond of work.
_EVENTS_PER_SLICE: Final = 32

#: Timeout for one address: an address that does not answer must not block the next one.
_CONNECT_SECONDS: Final = 5.0
_HANDSHAKE_SECONDS: Final = 10.0

#: Time that a new connection must stay open before its first batch counts as delivered. A receiver
#: may accept a connection, then check the certificate or the address, and close it: each time a
#: batch would be dropped. With TLS 1.3 the handshake ends before that check. A load balancer whose
#: receiver is down also accepts and closes. A UDP sink waits the same time for an ICMP error after
#: the first datagrams of a new socket.
_PROBATION_SECONDS: Final = 0.5

#: Maximum size of a burst of datagrams: a receiver's socket buffer has space for it by default.
_BURST_BYTES: Final = 1 << 16
_PAUSE_SECONDS: Final = 0.002


class Syslog(Sink):
    """Sink for the syslog receiver at ``host`` and ``port``.

    ``tls`` is used only if ``transport`` is "tls". If ``tls`` is None, the system's certificate
    authorities are trusted. An event becomes a dead letter if its syslog message has more than
    ``max_bytes`` bytes.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        host: str,
        port: int,
        tls: Tls | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._max_bytes = max_bytes
        self._transport = (
            Datagrams(host, port)
            if transport == "udp"
            else Connection(host, port, tls or Tls() if transport == "tls" else None)
        )

    async def open(self) -> None:
        """Connect to the receiver; raises DeliveryError. Over UDP no datagram is sent yet."""
        await self._transport.open()

    async def close(self) -> None:
        """Close the connection to the receiver."""
        self._transport.close()

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Send each event as a syslog message; omit messages of more than ``max_bytes`` bytes.

        The result lists the omitted events as refused. Raises DeliveryError if sending fails. Over
        UDP, raises RefusedError if a datagram is too long for the kernel; later events are then not
        sent.
        """
        frames: list[bytes] = []
        refused: list[Refusal] = []
        for number, message in enumerate(messages, 1):
            framed = frame(message.line)
            if len(framed) > self._max_bytes:
                reason = (
                    f"its syslog message of {len(framed)} bytes is longer than max_bytes, which is "
                    f"{self._max_bytes}: raise the limit of the receiver, and then max_bytes"
                )
                refused.append(Refusal(message, reason))
            else:
                frames.append(framed)
            if number % _EVENTS_PER_SLICE == 0:
                await asyncio.sleep(0)
        # Syslog has no acknowledgement.
        await self._transport.send(frames)
        return BatchResult(refused=tuple(refused))


class Connection:
    """TCP connection to a syslog receiver; with ``tls``, a TLS connection."""

    def __init__(self, host: str, port: int, tls: Tls | None) -> None:
        self._name = _receiver_name(host, port)
        self._host = host
        self._port = port
        self._tls = tls
        self._stream: Stream | None = None
        self._is_new = True

    async def open(self) -> None:
        """Connect to the receiver; raises DeliveryError if that fails."""
        try:
            self._stream = Stream(await self._connect())
            self._is_new = True
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                await self._stream.handshake()
        except (OSError, ValueError) as error:  # ValueError: a name that no certificate can have
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

    async def send(self, frames: Sequence[bytes]) -> None:
        """Send syslog messages (``frames``), and wait until the receiver's kernel has them.

        The first call after :meth:`open` also waits half a second, because a receiver may close a
        new connection at once. Raises DeliveryError if the connection breaks.
        """
        if self._stream is None:
            raise DeliveryError(f"{self._name} is not connected")
        try:
            await self._stream.send(b"".join(b"%d %b" % (len(each), each) for each in frames))
            await self._stream.wait_until_acknowledged()
            if self._is_new:
                await self._stream.wait_while_open(_PROBATION_SECONDS)
                self._is_new = False
        except OSError as error:
            raise DeliveryError(f"the connection to {self._name} broke: {cause(error)}") from error

    async def _connect(self) -> socket.socket:
        context = None if self._tls is None else await asyncio.to_thread(self._tls.context)
        sock = await connect(self._host, self._port, socket.SOCK_STREAM)
        try:
            # Without it, the end of a batch would wait until the rest is acknowledged.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is None:
                return sock
            return context.wrap_socket(
                sock, server_hostname=self._host, do_handshake_on_connect=False
            )
        except (OSError, ValueError):
            sock.close()
            raise


class Datagrams:
    """UDP socket for datagrams to a syslog receiver."""

    def __init__(self, host: str, port: int) -> None:
        self._name = _receiver_name(host, port)
        self._host = host
        self._port = port
        self._socket: socket.socket | None = None
        self._is_new = True

    async def open(self) -> None:
        """Resolve the receiver's address, and open the socket; raises DeliveryError on failure."""
        try:
            self._socket = await connect(self._host, self._port, socket.SOCK_DGRAM)
            self._is_new = True
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Close the socket, if there is one."""
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    async def send(self, frames: Sequence[bytes]) -> None:
        """Send syslog messages (``frames``), each as one datagram.

        Raises DeliveryError if the datagrams can't be sent, for example because the receiver's port
        is closed. Raises RefusedError if a message is too long for a datagram.
        """
        if self._socket is None:
            raise DeliveryError(f"{self._name} is not open")
        try:
            await self._send(self._socket, frames)
            if self._is_new and frames:
                await _wait_for_refusal(self._socket)
                self._is_new = False
        except OSError as error:
            raise self._failure(error) from error

    async def _send(self, sock: socket.socket, frames: Sequence[bytes]) -> None:
        burst = 0
        for each in frames:
            burst += len(each)
            if burst > _BURST_BYTES:
                await asyncio.sleep(_PAUSE_SECONDS)
                burst = len(each)
            await asyncio.get_running_loop().sock_sendall(sock, each)
        # The ICMP error for the last datagram, if it has arrived already.
        if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(number, os.strerror(number))

    def _failure(self, error: OSError) -> DeliveryError:
        sentence = f"{self._name} can't be sent to: {cause(error)}"
        return (RefusedError if error.errno == errno.EMSGSIZE else DeliveryError)(sentence)


async def _wait_for_refusal(sock: socket.socket) -> None:
    """Wait half a second for an ICMP error from the receiver; raise OSError if one arrives."""
    # On a busy machine an ICMP error may come late, even from the same host.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PROBATION_SECONDS):
            await asyncio.get_running_loop().sock_recv(sock, 1)


def _receiver_name(host: str, port: int) -> str:
    return f"the syslog receiver {host} port {port}"


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
