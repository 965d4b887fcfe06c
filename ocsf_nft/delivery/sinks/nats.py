"""Sink for a stream of NATS JetStream.

A message's ``Nats-Msg-Id`` is the event's uid. So within the stream's duplicate window
(``nats stream add --dupe-window``), an event that is sent twice is stored only once.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from ocsf_nft.delivery.line_fields import LineFields
from ocsf_nft.delivery.sinks.base import BatchResult, Message, Refusal, Sink
from ocsf_nft.delivery.sinks.error_text import cause, printable
from ocsf_nft.delivery.sinks.json_access import decoded, integer, text, value_at
from ocsf_nft.delivery.sinks.loop_thread import LoopThread
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from nats.aio.msg import Msg

    from ocsf_nft.delivery.receiver_settings import Secret, Tls
    from ocsf_nft.delivery.sinks.nats_link import NatsConnection

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
#: Maximum size of a credentials file that is read.
_MAX_BYTES: Final = 1 << 16
#: Parts of a credentials file, as nsc writes it.
_JWT: Final = re.compile(r"-BEGIN NATS USER JWT-+\s+([\w.=-]+)\s+-+END NATS USER JWT-")
_SEED: Final = re.compile(r"-BEGIN USER NKEY SEED-+\s+(\w+)\s+-+END USER NKEY SEED-")
_CREDENTIALS: Final = (
    "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n"
    "-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
)


@dataclass(frozen=True, slots=True, repr=False)
class LoginValues:
    """Credentials for one login to a NATS server, as read from files or environment variables."""

    #: Options of nats-py's method ``connect``, as text.
    options: Mapping[str, str]
    #: All secret texts, so that they can be masked in errors.
    secrets: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Credentials for a NATS server: the user's name, and the locations of the secrets.

    At most one of ``token``, ``password``, ``nkey`` and ``credentials`` is set.
    """

    token: Secret | None = None
    user: str | None = None
    password: Secret | None = None
    #: Location of a user's seed (a private key).
    nkey: Secret | None = None
    #: Credentials file of the tool ``nsc``.
    credentials: Path | None = None

    def read(self) -> LoginValues:
        """Read the current credentials; raises DeliveryError if one is missing or invalid."""
        if self.token is not None:
            token = self.token.read()
            return LoginValues({"token": token}, (token,))
        if self.password is not None:
            password = self.password.read()
            return LoginValues({"user": self.user or "", "password": password}, (password,))
        if self.nkey is not None:
            seed = self.nkey.read()
            _check_seed(seed, f"{self.nkey.kind} {self.nkey.location}")
            return LoginValues({"nkeys_seed_str": seed}, (seed,))
        if self.credentials is not None:
            return _credentials(self.credentials)
        return LoginValues({}, ())


@dataclass(frozen=True, slots=True)
class _Rejection:
    """Refusal of a message; ``is_final`` is true if a retry of this message can't succeed."""

    reason: str
    is_final: bool


@dataclass(kw_only=True, eq=False, repr=False)
class Nats(Sink):
    """Sink that publishes events to a NATS subject, and waits until a stream has stored them."""

    #: URLs, tried in random order.
    servers: Sequence[str]
    subject: str
    #: The subject ends with the event's class.
    has_class: bool = False
    #: The only stream that may store the events; None permits any stream.
    stream: str | None = None
    login: Login = field(default_factory=Login)
    tls: Tls | None = None
    #: TLS begins before the server's first message: for a server with ``handshake_first``.
    is_tls_first: bool = False
    _thread: LoopThread = field(init=False, default_factory=lambda: LoopThread("nats"))
    _connection: NatsConnection | None = field(init=False, default=None)

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

        login = self.login.read()
        causes = []
        for server in random.sample(self.servers, len(self.servers)):
            connection = NatsConnection(server)
            try:
                await connection.open(login, tls=self.tls, is_tls_first=self.is_tls_first)
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
        """Publish messages; return a rejection of each, or None if the stream has stored it."""
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
        headers = {_MESSAGE_ID: message.uid}
        if self.stream is not None:
            headers[_EXPECTED_STREAM] = self.stream
        if connection.size(headers, message.line) > connection.max_payload:
            return None  # the server would close the connection
        subject = self.subject
        if self.has_class:
            name = LineFields(message.line).text("class_name").lower()
            subject = f"{subject}.{_NOT_IN_TOKEN.sub('_', name) or 'none'}"
        return await connection.publish(subject, headers, message.line)

    def _rejection(self, answer: Msg, connection: NatsConnection) -> _Rejection | None:
        if answer.headers and answer.headers.get(_STATUS) == _NO_RESPONDERS:
            subjects = f"{self.subject}.*" if self.has_class else self.subject
            raise DeliveryError(
                f"no stream has the subject {subjects}: unless its servers are electing a leader "
                f"now, create one: `nats stream add ocsf --subjects '{subjects}' --defaults`"
            )
        reply = decoded(answer.data)
        error = value_at(reply, "error")
        if isinstance(error, dict):
            explanation = printable(error.get("description", error), connection.secrets)
            return _Rejection(
                f"the stream of {self.subject} answers: {explanation}",
                is_final=error.get("err_code") == _TOO_LARGE,
            )
        if not text(reply, "stream") or integer(reply, "seq") is None:
            raise DeliveryError(
                f"the answer on subject {self.subject} is not from a stream: "
                "let no client reply there"
            )
        return None


def _credentials(path: Path) -> LoginValues:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES).decode("ascii", "replace")
    except OSError as error:
        raise DeliveryError(f"the credentials in {path} can't be read: {error.strerror}") from error
    jwt, seed = _JWT.search(content), _SEED.search(content)
    if jwt is None or seed is None:
        raise DeliveryError(
            f"{path} holds no credentials of a user: create some with `nsc generate creds`"
        )
    _check_seed(seed[1], str(path))
    known = _CREDENTIALS.format(jwt=jwt[1], seed=seed[1])
    return LoginValues({"user_credentials": known}, (jwt[1], seed[1]))


def _check_seed(seed: str, source: str) -> None:
    import nkeys  # type: ignore[import-untyped]  # noqa: PLC0415 - it ships no types; only a login needs it

    try:
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    # ValueError comes from base32 or from the text encoding.
    except (nkeys.NkeysError, ValueError):
        # Not `from error`: it may show the secret.
        raise DeliveryError(
            f"{source} holds no seed of an nkey: nsc and nk make seeds that begin with SU"
        ) from None


def _name(server: str) -> str:
    return f"NATS server {urlsplit(server).netloc}"
