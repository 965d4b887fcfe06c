"""Stream connection to a peer, by a protocol without acknowledgements.

Instead, a caller can wait until all sent bytes have arrived. For TCP, bytes have arrived when the
peer's kernel has them. For a Unix socket, bytes have arrived when the peer has read them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import ssl
import struct
import termios
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_CHUNK_BYTES: Final = 1 << 16
_SHORTEST_WAIT_SECONDS: Final = 0.0005
_LONGEST_WAIT_SECONDS: Final = 0.02
#: l_onoff and l_linger: discard unsent bytes and reset the connection on close (socket(7)).
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Stream:
    """Connected non-blocking socket, with or without TLS.

    If the peer closes its side, the connection counts as closed. Data from the peer is discarded.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._is_incomplete = False

    async def handshake(self) -> None:
        """Do the TLS handshake if the connection uses TLS; raises OSError if that fails."""
        if isinstance(self._socket, ssl.SSLSocket):
            await self._when_ready(self._socket.do_handshake)

    async def send(self, data: bytes) -> None:
        """Pass all of ``data`` to the kernel.

        Raises OSError if the connection is broken, or if the peer has closed its side.
        """
        self._check_open()
        self._is_incomplete = True
        rest = memoryview(data)
        while rest:
            sent = await self._when_ready(partial(self._socket.send, rest[:_CHUNK_BYTES]))
            rest = rest[sent:]

    async def wait_until_acknowledged(self) -> None:
        """Wait until all sent bytes are acknowledged; raises OSError if the connection breaks.

        For TCP, the peer's kernel acknowledges the bytes. For a Unix socket, the bytes count as
        acknowledged when the peer has read them.
        """
        seconds = _SHORTEST_WAIT_SECONDS
        while self._outstanding_bytes():
            self._check_open()
            await asyncio.sleep(seconds)
            seconds = min(2 * seconds, _LONGEST_WAIT_SECONDS)
        # Checked after the count: bytes to a dead peer no longer count as outstanding.
        self._check_open()
        self._is_incomplete = False

    async def wait_while_open(self, seconds: float) -> None:
        """Wait for ``seconds``; raises OSError as soon as the peer closes the connection."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    await self._wait_until_ready(to_write=False)
                    self._check_open()

    def close(self) -> None:
        """Close the connection.

        A TCP connection is reset if :meth:`wait_until_acknowledged` has not succeeded since the
        last :meth:`send`. The kernel then discards unsent bytes.
        """
        try:
            if self._is_incomplete:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            elif isinstance(self._socket, ssl.SSLSocket):
                # Sends close_notify (RFC 5425, 4.4) and does not wait for the answer.
                self._socket.unwrap()
        except OSError:
            pass  # the connection is closed already, or the answer has not arrived yet
        finally:
            self._socket.close()

    def _outstanding_bytes(self) -> int:
        # SIOCOUTQ counts bytes without a TCP acknowledgement (tcp(7)), or bytes that the peer of a
        # Unix socket has not read (unix(7)).
        answer = fcntl.ioctl(self._socket, termios.TIOCOUTQ, struct.pack("i", 0))
        return int(struct.unpack("i", answer)[0])

    def _check_open(self) -> None:
        """Discard received data; raise OSError if the peer has closed the connection."""
        try:
            received = self._socket.recv(_CHUNK_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        if not received:
            raise OSError("it closed the connection")

    async def _when_ready(self, operation: Callable[[], T]) -> T:
        while True:
            try:
                return operation()
            except (BlockingIOError, ssl.SSLWantWriteError):
                await self._wait_until_ready(to_write=True)
            except ssl.SSLWantReadError:
                await self._wait_until_ready(to_write=False)

    async def _wait_until_ready(self, *, to_write: bool) -> None:
        loop, number, ready = asyncio.get_running_loop(), self._socket.fileno(), asyncio.Event()
        (loop.add_writer if to_write else loop.add_reader)(number, ready.set)
        try:
            await ready.wait()
        finally:
            (loop.remove_writer if to_write else loop.remove_reader)(number)
