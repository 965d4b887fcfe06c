"""Tests of the text of a fault."""

from __future__ import annotations

from typing import Any

import pytest

from ocsf_nft.validation.fault import Fault, child_path, describe


def test_fault_is_one_line() -> None:
    fault = Fault("error", "dst_endpoint.port", "70000 is more than 65535")
    assert str(fault) == "error: dst_endpoint.port: 70000 is more than 65535"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (-7, "-7"),
        ((1 << 64) - 1, "18446744073709551615"),
        (1 << 64, "an integer past 64 bits"),
        (0.5, "0.5"),
        (float("nan"), "NaN"),
        ("a", '"a"'),
        ("x" * 60, f'"{"x" * 60}"'),
        ("x" * 61, f'"{"x" * 60}"…'),
        ("\n\x1b[2J\ud800\u202e", r'"\n\u001b[2J\ud800\u202e"'),
        ({"a": 1}, "an object"),
        ([1], "an array"),
        (b"a", "a bytes"),
    ],
)
def test_fault_shows_a_value_as_json_in_ascii_and_cut(value: Any, text: str) -> None:
    assert describe(value) == text


def test_fault_shows_an_integer_that_python_does_not_convert() -> None:
    assert describe(-(10**5000)) == "an integer past 64 bits"


@pytest.mark.parametrize(
    ("path", "key", "text"),
    [
        ("", "time", "time"),
        ("metadata", "uid", "metadata.uid"),
        ("unmapped", "a.b", 'unmapped."a.b"'),
        ("unmapped", "", 'unmapped.""'),
        ("unmapped", "\n\ud800", r'unmapped."\n\ud800"'),
        ("", "x" * 61, f'"{"x" * 60}"…'),
        ("unmapped", 7, "unmapped.7"),
    ],
)
def test_fault_path_quotes_a_name_that_is_not_plain(path: str, key: Any, text: str) -> None:
    assert child_path(path, key) == text
