"""HTTP as sinks speak it: one connection, bounded answers, and an error for everything else.

Redirects are not followed: what was said to be the receiver is, and no other gets the events or
the credentials. What a receiver says is hostile: it is read up to a bound, cut, and made printable.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import os
import re
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import orjson

from ocsf_nft.delivery.secrets import Secret
from ocsf_nft.delivery.tls import Tls
from ocsf_nft.errors import DeliveryError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocsf_nft.delivery.sinks.http_endpoint import Receiver

_CONNECT_SECONDS: Final = 10.0
#: What is read of an answer, where a sink does not need more of it.
_ANSWER_BYTES: Final = 1 << 16
_CHUNK_BYTES: Final = 1 << 14
#: What is shown of what a receiver says.
_TEXT_LENGTH: Final = 200
#: Below it, gzip saves no packet.
_GZIP_BYTES: Final = 1 << 10
#: From here on gzip takes long enough to be felt by what else runs.
_THREAD_BYTES: Final = 1 << 16
_GZIP_LEVEL: Final = 6
_SPACES: Final = re.compile(r"\s+")

_CUT: Final = "it cut the connection before the end of its answer"
#: The answers that are about what was sent (RFC 9110, 15.5.1, 15.5.14, 15.5.21).
_REFUSING: Final = frozenset({400, 413, 422})
_CREDENTIALS_MEND: Final = "give credentials that it takes"
_MENDS: Final = {
    401: _CREDENTIALS_MEND,
    403: _CREDENTIALS_MEND,
    404: "give the URL that it takes events at",
    405: "give the URL that it takes events at",
}
_REDIRECT_MEND: Final = "redirects are not followed, so give the URL that it points to"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer: as much of its ``body`` as was to be read, and that as ``text`` for a person.

    ``after_seconds`` is how long the receiver asked to be left alone, None where it did not.
    """

    status: int
    body: bytes
    text: str
    after_seconds: float | None

    @property
    def is_success(self) -> bool:
        """Whether it is one of 2xx."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES

    def json(self) -> Any:
        """Its body as JSON, None where it is none."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None


