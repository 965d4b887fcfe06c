from __future__ import annotations

import json
import re
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ocsf_nft.delivery.rfc5424 import frame
from tests.hostile_events import EVENTS
from tests.strategies import HOSTILE_TEXT

#: The header of RFC 5424, section 6, with nothing in it that we never write.
_FRAME = re.compile(
    r"<(?P<pri>1[23][0-9])>1 (?P<time>-|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) "
    r"(?P<host>[\x21-\x7e]{1,255}) ocsf-nft - (?P<id>-|\d{1,32}) - (?P<text>[\x20-\x7e]*)"
)
_EVENT = {
    "class_uid": 4001,
    "type_uid": 400105,
    "severity_id": 3,
    "time": 1_795_564_066_123,
    "device": {"hostname": "host-1"},
}


def framed(event: dict[str, Any], text: bytes | None = None) -> re.Match[str]:
    found = frame(json.dumps(event).encode() if text is None else text).decode("ascii")
    match = _FRAME.fullmatch(found)
    assert match is not None, found
    return match


def test_an_event_is_one_message_with_its_json_as_the_text() -> None:
    assert frame(orjson.dumps(_EVENT)) == (
        b"<132>1 2026-11-24T23:47:46.123Z host-1 ocsf-nft - 400105 - " + orjson.dumps(_EVENT)
    )


@pytest.mark.parametrize(
    ("severity_id", "severity"),
    [
        (0, 5), (1, 6), (2, 5), (3, 4), (4, 3), (5, 2), (6, 1), (99, 5),
        (None, 5), ("4", 5), (True, 5), ([4], 5), (4.0, 5),
    ],
)  # fmt: skip
def test_syslog_severity_is_that_of_the_event(severity_id: object, severity: int) -> None:
    assert framed(_EVENT | {"severity_id": severity_id})["pri"] == str(16 * 8 + severity)


@pytest.mark.parametrize(
    ("facts", "group", "value"),
    [
        ({"time": 1 << 62}, "time", "-"),
        ({"time": None}, "time", "-"),
        ({"time": -62_135_596_800_000}, "time", "0001-01-01T00:00:00.000Z"),
        ({"device": None}, "host", "-"),
        ({"device": {"hostname": 7}}, "host", "-"),
        ({"device": {"hostname": ""}}, "host", "-"),
        ({"device": {"hostname": "a b\n\x1bü"}}, "host", "a?b???"),
        ({"device": {"hostname": "x" * 4096}}, "host", "x" * 255),
        ({"type_uid": "400105"}, "id", "-"),
        ({"type_uid": -1}, "id", "-"),
        ({"type_uid": True}, "id", "-"),
        ({"type_uid": 2**64 - 1}, "id", str(2**64 - 1)),
        ({"type_uid": 2**64}, "id", "-"),
    ],
)
def test_header_field_without_a_valid_value_is_nil(
    facts: dict[str, Any], group: str, value: str
) -> None:
    assert framed(_EVENT | facts)[group] == value


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("ü", r"\u00fc"),
        ("\x7f", r"\u007f"),
        ("\x7f\x9b", r"\u007f\u009b"),
        ("\u2028\u202e\ufeff", r"\u2028\u202e\ufeff"),
        ("\U0001f480", r"\ud83d\udc80"),
        ("a\nb", r"a\nb"),
    ],
)
def test_other_characters_than_printable_ascii_are_json_escapes(text: str, written: str) -> None:
    assert framed({}, orjson.dumps(text))["text"] == f'"{written}"'


def test_json_on_several_lines_becomes_one() -> None:
    match = framed(_EVENT, json.dumps(_EVENT, indent="\t").encode())
    assert json.loads(match["text"]) == _EVENT


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
@example("\ufeff")
def test_the_text_is_the_same_json(value: Any) -> None:
    for written in (orjson.dumps(value), json.dumps(value, ensure_ascii=False).encode()):
        assert json.loads(framed({}, written)["text"]) == value


@given(EVENTS)
def test_a_message_of_any_event_is_one_line_of_printable_ascii(event: dict[str, Any]) -> None:
    match = framed(event)
    assert json.loads(match["text"]) == json.loads(json.dumps(event)) or "NaN" in match["text"]


@given(HOSTILE_TEXT)
def test_no_hostname_ends_the_header_early(hostname: str) -> None:
    match = framed(_EVENT | {"device": {"hostname": hostname}})
    assert match["id"] in {"400105", "-"}  # a lone surrogate is no valid JSON
    assert match["text"].startswith("{")
