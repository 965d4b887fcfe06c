from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ocsf_nft.config.sinks.opensearch import OpenSearchSink
from ocsf_nft.delivery.receiver_settings import Credentials, Secret

KEY = {"env": "KEY"}


def _sink(**facts: Any) -> OpenSearchSink:
    table = {"type": "opensearch", "url": "https://search.example:9200"}
    return OpenSearchSink.model_validate(table | facts)


def test_an_index_a_day_is_the_default() -> None:
    assert _sink().target == "https://search.example:9200/ocsf-{date}"


@pytest.mark.parametrize("index", ["ocsf", "{date}", "ocsf-{date}-v1", "a.b_c-d", "1st"])
def test_valid_index_name_is_accepted(index: str) -> None:
    assert _sink(index=index).index == index


@pytest.mark.parametrize(
    "index", ["", "Ocsf", "-ocsf", "_ocsf", ".ocsf", "a/b", "a,b", "a*", "{day}", "a" * 201]
)
def test_invalid_index_name_is_refused(index: str) -> None:
    with pytest.raises(ValidationError, match="must be an index's name"):
        _sink(index=index)


def test_a_data_stream_has_no_day_in_its_name() -> None:
    assert _sink(index="ocsf", data_stream=True).data_stream
    with pytest.raises(ValidationError, match=r"must not hold {date} for a data stream"):
        _sink(data_stream=True)


def test_api_key_is_accepted() -> None:
    assert _sink(api_key=KEY).credentials == Credentials("ApiKey", Secret("environment", "KEY"))
    for other in ({"bearer": KEY}, {"user": "me", "password": KEY}):
        with pytest.raises(ValidationError, match="has an api_key, and a bearer token or user"):
            _sink(api_key=KEY, **other)
    with pytest.raises(ValidationError, match="has Authorization, and credentials too"):
        _sink(api_key=KEY, headers={"Authorization": "x"})
