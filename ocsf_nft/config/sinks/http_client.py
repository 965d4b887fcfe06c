"""Base of the configuration of sinks that use HTTP."""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from ocsf_nft.config.base_table import checked
from ocsf_nft.config.sinks.base import SecretTable, SinkTable, Text, TlsTable
from ocsf_nft.delivery.receiver_settings import Credentials, Receiver
from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted

_UNFIT: Final = re.compile(r"[^\x21-\x7e]|[\"<>\\^`{|}]")
_APPENDED: Final = ("/services/collector/event", "/services/collector", "/_bulk", "/v1/logs")
#: A token (RFC 9110, 5.6.2).
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
#: Headers that are derived from the request, or that only the HTTP client may set.
_OWN_HEADERS: Final = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "x-splunk-request-channel",
    }
)


def _url(text: str) -> str:
    if _UNFIT.search(text):
        raise UsageError("must be a URL in printable ASCII: write other characters as %XX")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UsageError("must be a URL, such as https://siem.example:8088/") from error
    if parts.scheme not in {"http", "https"}:
        raise UsageError("must be a URL that begins with http:// or https://")
    if not parts.hostname or port == 0:
        raise UsageError("must be a URL with a host, and a port of 1 to 65535 if any")
    if parts.username is not None or parts.password is not None:
        raise UsageError("must not hold a user or password: give them as separate keys")
    if "#" in text:
        raise UsageError("must not hold a fragment (#), which is never sent")
    return text


def _base_url(text: str) -> str:
    if "?" in _url(text):
        raise UsageError("must not hold a query (?), since a path is appended to it")
    text = text.rstrip("/")
    for path in _APPENDED:
        if text.endswith(path):
            raise UsageError(f"must end before {path}, which is appended to it")
    return text


def _proxy_url(text: str) -> str:
    parts = urlsplit(_url(text))
    if parts.scheme != "http" or parts.path not in {"", "/"} or "?" in text:
        raise UsageError("must be a proxy's URL of http, such as http://proxy.example:3128")
    return text


def _header_name(text: str) -> str:
    if not _HEADER_NAME.fullmatch(text):
        raise UsageError(f"must be a header's name, which {quoted(text)} is not")
    if text.lower() in _OWN_HEADERS:
        raise UsageError(f"must not be {text}, which is set for each request")
    return text


Url = Annotated[str, checked(_url)]
BaseUrl = Annotated[str, checked(_base_url)]
_ProxyUrl = Annotated[str, checked(_proxy_url)]
_HeaderName = Annotated[str, checked(_header_name)]
User = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f\x7f:]*$")]


class WebSink(SinkTable):
    """Sink that sends HTTP requests to the ``url``.

    Every request has the ``headers``. The value of a header is a text, or a secret in a file,
    environment variable or systemd credential. ``tls`` is allowed only for an https URL. The
    receiver's certificate is always verified, by default with the certificate authorities of the
    system. Requests go through ``proxy``, if given. Proxies in the environment (``HTTPS_PROXY``)
    are ignored. With ``compress``, the bodies of requests are compressed (gzip).
    """

    url: BaseUrl
    headers: dict[_HeaderName, Text | SecretTable] = Field(default_factory=dict)
    tls: TlsTable | None = None
    proxy: _ProxyUrl | None = None
    compress: bool = True
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 30.0

    @model_validator(mode="after")
    def _fits_its_url(self) -> Self:
        if self.tls is not None and urlsplit(self.url).scheme != "https":
            raise ValueError("has tls, and a url that is not https: give it https, or no tls")
        names = [name.lower() for name in self.headers]
        if len(set(names)) != len(names):
            raise ValueError("headers: has one twice, since upper and lower case are the same")
        if "authorization" in names and self.credentials is not None:
            raise ValueError("headers: has Authorization, and credentials too: give one of them")
        return self

    @property
    @abstractmethod
    def credentials(self) -> Credentials | None:
        """Return the credentials that the sink sends to the receiver; None if it sends none."""

    @property
    def target(self) -> str:
        """Return the sink's default name: the URL without its query."""
        return self.receiver.name

    @property
    def receiver(self) -> Receiver:
        """Return the connection settings: URL, headers, credentials, TLS, proxy and compression."""
        return Receiver(
            url=self.url,
            headers={
                name: value if isinstance(value, str) else value.secret()
                for name, value in self.headers.items()
            },
            credentials=self.credentials,
            tls=None if self.tls is None else self.tls.tls(),
            proxy=self.proxy,
            is_compressed=self.compress,
        )


class SecuredSink(WebSink):
    """HTTP sink with a ``bearer`` token, with ``user`` and ``password``, or without credentials."""

    bearer: SecretTable | None = None
    user: User | None = None
    password: SecretTable | None = None

    @model_validator(mode="after")
    def _shows_one_thing(self) -> Self:
        if (self.user is None) != (self.password is None):
            raise ValueError("has one of user and password: give both")
        if self.bearer is not None and self.user is not None:
            raise ValueError("has a bearer token and a user: give one of them")
        return self

    @property
    def credentials(self) -> Credentials | None:
        """Return the token, or the user and password; None if there are none."""
        if self.bearer is not None:
            return Credentials("Bearer", self.bearer.secret())
        if self.user is not None and self.password is not None:
            return Credentials("Basic", self.password.secret(), self.user)
        return None
