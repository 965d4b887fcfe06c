"""Configuration of a sink of type ``http``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ocsf_nft.config.sinks.base import require_extra
from ocsf_nft.config.sinks.http_client import SecuredSink, Url

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink


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
    url: Url
    method: Literal["POST", "PUT"] = "POST"
    format: Literal["json_array", "ndjson"] = "ndjson"
    compress: bool = False

    def sink(self) -> Sink:
        """Create the sink.

        Raises UnsupportedError if the package extra for HTTP is not installed.
        """
        require_extra("http", self.type, "aiohttp")
        from ocsf_nft.delivery.sinks.http import Http  # noqa: PLC0415 - if configured

        return Http(receiver=self.receiver, method=self.method, form=self.format)
