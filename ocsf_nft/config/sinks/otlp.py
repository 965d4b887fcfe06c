"""Configuration of a sink of type ``otlp``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ocsf_nft.config.sinks.http_client import SecuredSink, needing_http

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink


class OtlpSink(SecuredSink):
    """OpenTelemetry collector, or another receiver of log records in OTLP over HTTP with JSON.

    ``url`` is the URL without ``/v1/logs``: http://127.0.0.1:4318. A record's body is the event as
    nested values, so ``body["dst_endpoint"]["ip"]`` selects a value. Its attributes are
    ``event.name`` such as ``ocsf.network_activity``, ``ocsf.class_uid``, and ``log.record.uid``,
    which identifies a record that arrives twice. Before compression, an event is about three times
    as large in this form as it is as JSON.

    Credentials are none, ``bearer``, ``user`` and ``password``, or a header with a secret.
    """

    type: Literal["otlp"]
    batch_seconds: Annotated[float, Field(ge=0, le=3600)] = 1.0

    def sink(self) -> Sink:
        """Create the sink; raises UnsupportedError if the extra for HTTP is not installed."""
        with needing_http(self.type):
            from ocsf_nft.delivery.sinks.otlp import Otlp  # noqa: PLC0415 - if configured
        return Otlp(receiver=self.receiver)
