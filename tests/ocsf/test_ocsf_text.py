from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.ocsf.safe_text import byte_size, encodable, plain, printable, visible
from tests.strategies import DETAILS, HOSTILE_TEXT


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("eth0", "eth0"),
        ("büro-ü", "büro-ü"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\0", "a\\x0ab\\x00"),
        ("\udcff", "\\xff"),
        ("\ud800", "\\ud800"),
        ("\udc7f\udc80\udd00", "\\udc7f\\x80\\udd00"),
        ("\x7f\x80\xad", "\\x7f\\x80\\xad"),
        ("\uffff\U0001000c", "\\uffff\\U0001000c"),
        ("a\u202eb", "a\\u202eb"),
        ("\U000e0041", "\\U000e0041"),
        ("DST=9.9.9.9", "DST=9.9.9.9"),
        ("\u3164", "\\u3164"),
        ("a\u2800b\ufe0f\x1b", "a\\u2800b\\ufe0f\\x1b"),
        ("\U000e0101", "\\U000e0101"),
    ],
)
def test_unprintable_character_is_written_as_an_escape(text: str, seen: str) -> None:
    assert visible(text) == seen


@given(text=HOSTILE_TEXT)
def test_any_text_becomes_printable_and_encodable(text: str) -> None:
    assert visible(text).isprintable()
    encodable(text).encode()


def test_raw_text_keeps_what_json_can_hold() -> None:
    assert encodable("a\nb\x1b\u202e") == "a\nb\x1b\u202e"
    assert encodable("ü\udcff") == "ü\\xff"


@given(raw=st.binary())
def test_size_is_the_number_of_bytes_read(raw: bytes) -> None:
    assert byte_size(raw.decode("utf-8", "surrogateescape")) == len(raw)


def test_invalid_byte_counts_as_one() -> None:
    assert byte_size(b"a\xff\xc3\xbc".decode("utf-8", "surrogateescape")) == 4
    assert byte_size("a\udc80\udcff") == 3
    assert byte_size("a\udc7f\udd00") == 7  # not from bytes: three of UTF-8 each


@given(details=DETAILS)
def test_any_details_become_json(details: dict[str, Any]) -> None:
    json.dumps(plain(details), ensure_ascii=False).encode()


def test_numbers_and_flags_keep_their_type_if_json_has_it() -> None:
    most = (1 << 63) - 1
    limits = {"max": most, "over": most + 1, "min": -most, "under": -most - 1}
    shown = plain({"ttl": 64, "df": True, **limits, "q": {"id": 1}})
    assert shown == {
        "ttl": 64,
        "df": True,
        "max": most,
        "over": "9223372036854775808",
        "min": -most,
        "under": "-9223372036854775808",
        "q": {"id": 1},
    }


def test_nesting_has_an_end() -> None:
    deep: dict[str, Any] = {}
    for _ in range(500):
        deep = {"quoted": deep}
    json.dumps(plain(deep))


def test_nested_details_are_objects_for_eight_levels() -> None:
    assert _nested(plain(_nest(8))) == (8, {})
    assert _nested(plain(_nest(9))) == (8, "{}")


def _nest(levels: int) -> dict[str, Any]:
    return {} if levels == 1 else {"quoted": _nest(levels - 1)}


def _nested(value: dict[str, Any]) -> tuple[int, Any]:
    levels, inner = 1, value
    while isinstance(inner, dict) and inner:
        inner = inner["quoted"]
        levels += isinstance(inner, dict)
    return levels, inner


@given(
    value=st.dictionaries(
        HOSTILE_TEXT.map(encodable),
        HOSTILE_TEXT.map(encodable) | st.sampled_from(["\x7f", "\x85", "\u2028", "\U000e0041"]),
    )
)
def test_printable_json_has_the_same_value(value: dict[str, str]) -> None:
    shown = printable(orjson.dumps(value))
    assert json.loads(shown) == value
    assert shown.decode().isprintable()


@pytest.mark.parametrize("line", [b"{}", b'{"a":"b\\u0000c"}', '{"a":"büro"}'.encode()])
def test_printable_json_is_not_changed(line: bytes) -> None:
    assert printable(line) is line
