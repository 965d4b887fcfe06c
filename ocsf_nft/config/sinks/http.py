"""Configuration of sinks that use HTTP: ``http``, ``splunk_hec``, ``opensearch`` and ``otlp``."""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from ocsf_nft.config.base_table import checked
from ocsf_nft.config.sinks.base import SecretTable, SinkTable, Text, TlsTable
from ocsf_nft.delivery.receiver_settings import Credentials, Receiver
from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink

_UNFIT: Final = re.compile(r"[^\x21-\x7e]|[\"<>\\^`{|}]")
_APPENDED: Final = ("/services/collector/event", "/services/collector", "/_bulk", "/v1/logs")
#: A token (RFC 9110, 5.6.2).
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
#: Headers that are derived from the request, or that only the HTTP client may set.
_OWN_HEADERS: Final = frozenset(
    {
        "accept-encoding", "connection", "content-encoding", "content-length", "content-type",
        "expect", "host", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade",
        "user-agent", "x-splunk-request-channel",
    }
)  # fmt: skip


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


_Url = Annotated[str, checked(_url)]
_BaseUrl = Annotated[str, checked(_base_url)]
_ProxyUrl = Annotated[str, checked(_proxy_url)]
_HeaderName = Annotated[str, checked(_header_name)]
_User = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f\x7f:]*$")]


class WebSink(SinkTable):
    """Sink that sends HTTP requests to the ``url``.

    Every request has the ``headers``. The value of a header is a text, or a secret in a file,
    environment variable or systemd credential. ``tls`` is allowed only for an https URL. The
    receiver's certificate is always verified, by default with the certificate authorities of the
    system. Requests go through ``proxy``, if given. Proxies in the environment (``HTTPS_PROXY``)
    are ignored. With ``compress``, the bodies of requests are compressed (gzip).
    """

    extra: ClassVar[str] = "http"
    modules: ClassVar[tuple[str, ...]] = ("aiohttp",)

    url: _BaseUrl
    """URL of the receiver."""
    headers: dict[_HeaderName, Text | SecretTable] = Field(default_factory=dict)
    """Headers of each request; a value is text or a secret."""
    tls: TlsTable | None = None
    """TLS settings for a URL of https."""
    proxy: _ProxyUrl | None = None
    """URL of the HTTP proxy for the requests."""
    compress: bool = True
    """Send batches compressed (gzip)."""
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 30.0

    @model_validator(mode="after")
    def _fits_its_url(self) -> Self:
        if self.tls is not None and urlsplit(self.url).scheme != "https":
            raise ValueError("has tls, and a url that is not https: give it https, or no tls")
        names = [name.lower() for name in self.headers]
        if len(set(names)) != len(names):
            raise ValueError("headers: has one twice, since upper and lower case are the same")
        if "authorization" in names and self._credentials is not None:
            raise ValueError("headers: has Authorization, and credentials too: give one of them")
        return self

    @property
    @abstractmethod
    def _credentials(self) -> Credentials | None: ...

    @property
    def _target(self) -> str:
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
            credentials=self._credentials,
            tls=None if self.tls is None else self.tls.tls(),
            proxy=self.proxy,
            is_compressed=self.compress,
        )


class SecuredSink(WebSink):
    """HTTP sink with a ``bearer`` token, with ``user`` and ``password``, or without credentials."""

    bearer: SecretTable | None = None
    """Bearer token."""
    user: _User | None = None
    """User; needs password."""
    password: SecretTable | None = None
    """Password of the user."""

    @model_validator(mode="after")
    def _shows_one_thing(self) -> Self:
        if (self.user is None) != (self.password is None):
            raise ValueError("has one of user and password: give both")
        if self.bearer is not None and self.user is not None:
            raise ValueError("has a bearer token and a user: give one of them")
        return self

    @property
    def _credentials(self) -> Credentials | None:
        if self.bearer is not None:
            return Credentials("Bearer", self.bearer.secret())
        if self.user is not None and self.password is not None:
            return Credentials("Basic", self.password.secret(), self.user)
        return None


class HttpSink(SecuredSink):
    """Sink that sends events as JSON over HTTP: a batch is one request to the ``url``.

    ``format`` is ``ndjson`` (one event a line) or ``json_array``. ``method`` is the HTTP method. An
    answer 2xx means that the receiver has the batch. 400, 413 or 422 means that the receiver
    refuses the batch. Then the batch is sent in smaller parts. If the receiver refuses a part
    with only one event, this event becomes a dead letter. After any other answer, the batch is sent
    again later. ``compress`` is off by default, because not every receiver accepts gzip.

    Credentials are optional: ``bearer``, or ``user`` with ``password``. ``tls`` with a certificate
    and a key is for a receiver that requires a client certificate (mTLS). The value of a header can
    be a secret too: ``headers = { X-Api-Key = { env = "KEY" } }`` reads the environment variable
    KEY.
    """

    type: Literal["http"]
    url: _Url
    method: Literal["POST", "PUT"] = "POST"
    """Method of the requests."""
    format: Literal["json_array", "ndjson"] = "ndjson"
    """One event a line, or an array of events."""
    compress: bool = False

    def _sink(self) -> Sink:
        from ocsf_nft.delivery.sinks.http import Http  # noqa: PLC0415 - if configured

        return Http(receiver=self.receiver, method=self.method, form=self.format)


_IndexName = Annotated[str, Field(pattern=r"^[a-z0-9_][a-z0-9_-]{0,79}$")]


