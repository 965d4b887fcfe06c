"""HTTP client that the sinks share.

Redirects are not followed, so only the configured receiver gets the events and the credentials. The
text of an answer is untrusted, so it is shortened and made printable.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.client import responses
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.delivery.receiver_settings import Receiver, Secret, Tls
from ocsf_nft.delivery.sinks.error_text import cause, printable
from ocsf_nft.delivery.sinks.json_access import decoded
from ocsf_nft.errors import DeliveryError, RefusedError, reason_of
from ocsf_nft.redaction.forms import is_secret_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    import aiohttp


_CONNECT_SECONDS: Final = 10.0
#: Maximum size of an answer that is read, unless a sink needs more.
_ANSWER_BYTES: Final = 1 << 16
_CHUNK_BYTES: Final = 1 << 14
#: Minimum size for gzip: compression of a smaller body saves no packet.
_GZIP_BYTES: Final = 1 << 10
#: Minimum size for gzip in a thread: compression of it would block the event loop noticeably.
_THREAD_BYTES: Final = 1 << 16
#: Levels of gzip. For an event of 3.3 kB, isal takes 1.7 µs and leaves 230 bytes. Python's zlib
#: takes 10 µs and leaves 260; its level 6 takes 23 µs and leaves 160.
_ISAL_LEVEL: Final = 2
_ZLIB_LEVEL: Final = 2

_CLOSED_EARLY: Final = "it closed the connection before the end of its answer"
#: Status codes that refuse the content of a request (RFC 9110, 15.5.1, 15.5.14, 15.5.21).
_REFUSING: Final = frozenset({400, 413, 422})
_CREDENTIALS_REMEDY: Final = "give credentials that it accepts"
_REMEDIES: Final = {
    401: _CREDENTIALS_REMEDY,
    403: _CREDENTIALS_REMEDY,
    404: "give the URL at which it accepts events",
    405: "give the URL at which it accepts events",
}
_REDIRECT_REMEDY: Final = "redirects are not followed, so give the URL that it points to"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """Answer of a receiver of events to an HTTP request."""

    status: int
    #: May be cut: see ``answer_bytes`` of :meth:`HttpSession.request`.
    body: bytes
    #: Pause before a retry, from the header Retry-After; None if that is missing or invalid.
    after_seconds: float | None

    @property
    def is_success(self) -> bool:
        """Return True if the status is 2xx."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES

    def json(self) -> Any:
        """Return the body as decoded JSON; None if the body is not JSON."""
        return decoded(self.body)


