"""HTTP sinks, each with a strict server."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft.delivery.receiver_settings import Credentials, Receiver, Secret
from ocsf_nft.delivery.sinks.http import Http
from ocsf_nft.delivery.sinks.opensearch import OpenSearch
from ocsf_nft.delivery.sinks.otlp import Otlp
from ocsf_nft.delivery.sinks.splunk_hec import SplunkHec
from ocsf_nft.errors import DeliveryError
from tests.delivery.sinks.attempts import attempts
from tests.delivery.sinks.servers import AnyJson, Bulk, Collector, Hec

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.delivery.sinks.base import Sink
    from tests.delivery.sinks.servers import Server

#: Secret that no error may show.
SECRET: Final = "s3cr3t-value"  # noqa: S105 - a secret of no system


@dataclass(frozen=True)
class Kind:
    """Kind of HTTP sink, and the server that checks its requests."""

    create: Callable[..., Sink]
    server: Callable[..., Server]
    scheme: Any = "Bearer"

    def sink(self, url: str, token: Secret, **facts: Any) -> Sink:
        credentials = Credentials(self.scheme, token)
        return self.create(receiver=Receiver(url=url, credentials=credentials, **facts))


KINDS: Final = {
    "http": Kind(Http, AnyJson),
    "splunk_hec": Kind(SplunkHec, Hec, "Splunk"),
    "opensearch": Kind(OpenSearch, Bulk),
    "otlp": Kind(Otlp, Collector),
}


async def fault(sink: Sink) -> DeliveryError:
    """Return the error of an opening or a delivery: one sentence without a secret."""
    with pytest.raises(DeliveryError) as caught:
        async with sink:
            await sink.deliver(attempts(2))
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert str(caught.value).isprintable()
    return caught.value