class SplunkHecSink(WebSink):
    """Splunk HTTP Event Collector at ``url``, such as https://splunk.example:8088, without a path.

    ``token`` is the collector's token. Events go to the ``index`` (by default the token's index)
    with the ``source`` and ``sourcetype``. Choose a ``sourcetype`` that begins with ``ocsf:``,
    because Splunk's pipelines and its OCSF-CIM add-on apply to the source types ``ocsf:*``.

    With ``ack_seconds``, an event counts as delivered only when an indexer reports that the event
    is on disk. If no such report arrives within ``ack_seconds``, the event is sent again. The
    token must have indexer acknowledgement. Set ``ack_seconds`` to 60 or more, since the report can
    be late. ``timeout_seconds`` limits the complete delivery, including the wait for the report.
    Set ``timeout_seconds`` to more than ``ack_seconds``. Without ``ack_seconds``, events in the
    collector's memory count as delivered. If the collector crashes, these events are dropped.
    """

    type: Literal["splunk_hec"]
    token: SecretTable
    """Token of the HTTP Event Collector."""
    index: _IndexName | None = None
    """Index of the events; by default the token's."""
    source: Text = "ocsf-nft"
    """Splunk's source of the events."""
    sourcetype: Text = "ocsf:ocsf-nft"
    """Splunk's source type of the events."""
    ack_seconds: Annotated[float, Field(gt=0, lt=3600)] | None = None
    """Maximum time until an indexer acknowledges a batch."""

    @model_validator(mode="after")
    def _waits_longer_than_for_an_acknowledgement(self) -> Self:
        if self.ack_seconds is not None and self.ack_seconds >= self.timeout_seconds:
            raise ValueError(
                f"ack_seconds: must be less than timeout_seconds, which is {self.timeout_seconds:g}"
            )
        return self

    @property
    def _target(self) -> str:
        return "/".join(part for part in (self.receiver.name, self.index) if part)

    @property
    def _credentials(self) -> Credentials:
        return Credentials("Splunk", self.token.secret())

    def _sink(self) -> Sink:
        from ocsf_nft.delivery.sinks.splunk_hec import SplunkHec  # noqa: PLC0415 - if configured

        return SplunkHec(
            receiver=self.receiver,
            index=self.index,
            source=self.source,
            sourcetype=self.sourcetype,
            ack_seconds=self.ack_seconds,
        )


_DATE: Final = "{date}"
#: Lower case; no first character of the server's own names ("Index naming restrictions").
_INDEX: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,199}")


def _index(text: str) -> str:
    if not _INDEX.fullmatch(text.replace(_DATE, "2026.11.25")):
        raise UsageError(
            "must be an index's name: lower-case letters, digits and . _ - with {date} for the "
            "day, and a letter, a digit or {date} at the start"
        )
    return text


class OpenSearchSink(SecuredSink):
    """OpenSearch or Elasticsearch at ``url``, such as https://opensearch.example:9200.

    An event is a document of the ``index``. In the name of the index, ``{date}`` is the event's day
    in UTC, such as 2026.11.25. The document's identifier is the event's ``metadata.uid``. So an
    index stores an event only once, even if the event is sent twice. With ``data_stream``, the
    index is a data stream. Its documents also have ``@timestamp``.

    The sink logs in with a ``bearer`` token, with ``user`` and ``password``, with an ``api_key``,
    or not at all. The ``api_key`` is the base64 form of ``id:key``. The account needs the right to
    create documents. If the index or data stream does not exist, the account also needs the right
    to create it.
    """

    type: Literal["opensearch"]
    index: Annotated[str, checked(_index)] = "ocsf-{date}"
    """Name of the index; {date} is the event's day in UTC."""
    data_stream: bool = False
    """The index is a data stream."""
    api_key: SecretTable | None = None
    """API key, in its encoded form."""
    batch_events: Annotated[int, Field(ge=1, le=10_000)] = 1000
    batch_bytes: Annotated[int, Field(ge=1024, le=64 << 20)] = 5 << 20
    batch_seconds: Annotated[float, Field(ge=0, le=3600)] = 1.0

    @model_validator(mode="after")
    def _is_one_way_in(self) -> Self:
        if self.api_key is not None and (self.bearer is not None or self.user is not None):
            raise ValueError("has an api_key, and a bearer token or user too: give one of them")
        if self.data_stream and _DATE in self.index:
            raise ValueError("index: must not hold {date} for a data stream, which rolls over")
        return self

    @property
    def _target(self) -> str:
        return f"{self.receiver.name}/{self.index}"

    @property
    def _credentials(self) -> Credentials | None:
        if self.api_key is not None:
            return Credentials("ApiKey", self.api_key.secret())
        return super()._credentials

    def _sink(self) -> Sink:
        from ocsf_nft.delivery.sinks.opensearch import OpenSearch  # noqa: PLC0415 - if configured

        return OpenSearch(receiver=self.receiver, index=self.index, is_data_stream=self.data_stream)


class OtlpSink(SecuredSink):
    """OpenTelemetry collector, or another receiver of OTLP log records over HTTP (encoded as JSON).

    ``url`` is the URL without ``/v1/logs``, for example http://127.0.0.1:4318. The body of a log
    record is the event as nested values, so ``body["dst_endpoint"]["ip"]`` selects the destination
    address. The attributes of a log record are ``event.name`` (``ocsf.network_activity``),
    ``ocsf.class_uid`` and ``log.record.uid``. If a log record arrives twice, both copies have the
    same ``log.record.uid``. Before compression, an OTLP log record is about three times as large as
    its event in plain JSON.

    The credentials are a ``bearer`` token, or a ``user`` with a ``password``, or a secret in
    ``headers``. The credentials are optional.
    """

    type: Literal["otlp"]
    batch_seconds: Annotated[float, Field(ge=0, le=3600)] = 1.0

    def _sink(self) -> Sink:
        from ocsf_nft.delivery.sinks.otlp import Otlp  # noqa: PLC0415 - if configured

        return Otlp(receiver=self.receiver)
