from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ocsf_nft.config.sinks.http import HttpSink
from ocsf_nft.delivery.sinks.http import Http

URL = "https://siem.example/in?code=s3cr3t"


def _sink(**facts: Any) -> HttpSink:
    return HttpSink.model_validate({"type": "http", "url": URL} | facts)


def test_query_is_stored_and_not_shown() -> None:
    table = _sink()
    assert table.receiver.url == URL
    assert table.target == "https://siem.example/in"
    assert not table.receiver.is_compressed


def test_form_and_method_must_be_known() -> None:
    sink = _sink(format="json_array", method="PUT").sink()
    assert isinstance(sink, Http)
    assert (sink._form, sink._method) == ("json_array", "PUT")
    for wrong in ({"format": "xml"}, {"method": "GET"}):
        with pytest.raises(ValidationError):
            _sink(**wrong)
