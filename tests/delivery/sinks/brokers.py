"""Message brokers of a single test: nats-server, and librdkafka's mock of Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import trustme

from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

_STARTED_SECONDS = 120
_MOCK = Path(__file__).with_name("kafka_mock.py")


class Certificates:
    """Files with certificates of two authorities of a test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority, self.other_authority = trustme.CA(), trustme.CA()
        self.ca = self._write("ca", self.authority.cert_pem)
        self.other_ca = self._write("other-ca", self.other_authority.cert_pem)
        self.certificate, self.key = self.issue("127.0.0.1")

    def issue(self, name: str) -> tuple[Path, Path]:
        leaf = self.authority.issue_cert(name)
        return (
            self._write(f"{name}-certificate", *leaf.cert_chain_pems),
            self._write(f"{name}-key", leaf.private_key_pem),
        )

    def _write(self, name: str, *blobs: trustme.Blob) -> Path:
        path = self.directory / f"{name}.pem"
        path.write_bytes(b"".join(blob.bytes() for blob in blobs))
        return path

    def context(self, name: str, *, requires_client: bool = False) -> ssl.SSLContext:
        """Return a server's TLS context; it may require a client certificate of ``authority``."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.ca)
        context.load_cert_chain(*self.issue(name))
        context.verify_mode = ssl.CERT_REQUIRED if requires_client else ssl.CERT_NONE
        return context


class _Child:
    """Process that is killed at the end of a test."""

    process: subprocess.Popen[str]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        """Kill the process, also if it is stopped."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def freeze(self) -> None:
        """Stop the process: its kernel still accepts connections and bytes."""
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)


class NatsServer(_Child):
    """nats-server with JetStream in a directory of the test; ``extra`` is more configuration."""

    def __init__(self, directory: Path, extra: str = "", *, has_jetstream: bool = True) -> None:
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"nats://{self.host}"
        self._log = directory / "nats-server.log"
        self._config = directory / "nats-server.conf"
        store = f'jetstream {{ store_dir: "{directory / "store"}" }}' if has_jetstream else ""
        self._config.write_text(f"host: 127.0.0.1\nport: {self.port}\n{store}\n{extra}\n")

    def start(self) -> None:
        """Start the server, or restart it with its stored data."""
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                ["nats-server", "-c", self._config], stdout=log, stderr=log, text=True
            )
        deadline = time.monotonic() + _STARTED_SECONDS
        while not _listens(self.port):
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, "nats-server does not start"
            time.sleep(0.02)


def _listens(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


class KafkaBroker(_Child):
    """Broker of librdkafka's mock cluster: it has topics in memory, and fails on command."""

    def __init__(self, **topics: int) -> None:
        self.topics = topics

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start an empty broker."""
        self.process = subprocess.Popen(
            [sys.executable, _MOCK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rpartition(":")[2])
        for name, partitions in self.topics.items():
            self.send_command("topic", name, partitions)

    def send_command(self, *words: str | int) -> None:
        """Send one of the commands of ``kafka_mock`` and wait until it is done."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(*words, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "ok\n"

    def records(self, topic: str) -> list[dict[str, Any]]:
        """Return the records of a topic that kcat reads, each partition in order."""
        found = subprocess.run(
            [
                "kcat", "-C", "-b", self.host, "-t", topic, "-o", "beginning", "-e", "-q", "-J",
                "-m", "60", "-X", "fetch.wait.max.ms=10",
            ],
            capture_output=True,
            check=True,
            timeout=120,
        )  # fmt: skip
        return [json.loads(line) for line in found.stdout.splitlines()]


class KafkaRelay:
    """Relay to a broker with TLS or SASL, which the mock does not support.

    It presents itself as the broker at ``host``, and stores all ``requests``. ``sasl`` returns for
    a mechanism a function that answers its messages, or returns None for a wrong message. Then the
    relay sends ``error_text``.
    """

    def __init__(
        self,
        broker: KafkaBroker,
        *,
        context: ssl.SSLContext | None = None,
        sasl: Callable[[str], Callable[[bytes], bytes | None]] | None = None,
        error_text: bytes = b"Authentication failed",
    ) -> None:
        self._broker = broker
        self._context = context
        self._sasl = sasl
        self._error_text = error_text
        self.requests: list[bytes] = []
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._accepted, "127.0.0.1", 0, ssl=self._context, limit=1 << 24
        )
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        return self

    def count(self, key: int) -> int:
        """Return the number of requests of a kind, by Kafka's number of it."""
        return sum(int.from_bytes(request[:2]) == key for request in self.requests)

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._serve(reader, writer)
        except asyncio.CancelledError:
            pass  # start_server would print it
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    def _take(self, request: bytes) -> None:
        self.requests.append(request)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(
            "127.0.0.1", self._broker.port, limit=1 << 24
        )
        try:
            is_authenticated = self._sasl is None
            step = None
            while True:
                request = await _frame(reader)
                self._take(request)
                key, correlation = int.from_bytes(request[:2]), request[4:8]
                if key == _SASL_HANDSHAKE and self._sasl is not None:
                    mechanism = _body(request)[2:].decode()
                    step = self._sasl(mechanism)
                    enabled = _short(mechanism.encode())
                    _send(writer, correlation + _OK + (1).to_bytes(4) + enabled)
                elif key == _SASL_AUTHENTICATE and step is not None:
                    answer = step(_body(request)[4:])
                    if answer is None:
                        failed = _SASL_FAILED + _short(self._error_text) + _long(b"")
                        _send(writer, correlation + failed)
                        return
                    is_authenticated = True
                    _send(writer, correlation + _OK + _NULL + _long(answer))
                elif is_authenticated or key == _API_VERSIONS:
                    _send(upstream_writer, request)
                    response = await _frame(upstream_reader)
                    _send(writer, self._translate(response, key))
                else:
                    return
        finally:
            upstream_writer.transport.abort()

    def _translate(self, response: bytes, key: int) -> bytes:
        """Return a response of the broker with the relay's port, and SASL if it is enabled."""
        if key == _METADATA:
            local = b"127.0.0.1"
            response = response.replace(
                local + self._broker.port.to_bytes(4), local + self.port.to_bytes(4)
            )
        if key == _API_VERSIONS and self._sasl is not None:
            head, number, known = response[:6], int.from_bytes(response[6:10]), response[10:]
            more = b"".join(
                each.to_bytes(2) + (0).to_bytes(2) + (highest).to_bytes(2)
                for each, highest in ((_SASL_HANDSHAKE, 1), (_SASL_AUTHENTICATE, 0))
            )
            return head + (number + 2).to_bytes(4) + more + known
        return response


# Kafka's protocol: numbers of requests (https://kafka.apache.org/protocol, "Api Keys"), and parts.
_METADATA, _SASL_HANDSHAKE, _API_VERSIONS, _SASL_AUTHENTICATE = 3, 17, 18, 36
_OK, _NULL, _SASL_FAILED = (0).to_bytes(2), b"\xff\xff", (58).to_bytes(2)


async def _frame(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(4)))


def _send(writer: asyncio.StreamWriter, frame: bytes) -> None:
    writer.write(_long(frame))


def _long(data: bytes) -> bytes:
    return len(data).to_bytes(4) + data


def _short(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data


def _body(request: bytes) -> bytes:
    """Return a request after its header of version 1: key, version, correlation, client."""
    return request[10 + int.from_bytes(request[8:10]) :]
