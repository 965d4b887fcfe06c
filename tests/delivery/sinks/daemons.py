"""Syslog receivers that sinks deliver to: rsyslog's own daemon, and a socket that does little."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CONFIG: Final = """
global(workDirectory="{folder}" {files})
module(load="imudp")
module(load="imtcp" {clients})
input(type="imudp" address="127.0.0.1" port="{port}" ruleset="kept" rcvbufSize="8m")
input(type="imtcp" address="127.0.0.1" port="{port}" ruleset="kept")
template(name="kept" type="string" string="%hostname% %app-name% %msgid% %pri% %msg%\\n")
ruleset(name="kept") {{ action(type="omfile" file="{folder}/kept" template="kept") }}
"""
_FILES: Final = """
    defaultNetstreamDriverCAFile="{tls.ca}"
    defaultNetstreamDriverCertFile="{tls.certificate}"
    defaultNetstreamDriverKeyFile="{tls.key}"
"""
_CLIENTS: Final = """
    streamDriver.name="{tls.driver}" streamDriver.mode="1" {tls.clients}
"""


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """What a receiver shows, and the client whom it wants to see, if one is ``permitted``."""

    ca: Path
    certificate: Path
    key: Path
    driver: Literal["gtls", "ossl"] = "ossl"
    permitted: str = ""

    @property
    def clients(self) -> str:
        if not self.permitted:
            return 'streamDriver.authMode="anon"'
        return f'streamDriver.authMode="x509/name" permittedPeer=["{self.permitted}"]'


@dataclass(kw_only=True)
class Rsyslog:
    """rsyslog at a port of UDP and TCP, that keeps what it gets in a file."""

    folder: Path
    tls: ServerTls | None = None
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        config = self.folder / "config"
        config.write_text(self._config())
        self._remove_torn_line()
        with (self.folder / "said").open("ab") as said:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
                ["rsyslogd", "-n", "-f", config, "-i", self.folder / "pid"],
                stdout=said,
                stderr=said,
            )
        async with asyncio.timeout(20):
            while not await self._listens():
                assert self._process.poll() is None, self.said
                await asyncio.sleep(0.02)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(20)

    def freeze(self) -> None:
        """Let it read nothing more, with what is connected left as it is."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()

    @property
    def kept(self) -> list[tuple[str, bytes]]:
        """Each message: hostname, app-name, msgid and priority, and its text."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.folder / "kept").read_bytes().split(b"\n")[:-1]
            split = [line.split(b" ", 4) for line in lines]
            return [(b" ".join(head).decode(), text) for *head, text in split]
        return []

    @property
    def events(self) -> list[Any]:
        return [orjson.loads(text) for text in self.texts]

    @property
    def texts(self) -> list[bytes]:
        return [text for _, text in self.kept]

    async def has(self, number: int) -> None:
        """Wait until it has so many messages."""
        async with asyncio.timeout(20):
            while len(self.kept) < number:  # noqa: ASYNC110 - another process tells nothing
                await asyncio.sleep(0.02)

    def _remove_torn_line(self) -> None:
        """Remove the half line that a killed rsyslog left at the end of its file.

        The next one appends to that file, and would continue the line with its first message.
        """
        with contextlib.suppress(FileNotFoundError), (self.folder / "kept").open("rb+") as kept:
            kept.truncate(kept.read().rfind(b"\n") + 1)

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    def _config(self) -> str:
        tls = self.tls
        return _CONFIG.format(
            folder=self.folder,
            port=self.port,
            files="" if tls is None else _FILES.format(tls=tls),
            clients="" if tls is None else _CLIENTS.format(tls=tls),
        )


@contextlib.contextmanager
def ended(daemon: Rsyslog) -> Iterator[Rsyslog]:
    """A daemon that is ended whatever happens."""
    try:
        yield daemon
    finally:
        daemon.end()
