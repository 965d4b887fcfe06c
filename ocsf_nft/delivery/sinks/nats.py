"""Sink for a stream of NATS JetStream.

A message's ``Nats-Msg-Id`` is the event's uid. So within the stream's duplicate window
(``nats stream add --dupe-window``), an event that is sent twice is stored only once.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import orjson

from ocsf_nft.delivery.sinks.base import BatchResult, Message, Refusal, Sink
from ocsf_nft.delivery.sinks.error_text import cause, printable
from ocsf_nft.delivery.sinks.loop_thread import LoopThread
from ocsf_nft.delivery.sinks.nats_login import Login
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from nats.aio.msg import Msg

    from ocsf_nft.delivery.sinks.nats_link import NatsConnection
    from ocsf_nft.delivery.tls import Tls

#: Maximum number of messages without an acknowledgement; a stream allows a few thousand.
_WINDOW: Final = 256
#: Error code: the message is larger than the stream's maximum (nats-server, errors.json).
_TOO_LARGE: Final = 10054
#: Headers of JetStream, and the status if a subject has no subscriber (ADR-4 of NATS).
_MESSAGE_ID: Final = "Nats-Msg-Id"
_EXPECTED_STREAM: Final = "Nats-Expected-Stream"
_STATUS: Final = "Status"
_NO_RESPONDERS: Final = "503"
_NOT_IN_TOKEN: Final = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True)
class _Rejection:
    """Refusal of a message; ``is_final`` is true if a retry of this message can't succeed."""

    reason: str
    is_final: bool


class Nats(Sink):
    """Sink that publishes events to a NATS subject, and waits until a stream has stored them.

    With ``has_class``, the subject ends with the event's class. ``stream`` is the only stream that
    may store the events; None permits any stream. With ``is_tls_first``, TLS begins before the
    server's first message.
    """

    def __init__(  # noqa: PLR0913 - the settings of a connection and a subject
        self,
        *,
        servers: Sequence[str],
        subject: str,
        has_class: bool = False,
        stream: str | None = None,
        login: Login | None = None,
        tls: Tls | None = None,
        is_tls_first: bool = False,
    ) -> None:
        #: URLs, tried in random order.
        self._servers = tuple(servers)
        self._subject = subject
        self._has_class = has_class
        self._stream = stream
        self._login = login or Login()
        self._tls = tls
        # For a server with the setting ``handshake_first``.
        self._is_tls_first = is_tls_first
        self._thread = LoopThread("nats")
        self._connection: NatsConnection | None = None

    async def open(self) -> None:
        """Connect to one of the servers; raises DeliveryError if none is reachable."""
        self._thread.start()
        try:
            self._connection = await self._thread.run(self._connect())
        except BaseException:
            await self._thread.stop()
            raise

    async def close(self) -> None:
        """Abort the connection to the server."""
        self._connection = None
        await self._thread.stop()

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Publish a batch of events, and wait for the answer to each event.

        Raises DeliveryError if the connection breaks, no stream has the subject, or an
        answer is not from a stream.
        """
        if self._connection is None:
            raise DeliveryError("no NATS server is connected")
        return await self._thread.run(self._deliver(self._connection, messages))

    async def _connect(self) -> NatsConnection:
        # The process that only creates a sink needs no library.
        from ocsf_nft.delivery.sinks.nats_link import NatsConnection  # noqa: PLC0415 - needs nats-py

        login = self._login.read()
        causes = []
        for server in random.sample(self._servers, len(self._servers)):
            connection = NatsConnection(server)
            try:
                await connection.open(login, tls=self._tls, is_tls_first=self._is_tls_first)
            except DeliveryError as error:
                causes.append(f"{_name(server)} can't be used: {error}")
            else:
                return connection
        raise DeliveryError("; ".join(causes))

    async def _deliver(
        self, connection: NatsConnection, messages: Sequence[Message]
    ) -> BatchResult:
        refused: list[Refusal] = []
        again: list[Message] = []
        reason = ""
        for start in range(0, len(messages), _WINDOW):
            window = messages[start : start + _WINDOW]
            for message, rejection in zip(
                window, await self._publish_all(connection, window), strict=True
            ):
                if rejection is None:
                    continue
                if rejection.is_final:
                    refused.append(Refusal(message, rejection.reason))
                else:
                    again.append(message)
                    reason = reason or rejection.reason
        return BatchResult(refused=tuple(refused), again=tuple(again), reason=reason)

    async def _publish_all(
        self, connection: NatsConnection, messages: Sequence[Message]
    ) -> list[_Rejection | None]:
        """Publish messages; return None or a rejection for each message, in the same order.

        None means that the stream stored the message. Raises DeliveryError if the
        connection breaks or an answer is not from a stream.
        """
        from nats import errors  # noqa: PLC0415 - as in _connect

        try:
            answers = [await self._publish(connection, message) for message in messages]
            await connection.wait_for([answer for answer in answers if answer is not None])
        except (OSError, errors.Error) as error:
            explanation = cause(error, connection.secrets)
            # Not `from error`: the error may repeat our secret.
            raise DeliveryError(
                f"{_name(connection.server)} can't be used: {explanation}"
            ) from None
        oversized = _Rejection(
            f"with its headers it has more than the {connection.max_payload} bytes that "
            f"{_name(connection.server)} accepts: raise max_payload there",
            is_final=True,
        )
        return [
            oversized if answer is None else self._rejection(answer.result(), connection)
            for answer in answers
        ]

    async def _publish(
        self, connection: NatsConnection, message: Message
    ) -> asyncio.Future[Msg] | None:
        """Publish a message, and return the future of its answer.

        Return None, and publish nothing, if the message is too large: the server would
        close the connection.
        """
        headers = {_MESSAGE_ID: message.uid}
        if self._stream is not None:
            headers[_EXPECTED_STREAM] = self._stream
        if connection.size(headers, message.line) > connection.max_payload:
            return None
        subject = self._subject
        if self._has_class:
            subject = f"{subject}.{_class_token(message.event())}"
        return await connection.publish(subject, headers, message.line)

    def _rejection(self, answer: Msg, connection: NatsConnection) -> _Rejection | None:
        """Return the rejection in an answer to a message; None if the stream stored the message.

        Raises DeliveryError if the answer is not from a stream.
        """
        if answer.headers and answer.headers.get(_STATUS) == _NO_RESPONDERS:
            subjects = f"{self._subject}.*" if self._has_class else self._subject
            raise DeliveryError(
                f"no stream has the subject {subjects}: unless its servers are electing a leader "
                f"now, create one: `nats stream add ocsf --subjects '{subjects}' --defaults`"
            )
        reply = _decode(answer.data)
        error = reply.get("error")
        if isinstance(error, dict):
            explanation = printable(error.get("description", error), connection.secrets)
            return _Rejection(
                f"the stream of {self._subject} answers: {explanation}",
                is_final=error.get("err_code") == _TOO_LARGE,
            )
        if not isinstance(reply.get("stream"), str) or not isinstance(reply.get("seq"), int):
            raise DeliveryError(
                f"the answer on subject {self._subject} is not from a stream: "
                "let no client reply there"
            )
        return None


def _decode(data: bytes) -> dict[str, Any]:
    try:
        reply = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return reply if isinstance(reply, dict) else {}


def _class_token(event: Any) -> str:
    """Return an event's class as a part of a NATS subject, for example ``network_activity``."""
    name = event.get("class_name") if isinstance(event, dict) else None
    return _NOT_IN_TOKEN.sub("_", str(name).lower()) or "none"


def _name(server: str) -> str:
    return f"NATS server {urlsplit(server).netloc}"
