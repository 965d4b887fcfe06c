"""Times that people write."""

from __future__ import annotations

import time

import pytest

from ocsf_nft.errors import UsageError
from ocsf_nft.time_text import since_ms


def test_age_may_have_any_unit() -> None:
    for text, seconds in (
        ("0s", 0), ("90s", 90), ("15m", 900), ("12h", 43_200), ("7d", 604_800),
        ("999999s", 999_999),
    ):  # fmt: skip
        before = time.time_ns()
        found = since_ms("--since", text) + seconds * 1000
        assert before // 1_000_000 - 1 <= found <= time.time_ns() // 1_000_000, text
    for text in ("1000000s", "1w", "s", "-1s", "1.5h"):
        with pytest.raises(UsageError, match="is no time"):
            since_ms("--since", text)
    assert since_ms("--until", "1970-01-01T00:00:01.500+00:00") == 1500
