"""rsyslog as the receiver of syslog sinks."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

_LISTEN: Final = "0A"  # TCP_LISTEN in include/net/tcp_states.h
_CONFIG: Final = """
global(workDirectory="{folder}" {files})
module(load="imudp")
module(load="imtcp" {clients})
input(type="imudp" address="127.0.0.1" port="{port}" ruleset="stored" rcvbufSize="8m")
input(type="imtcp" address="127.0.0.1" port="{port}" ruleset="stored")
template(name="stored" type="string" string="%hostname% %app-name% %msgid% %pri% %msg%\\n")
ruleset(name="stored") {{ action(type="omfile" file="{folder}/stored" template="stored") }}
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
    """Certificate of a receiver, and the name of the ``permitted`` client, if there is one."""

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
    """rsyslog at a UDP and TCP port; it stores messages in a file."""

    folder: Path
    tls: ServerTls | None = None
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        config = self.folder / "config"
        config.write_text(self._config())
        self._remove_torn_line()
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
                ["rsyslogd", "-n", "-f", config, "-i", self.folder / "pid"],
                stdout=output,
                stderr=output,
            )
        async with asyncio.timeout(120):
            while not self._listens():
                assert self._process.poll() is None, self.output
                await asyncio.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(120)

    def freeze(self) -> None:
        """Stop the process; its connections stay open, but it reads nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text(errors="replace")

    @property
    def stored(self) -> list[tuple[str, bytes]]:
        """Stored messages: hostname, app-name, msgid and priority, and the text of each."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.folder / "stored").read_bytes().split(b"\n")[:-1]
            split = [line.split(b" ", 4) for line in lines]
            return [(b" ".join(head).decode(), text) for *head, text in split]
        return []

    @property
    def events(self) -> list[Any]:
        return [orjson.loads(text) for text in self.texts]

    @property
    def texts(self) -> list[bytes]:
        return [text for _, text in self.stored]

    async def wait_for(self, number: int) -> None:
        """Wait until ``number`` messages are stored."""
        async with asyncio.timeout(120):
            while len(self.stored) < number:  # noqa: ASYNC110 - another process sends no event
                await asyncio.sleep(0.02)

    def _remove_torn_line(self) -> None:
        """Remove the half line that a killed rsyslog left at the end of its file.

        The next rsyslog appends to that file, and would continue the line with its first message.
        """
        with contextlib.suppress(FileNotFoundError), (self.folder / "stored").open("rb+") as stored:
            stored.truncate(stored.read().rfind(b"\n") + 1)

    def _listens(self) -> bool:
        # Not by a connection: rsyslog may drop the next one when a TLS handshake fails.
        sockets = map(str.split, Path("/proc/net/tcp").read_text("ascii").splitlines()[1:])
        port = f":{self.port:04X}"
        return any(each[1].endswith(port) and each[3] == _LISTEN for each in sockets)

    def _config(self) -> str:
        tls = self.tls
        return _CONFIG.format(
            folder=self.folder,
            port=self.port,
            files="" if tls is None else _FILES.format(tls=tls),
            clients="" if tls is None else _CLIENTS.format(tls=tls),
        )


@contextlib.contextmanager
def stopped_at_exit(daemon: Rsyslog) -> Iterator[Rsyslog]:
    """Yield a daemon and stop it at the end, also after an error; print its messages."""
    try:
        yield daemon
    finally:
        daemon.stop()
        if (daemon.folder / "output").exists():
            print(daemon.output)  # noqa: T201 - pytest shows it if the test failed