class HttpSession:
    """HTTP session with a receiver of events, for sinks to inherit from.

    :meth:`open` connects once as a test. The test sends no request, because any request could
    change the state of some receivers.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._session: aiohttp.ClientSession | None = None
        #: Texts that no error may show, although a receiver may repeat them.
        self._secrets: tuple[str, ...] = ()

    async def open(self) -> None:
        """Read secrets and certificates, and test the connection; raises DeliveryError."""
        import aiohttp  # noqa: PLC0415 - the process that only creates a sink needs no library

        headers, self._secrets, context = await asyncio.to_thread(self._prepare)
        await self._test_connection(None if self._receiver.proxy else context)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context or True),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS),
            # No compressed answer is requested, so an answer can't grow by decompression.
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the session and its connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def request(  # noqa: PLR0913 - the parts of a request
        self,
        method: str,
        path: str = "",
        *,
        body: bytes = b"",
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        answer_bytes: int = _ANSWER_BYTES,
    ) -> HttpAnswer:
        """Send a request and return the answer, whatever its status.

        ``path`` is appended to the receiver's URL. At most ``answer_bytes`` of the answer's body
        are read. Raises DeliveryError if the session is not open, or if no complete answer arrives.
        """
        import aiohttp  # noqa: PLC0415 - as in open

        if self._session is None:
            raise DeliveryError(f"{self._receiver.name} is not connected")
        fields = dict(headers or {})
        if body:
            fields["Content-Type"] = content_type
            if self._receiver.is_compressed and len(body) >= _GZIP_BYTES:
                fields["Content-Encoding"] = "gzip"
                body = await _compress(body)
        try:
            async with self._session.request(
                method,
                self._receiver.url + path,
                headers=fields,
                # aiohttp writes a file in chunks, but bytes at once.
                data=io.BytesIO(body) if body else None,
                proxy=self._receiver.proxy,
                allow_redirects=False,
            ) as response:
                return HttpAnswer(
                    status=response.status,
                    body=await _read(response, answer_bytes),
                    after_seconds=_retry_after_seconds(response.headers.get("Retry-After")),
                )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            # Not `from error`: aiohttp's errors hold the request, with its credentials.
            raise self._failure(error) from None

    def error(self, answer: HttpAnswer) -> DeliveryError:
        """Return the exception for an answer without success.

        The status codes 400, 413 and 422 mean that the receiver refuses the content: they give a
        RefusedError. Any other status gives a DeliveryError.
        """
        sentence = self.describe(answer)
        if answer.status in _REFUSING:
            return RefusedError(sentence)
        return DeliveryError(sentence, after_seconds=answer.after_seconds)

    def describe(self, answer: HttpAnswer, remedy: str = "") -> str:
        """Return a sentence for the user: the receiver's answer, and an instruction.

        ``remedy`` is the instruction. If ``remedy`` is empty, a default instruction is used for
        some status codes.
        """
        if HTTPStatus.MULTIPLE_CHOICES <= answer.status < HTTPStatus.BAD_REQUEST:
            remedy = remedy or _REDIRECT_REMEDY
        text = self.printable(answer.body.decode(errors="replace"))
        answered = [f"{self._receiver.name} answers {_status_text(answer.status)}", text]
        return ": ".join(
            part for part in (*answered, remedy or _REMEDIES.get(answer.status, "")) if part
        )

    def printable(self, text: object) -> str:
        """Return a text from the receiver as one short printable line.

        Passwords and tokens of this session are masked in the line.
        """
        return printable(text, self._secrets)

    def _prepare(self) -> tuple[dict[str, str], tuple[str, ...], ssl.SSLContext | None]:
        """Return the headers of requests, the secrets in them, and the TLS context of https."""
        receiver = self._receiver
        headers = {"User-Agent": "ocsf-nft", "Accept-Encoding": "identity"}
        secrets = []
        for name, value in receiver.headers.items():
            headers[name] = value if isinstance(value, str) else value.read()
            if isinstance(value, Secret) or is_secret_name(name):
                secrets.append(headers[name])
        if receiver.credentials is not None:
            secret = receiver.credentials.secret.read()
            headers["Authorization"] = receiver.credentials.header(secret)
            secrets += [secret, headers["Authorization"].partition(" ")[2]]
        for name, value in headers.items():
            if not value.isprintable():
                raise DeliveryError(f"the header {name} has characters that are not printable")
        context = (receiver.tls or Tls()).context() if receiver.is_https else None
        return headers, tuple(secrets), context

    async def _test_connection(self, context: ssl.SSLContext | None) -> None:
        host, port = self._receiver.next_hop
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, writer = await asyncio.open_connection(host, port, ssl=context)
        except (TimeoutError, OSError) as error:
            raise self._failure(error) from None
        # Aborted, since a regular close of TLS waits for the peer's close_notify.
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    def _failure(self, error: Exception) -> DeliveryError:
        via = f" through {self._receiver.proxy}" if self._receiver.proxy else ""
        return DeliveryError(f"{self._receiver.name} can't be reached{via}: {_cause(error)}")


async def _compress(body: bytes) -> bytes:
    if len(body) < _THREAD_BYTES:
        return _gzip(body)
    return await asyncio.to_thread(_gzip, body)


def _gzip(body: bytes) -> bytes:
    try:
        from isal import igzip  # noqa: PLC0415 - not available for every processor
    except ImportError:
        return gzip.compress(body, _ZLIB_LEVEL, mtime=0)
    return igzip.compress(body, _ISAL_LEVEL, mtime=0)


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            response.close()
            break
    # A cut JSON object is not valid JSON, so no caller can mistake it for a complete object.
    return bytes(body[:max_bytes])


def _status_text(status: int) -> str:
    # The phrase that the receiver sent is untrusted.
    return f"{status} {responses.get(status, '')}".rstrip()


def _retry_after_seconds(value: str | None) -> float | None:
    # A number of seconds or a date (RFC 9110, 10.2.3).
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
    import aiohttp  # noqa: PLC0415 - as in HttpSession.open

    # aiohttp's own texts are not used: they may contain untrusted text of the receiver.
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        error = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answers {_status_text(error.status)}"
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
        return _CLOSED_EARLY
    if isinstance(error, aiohttp.ClientResponseError):
        return "its answer is not HTTP"
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS failed ({error.reason}): check that this port uses TLS"
    if not isinstance(error, OSError):
        return type(error).__name__
    if isinstance(error, TimeoutError) and error.errno is None:
        return f"no connection after {_CONNECT_SECONDS:g} s"
    # aiohttp's write error has the whole URL, which may hold a token.
    return _CLOSED_EARLY if "://" in reason_of(error) else cause(error)
