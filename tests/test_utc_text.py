from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.utc_text import utc_text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_795_564_066_123, "2026-11-24T23:47:46.123Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (-62_135_596_800_000, "0001-01-01T00:00:00.000Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_timestamp_is_written_in_utc_with_milliseconds(milliseconds: int, text: str) -> None:
    assert utc_text(milliseconds) == text


@pytest.mark.parametrize(
    "value",
    [253_402_300_800_000, -62_135_596_800_001, 1 << 63, -(10**400), 1.5, True, "0", None, [0], {}],
)
def test_value_that_is_no_timestamp_has_no_text(value: object) -> None:
    assert utc_text(value) is None


@given(st.integers(-62_135_596_800_000, 253_402_300_799_999))
def test_text_can_be_read_back_as_the_timestamp(milliseconds: int) -> None:
    timestamp = dt.datetime.fromisoformat(str(utc_text(milliseconds)))
    epoch = dt.datetime.fromtimestamp(0, dt.UTC)
    assert (timestamp - epoch) // dt.timedelta(milliseconds=1) == milliseconds
