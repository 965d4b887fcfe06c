"""Configuration of a sink of type ``opensearch``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from ocsf_nft.config.base_table import checked
from ocsf_nft.config.sinks.base import SecretTable, require_extra
from ocsf_nft.config.sinks.http_client import SecuredSink
from ocsf_nft.delivery.receiver_settings import Credentials
from ocsf_nft.errors import UsageError

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink

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
    data_stream: bool = False
    api_key: SecretTable | None = None
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
    def target(self) -> str:
        """Return the sink's default name: the server's URL, a slash and the index."""
        return f"{self.receiver.name}/{self.index}"

    @property
    def credentials(self) -> Credentials | None:
        """Return the API key, the token, or the user and password; None if none is configured."""
        if self.api_key is not None:
            return Credentials("ApiKey", self.api_key.secret())
        return super().credentials

    def sink(self) -> Sink:
        """Create the sink; raises UnsupportedError if the extra for HTTP is not installed."""
        require_extra("http", self.type, "aiohttp")
        from ocsf_nft.delivery.sinks.opensearch import OpenSearch  # noqa: PLC0415 - if configured

        return OpenSearch(receiver=self.receiver, index=self.index, is_data_stream=self.data_stream)
