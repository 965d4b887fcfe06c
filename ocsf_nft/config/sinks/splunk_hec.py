"""Configuration of a sink of type ``splunk_hec``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from ocsf_nft.config.sinks.base import SecretTable, Text, require_extra
from ocsf_nft.config.sinks.http_client import WebSink
from ocsf_nft.delivery.receiver_settings import Credentials

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink

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
    index: _IndexName | None = None
    source: Text = "ocsf-nft"
    sourcetype: Text = "ocsf:ocsf-nft"
    ack_seconds: Annotated[float, Field(gt=0, lt=3600)] | None = None

    @model_validator(mode="after")
    def _waits_longer_than_for_an_acknowledgement(self) -> Self:
        if self.ack_seconds is not None and self.ack_seconds >= self.timeout_seconds:
            raise ValueError(
                f"ack_seconds: must be less than timeout_seconds, which is {self.timeout_seconds:g}"
            )
        return self

    @property
    def target(self) -> str:
        """Return the sink's default name: its URL, with the index if one is configured."""
        return "/".join(part for part in (self.receiver.name, self.index) if part)

    @property
    def credentials(self) -> Credentials:
        """Return the collector's token."""
        return Credentials("Splunk", self.token.secret())

    def sink(self) -> Sink:
        """Create the sink; raises UnsupportedError if the package extra ``http`` is missing."""
        require_extra("http", self.type, "aiohttp")
        from ocsf_nft.delivery.sinks.splunk_hec import SplunkHec  # noqa: PLC0415 - if configured

        return SplunkHec(
            receiver=self.receiver,
            index=self.index,
            source=self.source,
            sourcetype=self.sourcetype,
            ack_seconds=self.ack_seconds,
        )
