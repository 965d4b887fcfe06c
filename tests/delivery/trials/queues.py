"""NATS JetStream and Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any, Final

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import StreamConfig

from tests.delivery.sinks.brokers import KafkaBroker, KafkaRelay, NatsServer
from tests.delivery.sinks.servers import POISON
from tests.delivery.trials.receivers import RIGHT, Receiver, padded, uid_of
from tests.delivery.trials.relay import Relay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nats.js import JetStreamContext

    from ocsf_nft.delivery.sinks.base import Message
    from tests.delivery.trials.receivers import Setting

_STREAM: Final = "ocsf"
_MESSAGE_BYTES: Final = 20_000
_TIMEOUT_SECONDS: Final = 120
#: Numbers of Kafka's protocol.
_PRODUCE, _TOO_LARGE = 0, 10


class Nats(Receiver):
    """A nats-server with a stream, which has a maximum message size."""

    refusal_text = "message size exceeds maximum allowed"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._server = NatsServer(setting.folder, "\n".join(_configured(setting)))
        self._relay = Relay(self._server.port)
        self._is_up = False

    @property
    def table(self) -> dict[str, Any]:
        port = self._relay.port if self._setting.is_slow else self._server.port
        return {
            "type": "nats",
            "servers": [f"nats://127.0.0.1:{port}"],
            "subject": "ocsf",
            **({"timeout_seconds": 0.5} if self._setting.is_slow else {}),
            **self._setting.tls,
            **self._setting.secrets("token"),
        }

    async def start(self) -> None:
        await asyncio.to_thread(self._server.start)
        self._is_up = True
        async with self._stream() as stream:
            # An existing stream is not changed.
            await stream.add_stream(
                StreamConfig(name=_STREAM, subjects=["ocsf"], max_msg_size=_MESSAGE_BYTES)
            )
        if self._setting.is_slow:
            await self._relay.open()

    async def kill(self) -> None:
        self._server.kill()
        self._is_up = False

    async def end(self) -> None:
        await self._relay.close()
        if self._is_up:
            await self.kill()

    async def uids(self) -> list[str]:
        async with self._stream() as stream:
            last = (await stream.stream_info(_STREAM)).state.last_seq
            # All requests at once: thousands of round trips take long on a busy machine.
            found = await asyncio.gather(
                *(stream.get_msg(_STREAM, number) for number in range(1, last + 1))
            )
            return [uid_of(each.data or b"") for each in found]

    async def stop_answering(self) -> None:
        self._relay.may_pass.clear()

    async def answer_slowly(self, seconds: float) -> None:
        self._relay.seconds = seconds
        self._relay.may_pass.set()

    def poisoned(self, number: int) -> Message:
        return padded(number, _MESSAGE_BYTES)

    async def accept_refused(self) -> None:
        async with self._stream() as stream:
            await stream.update_stream(
                StreamConfig(name=_STREAM, subjects=["ocsf"], max_msg_size=-1)
            )

    @contextlib.asynccontextmanager
    async def _stream(self) -> AsyncIterator[JetStreamContext]:
        """Yield another connection, with all permissions."""
        certificates = self._setting.certificates
        tls = None if certificates is None else ssl.create_default_context(cafile=certificates.ca)
        token = RIGHT if self._setting.is_locked else None
        client = Client()
        await client.connect(
            self._server.url, tls=tls, token=token, connect_timeout=_TIMEOUT_SECONDS
        )
        try:
            yield client.jetstream(timeout=_TIMEOUT_SECONDS)
        finally:
            with contextlib.suppress(NatsError):
                await client.close()


def _configured(setting: Setting) -> list[str]:
    found = []
    if setting.certificates is not None:
        cert, key = setting.certificates.certificate, setting.certificates.key
        found.append(f'tls: {{timeout: 60, cert_file: "{cert}", key_file: "{key}"}}')
    if setting.is_locked:
        found.append(f'authorization: {{timeout: 60, token: "{RIGHT}"}}')
    return found


class Kafka(Receiver):
    """A broker with a topic of three partitions; one sandbox is in one of them.

    Its events are only in memory: so it is not killed, but cuts and refuses all connections.
    """

    refusal_text = "MessageSizeTooLarge"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._broker = KafkaBroker(ocsf=3)
        self._broker.start()
        self._broker.send_command("down")
        self._relay: _Judge | None = None

    @property
    def table(self) -> dict[str, Any]:
        is_cut_soon = self._setting.is_slow or self._setting.is_cut_soon
        return {
            "type": "kafka",
            "servers": [self._broker.host if self._relay is None else self._relay.host],
            "topic": "ocsf",
            # The broker drops events above 5 MiB of a partition; and poison must be readable.
            "compress": not self._setting.is_strict,
            "timeout_seconds": 3.0 if is_cut_soon else 20.0,
            **self._setting.tls,
            **self._setting.secrets("password", sasl="PLAIN", user="me"),
        }

    async def start(self) -> None:
        self._broker.send_command("up")
        setting = self._setting
        if setting.certificates is not None or setting.is_locked or setting.is_strict:
            certificates = setting.certificates
            self._relay = _Judge(
                self._broker,
                context=None if certificates is None else certificates.context("127.0.0.1"),
                sasl=_plain if setting.is_locked else None,
            )
            await self._relay.__aenter__()

    async def kill(self) -> None:
        self._broker.send_command("down")

    async def end(self) -> None:
        if self._relay is not None:
            await self._relay.__aexit__()
        self._broker.kill()

    async def uids(self) -> list[str]:
        records = await asyncio.to_thread(self._broker.records, "ocsf")
        return [each["headers"][1] for each in records]

    async def stop_answering(self) -> None:
        self._broker.freeze()

    async def answer_slowly(self, seconds: float) -> None:
        self._broker.thaw()
        self._broker.send_command("slow", int(seconds * 1000))

    async def accept_refused(self) -> None:
        assert self._relay is not None
        self._relay.refuses_poison = False


class _Judge(KafkaRelay):
    """Relay to a broker that refuses requests with poison as too large."""

    refuses_poison = True

    def _take(self, request: bytes) -> None:
        super()._take(request)
        is_produce = int.from_bytes(request[:2]) == _PRODUCE
        if self.refuses_poison and is_produce and POISON in request:
            self._broker.send_command("fail", _PRODUCE, _TOO_LARGE, 1)


def _plain(mechanism: str) -> Callable[[bytes], bytes | None]:
    """Return a broker's side of PLAIN (RFC 4616)."""
    assert mechanism == "PLAIN"
    expected = [b"me", RIGHT.encode()]
    return lambda answer: b"" if answer.split(b"\0")[1:] == expected else None
