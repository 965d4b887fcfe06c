"""Quotation of values."""

from __future__ import annotations

import pytest

from ocsf_nft.quoted import quoted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", '""'),
        ("it's", '"it\'s"'),
        ("é x", '"é x"'),
        ("a\nb\0\x1b", r'"a\nb\x00\x1b"'),
        ("\u202e\udcff\ud800", r'"\u202e\udcff\ud800"'),
    ],
)
def test_quoted_text_is_one_printable_line(text: str, shown: str) -> None:
    assert quoted(text) == shown
    assert quoted(text).isprintable()
