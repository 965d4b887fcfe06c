"""What a file says of a sink of type ``otlp``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ocsf_nft.config.sinks.http_client import SecuredSink, needing_http

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink


class OtlpSink(SecuredSink):
    """An OpenTelemetry collector, or what else takes log records by OTLP over HTTP as JSON.

    ``url`` is what ``/v1/logs`` is put behind: http://127.0.0.1:4318. A record's body is the event
    as nested values, so that ``body["dst_endpoint"]["ip"]`` reaches into it. Its attributes are
    ``event.name`` such as ``ocsf.network_activity``, ``ocsf.class_uid``, and ``log.record.uid``,
    by which a record that comes again is known. An event is about three times as large there as it
    is as JSON, before it is compressed.

    Credentials are none, ``bearer``, ``user`` and ``password``, or a header with a secret.
    """

    type: Literal["otlp"]
    batch_seconds: Annotated[float, Field(ge=0, le=3600)] = 1.0

    def sink(self) -> Sink:
        """The sink itself; raises UnsupportedError."""
        with needing_http(self.type):
            from ocsf_nft.delivery.sinks.otlp import Otlp  # noqa: PLC0415 - if configured
        return Otlp(receiver=self.receiver)
