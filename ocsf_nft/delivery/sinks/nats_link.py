"""A connection to one NATS server, and what it answers to what is published."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from nats import errors
from nats.aio.client import Client, RawCredentials

from ocsf_nft.delivery.sinks.error_text import cause
from ocsf_nft.delivery.tls import Tls
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Collection, Mapping

    from nats.aio.msg import Msg

    from ocsf_nft.delivery.sinks.nats_login import Proof

_CONNECT_SECONDS: Final = 4
_CLOSE_SECONDS: Final = 0.2
#: How often to look whether there is still a connection.
_LOOK_SECONDS: Final = 0.25
#: What NATS begins headers with.
_HEADERS_LINE: Final = "NATS/1.0"

# What it says there, it also tells whom it calls; nobody set up a log for it.
logging.getLogger("nats").addHandler(logging.NullHandler())


class Link:
    """A connection to a server, by its URL: until it is lost, since there is no reconnecting."""

    def __init__(self, server: str) -> None:
        self.server = server
        #: What is not to be shown, though the server may repeat it.
        self.hidden: tuple[str, ...] = ()
        self._client = Client()
        self._inbox = self._client.new_inbox()
        self._numbers = itertools.count()
        self._waiting: dict[str, asyncio.Future[Msg]] = {}
        self._error: Exception | None = None

    async def open(self, proof: Proof, *, tls: Tls | None, is_tls_first: bool) -> None:
        """Connect; raises DeliveryError with the cause alone."""
        is_private = tls is not None or is_tls_first or urlsplit(self.server).scheme == "tls"
        context = (tls or Tls()).context() if is_private else None
        self.hidden = proof.hidden
        try:
            await self._client.connect(
                servers=[self.server],
                name="ocsf-nft",
                error_cb=self._see,
                allow_reconnect=False,
                # Zero would be for ever.
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=_CONNECT_SECONDS,
                tls=context,
                tls_handshake_first=is_tls_first,
                **_shown(proof, context),
            )
            _check(context)
            self._error = None
            await self._client.subscribe(f"{self._inbox}.*", cb=self._take)
        except (OSError, errors.Error, ValueError) as error:
            with contextlib.suppress(OSError, errors.Error):
                await asyncio.wait_for(self._client.close(), _CLOSE_SECONDS)
            told = self._error if isinstance(error, errors.NoServersError) else None
            # Not `from error`: its frames hold what is secret.
            raise DeliveryError(_why(told or error, proof)) from None

    @property
    def max_payload(self) -> int:
        """The bytes that the server takes of a message, its headers among them."""
        return self._client.max_payload

    @staticmethod
    def size(headers: Mapping[str, str], payload: bytes) -> int:
        """The bytes of a message, as the server counts them."""
        lines = (_HEADERS_LINE, *(f"{name}: {value}" for name, value in headers.items()), "")
        return sum(len(line.encode()) + len("\r\n") for line in lines) + len(payload)

    async def publish(
        self, subject: str, headers: dict[str, str], payload: bytes
    ) -> asyncio.Future[Msg]:
        """Send a message; what comes is its answer. Raises OSError or an error of NATS."""
        number = str(next(self._numbers))
        answer = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        answer.add_done_callback(lambda _: self._waiting.pop(number, None))
        await self._client.publish(
            subject, payload, reply=f"{self._inbox}.{number}", headers=headers
        )
        return answer

    async def answered(self, answers: Collection[asyncio.Future[Msg]]) -> None:
        """Wait for answers; raises an error of NATS when there is one before."""
        waiting: Collection[asyncio.Future[Msg]] = answers
        while waiting:
            # nats-py does not always call back when it gives a connection up.
            _, waiting = await asyncio.wait(waiting, timeout=_LOOK_SECONDS)
            if waiting and self._error is not None:
                raise self._error
            if waiting and not self._client.is_connected:
                raise self._client.last_error or errors.ConnectionClosedError

    async def _see(self, error: Exception) -> None:
        self._error = error

    async def _take(self, answer: Msg) -> None:
        waiting = self._waiting.get(answer.subject.rpartition(".")[2])
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)


def _shown(proof: Proof, context: ssl.SSLContext | None) -> dict[str, Any]:
    """What nats-py shows the server of us."""

    def guarded(secret: str) -> Callable[[], str]:
        def show() -> str:
            _check(context)
            return secret

        return show

    given = {"token": proof.token, "user": proof.user, "password": proof.password}
    shown: dict[str, Any] = {
        name: guarded(value) for name, value in given.items() if value is not None
    }
    if proof.seed is not None:
        shown["nkeys_seed_str"] = proof.seed
    if proof.credentials is not None:
        shown["user_credentials"] = RawCredentials(proof.credentials)
    return shown


def _check(context: ssl.SSLContext | None) -> None:
    """Raise SecureConnWantedError where TLS is wanted and no handshake has succeeded.

    Whether there is TLS, the server says: nats-py goes on in the clear where it says no.
    """
    if context is not None and context.session_stats()["connect_good"] == 0:
        raise errors.SecureConnWantedError


def _why(error: Exception, proof: Proof) -> str:
    if isinstance(error, errors.SecureConnWantedError):
        return "it offers no TLS: turn that on there, since nothing is sent in the clear"
    if isinstance(error, ValueError) and not isinstance(error, OSError):  # as some of TLS are
        return "what it says is not NATS: see whether that is its port"
    said = cause(error, proof.hidden)
    if "authorization" in said.lower():
        return f"{said}: give credentials that it takes"
    return said
