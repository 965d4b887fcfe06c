from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ocsf_nft.config.sinks.splunk_hec import SplunkHecSink
from ocsf_nft.delivery.receiver_settings import Credentials, Secret
from ocsf_nft.delivery.sinks.splunk_hec import SplunkHec

URL = "https://splunk.example:8088"


def _sink(**facts: Any) -> SplunkHecSink:
    table = {"type": "splunk_hec", "url": URL, "token": {"credential": "hec"}}
    return SplunkHecSink.model_validate(table | facts)


def test_token_uses_the_splunk_scheme() -> None:
    assert _sink().credentials == Credentials("Splunk", Secret("credential", "hec"))
    with pytest.raises(ValidationError, match="token"):
        SplunkHecSink.model_validate({"type": "splunk_hec", "url": URL})


def test_wait_for_an_acknowledgement_is_within_the_delivery_timeout() -> None:
    sink = _sink(ack_seconds=60, timeout_seconds=90).sink()
    assert isinstance(sink, SplunkHec)
    assert sink._ack_seconds == 60
    with pytest.raises(ValidationError, match="must be less than timeout_seconds, which is 30"):
        _sink(ack_seconds=30)


def test_two_indexes_are_two_targets() -> None:
    assert _sink().target == URL
    assert _sink(index="ocsf").target == f"{URL}/ocsf"


@pytest.mark.parametrize("index", ["", "Main", "-main", "a b", "a/b", "x" * 81])
def test_invalid_index_name_is_refused(index: str) -> None:
    with pytest.raises(ValidationError, match="index"):
        _sink(index=index)
