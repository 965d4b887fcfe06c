from __future__ import annotations

from ocsf_nft.config.sinks.otlp import OtlpSink
from ocsf_nft.delivery.sinks.otlp import Otlp


def test_only_the_url_is_required() -> None:
    table = OtlpSink.model_validate({"type": "otlp", "url": "http://127.0.0.1:4318/"})
    assert table.target == "http://127.0.0.1:4318"
    assert table.receiver.is_compressed
    assert isinstance(table.sink(), Otlp)