class Web:
    """A session with a receiver.

    Opening it reads secrets and certificates, and connects once to see who is there: no request
    is made for it, since none is known to be harmless to every receiver.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._session: aiohttp.ClientSession | None = None
        #: What is never to be seen in an error, though a receiver may repeat it.
        self._hidden: tuple[str, ...] = ()

    async def open(self) -> None:
        """Connect; raises DeliveryError."""
        headers, self._hidden, context = await asyncio.to_thread(self._prepared)
        await self._reach(None if self._receiver.proxy else context)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context or True),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS),
            # Nothing that is packed is asked for, so none can become larger than it came.
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the connection."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def ask(  # noqa: PLR0913 - what a request is made of
        self,
        method: str,
        path: str = "",
        *,
        body: bytes = b"",
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        answer_bytes: int = _ANSWER_BYTES,
    ) -> Answer:
        """Make a request, and read up to ``answer_bytes`` of its answer, whatever it is.

        Raises DeliveryError when there is none, or its end never comes.
        """
        if self._session is None:
            raise DeliveryError(f"{self._receiver.name} is not connected to")
        fields = dict(headers or {})
        if body:
            fields["Content-Type"] = content_type
            if self._receiver.is_compressed and len(body) >= _GZIP_BYTES:
                fields["Content-Encoding"] = "gzip"
                body = await _packed(body)
        try:
            async with self._session.request(
                method,
                self._receiver.url + path,
                headers=fields,
                # Written piece by piece, unlike bytes.
                data=io.BytesIO(body) if body else None,
                proxy=self._receiver.proxy,
                allow_redirects=False,
            ) as response:
                return await self._answer(response, answer_bytes)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            # Not `from error`: aiohttp's errors hold the request, with its credentials.
            raise self._failure(error) from None

    def fault(self, answer: Answer) -> DeliveryError:
        """What an answer that is no success means: RefusedError, or DeliveryError."""
        sentence = self.sentence(answer)
        if answer.status in _REFUSING:
            return RefusedError(sentence)
        return DeliveryError(sentence, after_seconds=answer.after_seconds)

    def sentence(self, answer: Answer, mend: str = "") -> str:
        """An answer for a person, with its usual mend where none is given."""
        phrase = _phrase(answer.status)
        if HTTPStatus.MULTIPLE_CHOICES <= answer.status < HTTPStatus.BAD_REQUEST:
            mend = mend or _REDIRECT_MEND
        said = [f"{self._receiver.name} answers {answer.status}{phrase}", answer.text]
        return ": ".join(part for part in (*said, mend or _MENDS.get(answer.status, "")) if part)

    def printable(self, text: object) -> str:
        """What a receiver says, fit for an error: on one line, short, and without our secrets."""
        said = str(text)
        for secret in self._hidden:
            said = said.replace(secret, "***")
        said = _SPACES.sub(" ", said[: _TEXT_LENGTH * 4]).strip()
        return "".join(c if c.isprintable() else "?" for c in said[:_TEXT_LENGTH])

    def _prepared(self) -> tuple[dict[str, str], tuple[str, ...], ssl.SSLContext | None]:
        """Headers, what of them is secret, and how to speak TLS; raises DeliveryError."""
        receiver = self._receiver
        headers = {"User-Agent": "ocsf-nft", "Accept-Encoding": "identity"}
        hidden = []
        for name, value in receiver.headers.items():
            headers[name] = value if isinstance(value, str) else value.read()
            if isinstance(value, Secret):
                hidden.append(headers[name])
        if receiver.credentials is not None:
            secret = receiver.credentials.secret.read()
            headers["Authorization"] = receiver.credentials.header(secret)
            hidden += [secret, headers["Authorization"].partition(" ")[2]]
        for name, value in headers.items():
            if not value.isprintable():
                raise DeliveryError(f"the value of the header {name} has characters that none may")
        context = (receiver.tls or Tls()).context() if receiver.is_https else None
        return headers, tuple(hidden), context

    async def _reach(self, context: ssl.SSLContext | None) -> None:
        """Connect to the next hop and leave it; raises DeliveryError."""
        host, port = self._receiver.next_hop
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, writer = await asyncio.open_connection(host, port, ssl=context)
        except (TimeoutError, OSError) as error:
            raise self._failure(error) from None
        # Not closed in the regular way: TLS waits for the other side to say good-bye.
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def _answer(self, response: aiohttp.ClientResponse, most: int) -> Answer:
        body = await _read(response, most)
        return Answer(
            status=response.status,
            body=body,
            text=self.printable(body.decode(errors="replace")),
            after_seconds=_seconds(response.headers.get("Retry-After")),
        )

    def _failure(self, error: Exception) -> DeliveryError:
        via = f" through {self._receiver.proxy}" if self._receiver.proxy else ""
        return DeliveryError(f"{self._receiver.name} can't be reached{via}: {_cause(error)}")


async def _packed(body: bytes) -> bytes:
    if len(body) < _THREAD_BYTES:
        return _gzip(body)
    return await asyncio.to_thread(_gzip, body)


def _gzip(body: bytes) -> bytes:
    return gzip.compress(body, _GZIP_LEVEL, mtime=0)


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    """An answer's body up to a bound; of what is longer, JSON is cut, and so is none."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        body += chunk
        if len(body) > most:
            response.close()
            break
    return bytes(body[:most])


def _phrase(status: int) -> str:
    """What a status is called; a receiver's own words for it are its business."""
    try:
        return f" {HTTPStatus(status).phrase}"
    except ValueError:
        return ""


def _seconds(value: str | None) -> float | None:
    """Retry-After as seconds from now: a number of them, or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        seconds = float(value[:20])
    else:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError, OSError):
            return None
    return max(0.0, seconds)


def _cause(error: Exception) -> str:
    """Why there is no answer, in our words: a receiver has a say in aiohttp's."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        error = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not to be trusted ({error.verify_message}): "
            "name its authority in tls.ca, and it as its certificate does"
        )
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answers {error.status}{_phrase(error.status)}"
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
        return _CUT
    if isinstance(error, aiohttp.ClientResponseError):
        return "what it answers is no HTTP"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason}): see whether it speaks TLS there"
    if not isinstance(error, OSError):
        return type(error).__name__
    return _systems(error)


def _systems(error: OSError) -> str:
    """What the system says, or whoever speaks in its name."""
    if isinstance(error, TimeoutError) and error.errno is None:
        return f"there is no connection after {_CONNECT_SECONDS:g} s"
    said = error.strerror or str(error)
    # aiohttp tells what it could not write by its whole URL, in which there may be a token.
    if "://" in said:
        return _CUT
    # What asyncio makes of a number is for programmers; those below 0 are of names, not of errors.
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else said
