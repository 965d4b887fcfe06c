"""Connection to one NATS server: publishes messages, and receives an answer to each message."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from nats import errors
from nats.aio.client import Client, RawCredentials

from ocsf_nft.delivery.receiver_settings import Tls
from ocsf_nft.delivery.sinks.error_text import cause
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Collection, Mapping

    from nats.aio.msg import Msg

    from ocsf_nft.delivery.sinks.nats import LoginValues

_CONNECT_SECONDS: Final = 4
_CLOSE_SECONDS: Final = 0.2
#: Interval of the checks that the connection is still open.
_CHECK_SECONDS: Final = 0.25
#: First line of headers in NATS.
_HEADERS_LINE: Final = "NATS/1.0"

# nats-py also passes these errors to callbacks. Without a handler Python would print them.
logging.getLogger("nats").addHandler(logging.NullHandler())


class NatsConnection:
    """Connection to the NATS server at a URL; it does not reconnect after a failure."""

    def __init__(self, server: str) -> None:
        self.server = server
        #: Texts that no error may show, although the server may repeat them.
        self.secrets: tuple[str, ...] = ()
        self._client = Client()
        self._inbox = self._client.new_inbox()
        self._numbers = itertools.count()
        self._waiting: dict[str, asyncio.Future[Msg]] = {}
        self._error: Exception | None = None

    async def open(self, login: LoginValues, *, tls: Tls | None, is_tls_first: bool) -> None:
        """Connect to the server and log in.

        TLS is required with ``tls``, with ``is_tls_first`` or for a URL ``tls://…``. With
        ``is_tls_first``, TLS begins before the first NATS message. Raises DeliveryError if the
        connection or the login fails. The text of the error does not contain the server's name.
        """
        # In other cases, the server decides.
        requires_tls = tls is not None or is_tls_first or urlsplit(self.server).scheme == "tls"
        context = (tls or Tls()).context() if requires_tls else None
        self.secrets = login.secrets
        try:
            await self._client.connect(
                servers=[self.server],
                name="ocsf-nft",
                error_cb=self._store_error,
                allow_reconnect=False,
                # Zero would mean no limit.
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=_CONNECT_SECONDS,
                tls=context,
                tls_handshake_first=is_tls_first,
                **_login_options(login.options, context),
            )
            _require_tls(context)
            self._error = None
            await self._client.subscribe(f"{self._inbox}.*", cb=self._accept)
        except (OSError, errors.Error, ValueError) as error:
            with contextlib.suppress(OSError, errors.Error):
                await asyncio.wait_for(self._client.close(), _CLOSE_SECONDS)
            reported = self._error if isinstance(error, errors.NoServersError) else None
            # Not `from error`: its frames hold the secrets.
            raise DeliveryError(_explain(reported or error, login)) from None

    @property
    def max_payload(self) -> int:
        """Return the server's maximum size of a message in bytes, headers included."""
        return self._client.max_payload

    @staticmethod
    def size(headers: Mapping[str, str], payload: bytes) -> int:
        """Return the size of a message as the server counts it, in bytes, headers included."""
        lines = (_HEADERS_LINE, *(f"{name}: {value}" for name, value in headers.items()), "")
        return sum(len(line.encode()) + len("\r\n") for line in lines) + len(payload)

    async def publish(
        self, subject: str, headers: dict[str, str], payload: bytes
    ) -> asyncio.Future[Msg]:
        """Publish a message, and return a future for the server's answer.

        Normally, the answer confirms that a NATS stream has stored the message. Raises OSError or
        an error of NATS if the message can't be sent.
        """
        number = str(next(self._numbers))
        answer = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        answer.add_done_callback(lambda _: self._waiting.pop(number, None))
        await self._client.publish(
            subject, payload, reply=f"{self._inbox}.{number}", headers=headers
        )
        return answer

    async def wait_for(self, answers: Collection[asyncio.Future[Msg]]) -> None:
        """Wait for all ``answers``, which are futures that :meth:`publish` has returned.

        Raises the connection's error if the connection fails before all answers have arrived.
        """
        waiting: Collection[asyncio.Future[Msg]] = answers
        while waiting:
            # nats-py does not always call back when it closes a connection.
            _, waiting = await asyncio.wait(waiting, timeout=_CHECK_SECONDS)
            if waiting and self._error is not None:
                raise self._error
            if waiting and not self._client.is_connected:
                raise self._client.last_error or errors.ConnectionClosedError

    async def _store_error(self, error: Exception) -> None:
        self._error = error

    async def _accept(self, answer: Msg) -> None:
        waiting = self._waiting.get(answer.subject.rpartition(".")[2])
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)


def _login_options(options: Mapping[str, str], context: ssl.SSLContext | None) -> dict[str, Any]:
    def guarded(secret: str) -> Callable[[], str]:
        def release() -> str:
            # nats-py calls this before it sends the secret.
            _require_tls(context)
            return secret

        return release

    unguarded = {"nkeys_seed_str": str, "user_credentials": RawCredentials}
    return {name: unguarded.get(name, guarded)(value) for name, value in options.items()}


def _require_tls(context: ssl.SSLContext | None) -> None:
    # nats-py continues without encryption if the server does not announce TLS.
    if context is not None and context.session_stats()["connect_good"] == 0:
        raise errors.SecureConnWantedError


def _explain(error: Exception, login: LoginValues) -> str:
    if isinstance(error, errors.SecureConnWantedError):
        return "it offers no TLS: enable TLS there, since nothing is sent without encryption"
    # Some errors of TLS are both a ValueError and an OSError.
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return "its answer is not NATS: check the port"
    text = cause(error, login.secrets)
    if "authorization" in text.lower():
        return f"{text}: give credentials that it accepts"
    return text
