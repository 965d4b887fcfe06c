"""A program that listens on a Unix socket."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from typing import TYPE_CHECKING, Any

from tests.delivery.trials.receivers import Receiver, uid_of

if TYPE_CHECKING:
    from tests.delivery.trials.receivers import Setting


class Program(Receiver):
    """Program that stores each complete line, also if the connection is cut afterwards."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._path = setting.folder / "socket"
        self._lines: list[bytes] = []
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self.may_read = True
        self.seconds = 0.0

    @property
    def table(self) -> dict[str, Any]:
        return {
            "type": "unix",
            "path": str(self._path),
            **({"timeout_seconds": 0.5} if self._setting.is_slow else {}),
        }

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)  # a killed program leaves it
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: _Connection(self, self._lines, self._connections), self._path
        )

    async def kill(self) -> None:
        """Stop with data in the socket that it has not read."""
        await self.stop_answering()
        async with asyncio.timeout(60):
            while not any(each.unread for each in self._connections):  # noqa: ASYNC110 - no reader
                await asyncio.sleep(0.002)
        await self.end()
        self.may_read = True

    async def end(self) -> None:
        if self._server is not None:
            self._server.close()
        for each in tuple(self._connections):
            each.cut()

    async def uids(self) -> list[str]:
        return [uid_of(line) for line in self._lines]

    async def stop_answering(self) -> None:
        self.may_read = False
        for each in self._connections:
            each.pause()

    async def answer_slowly(self, seconds: float) -> None:
        self.may_read, self.seconds = True, seconds
        for each in self._connections:
            each.resume()


class _Connection(asyncio.Protocol):
    """One connection; an incomplete line is dropped at its end."""

    def __init__(self, program: Program, lines: list[bytes], connections: set[_Connection]) -> None:
        self._program = program
        self._lines = lines
        self._connections = connections
        self._rest = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(self)
        if not self._program.may_read:
            self.pause()

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines += lines
        if self._program.seconds:
            self.pause()
            asyncio.get_running_loop().call_later(self._program.seconds, self.resume)

    def connection_lost(self, _: Exception | None) -> None:
        self._connections.discard(self)

    def pause(self) -> None:
        self._transport.pause_reading()

    def resume(self) -> None:
        if self._program.may_read and not self._transport.is_closing():
            self._transport.resume_reading()

    @property
    def unread(self) -> int:
        """The number of bytes that wait to be read."""
        answer = fcntl.ioctl(self._transport.get_extra_info("socket"), termios.FIONREAD, b"\0" * 4)
        return int.from_bytes(answer, sys.byteorder)

    def cut(self) -> None:
        self._transport.abort()
