"""A connection that bytes are sent through, to a peer that says nothing of having got them.

What can be known is what is on its way: ``SIOCOUTQ`` counts the bytes that the peer's kernel has
not acknowledged (tcp(7)), and of a Unix socket those that the peer has not read (unix(7)).
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
#: l_onoff and l_linger: what is on its way is not sent any more, and the peer told so (socket(7)).
_AT_ONCE: Final = struct.pack("ii", 1, 0)


class Stream:
    """A connected socket that does not block, TLS in it or not; :meth:`close` closes it.

    A peer that has closed its side counts as gone. What it says is read and forgotten.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._is_owing = False

    async def shake_hands(self) -> None:
        """Do what TLS begins with; raises OSError (ssl.SSLError is one)."""
        if isinstance(self._socket, ssl.SSLSocket):
            await self._when_ready(self._socket.do_handshake)

    async def send(self, data: bytes) -> None:
        """Hand all of it to the kernel; raises OSError, also when the peer was gone before."""
        self._hold_open()
        self._is_owing = True
        rest = memoryview(data)
        while rest:
            sent = await self._when_ready(partial(self._socket.send, rest[:_CHUNK_BYTES]))
            rest = rest[sent:]

    async def acknowledged(self) -> None:
        """Wait until nothing that was sent is on its way; raises OSError."""
        seconds = _SHORTEST_WAIT_SECONDS
        while self._on_its_way():
            self._hold_open()
            await asyncio.sleep(seconds)
            seconds = min(2 * seconds, _LONGEST_WAIT_SECONDS)
        # After the count, not before it: what a peer that died had not got is on no way any more.
        self._hold_open()
        self._is_owing = False

    async def stays(self, seconds: float) -> None:
        """Wait for so long; raises OSError as soon as the peer ends it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    await self._readable()
                    self._hold_open()

    def close(self) -> None:
        """Close it; what is on its way of a delivery that was not completed is taken back."""
        try:
            if self._is_owing:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            elif isinstance(self._socket, ssl.SSLSocket):
                # Says that this is the end (RFC 5425, 4.4), and does not wait for an answer.
                self._socket.unwrap()
        except OSError:
            pass  # the connection is no more, or has no answer yet
        finally:
            self._socket.close()

    def _on_its_way(self) -> int:
        answer = fcntl.ioctl(self._socket, termios.TIOCOUTQ, struct.pack("i", 0))
        return int(struct.unpack("i", answer)[0])

    def _hold_open(self) -> None:
        """Raise OSError when the peer is gone."""
        try:
            said = self._socket.recv(_CHUNK_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        if not said:
            raise OSError("it closed the connection")

    async def _when_ready(self, do: Callable[[], T]) -> T:
        while True:
            try:
                return do()
            except (BlockingIOError, ssl.SSLWantWriteError):
                await self._writable()
            except ssl.SSLWantReadError:
                await self._readable()

    async def _readable(self) -> None:
        loop, number, ready = asyncio.get_running_loop(), self._socket.fileno(), asyncio.Event()
        loop.add_reader(number, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(number)

    async def _writable(self) -> None:
        loop, number, ready = asyncio.get_running_loop(), self._socket.fileno(), asyncio.Event()
        loop.add_writer(number, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(number)
