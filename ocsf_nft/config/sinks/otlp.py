"""Configuration of a sink of type ``otlp``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ocsf_nft.config.sinks.base import require_extra
from ocsf_nft.config.sinks.http_client import SecuredSink

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink


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

    def sink(self) -> Sink:
        """Create the sink; raises UnsupportedError if the extra ``ocsf-nft[http]`` is missing."""
        require_extra("http", self.type, "aiohttp")
        from ocsf_nft.delivery.sinks.otlp import Otlp  # noqa: PLC0415 - if configured

        return Otlp(receiver=self.receiver)
