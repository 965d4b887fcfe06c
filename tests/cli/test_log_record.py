"""Log records as lines of JSON and of text."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.cli.log_record import as_json, as_text, limited, simple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_HEAD = {"ts": "2026-11-28T21:00:00.000000Z", "level": "warning", "event": "sink down"}


def record(**values: Any) -> dict[str, Any]:
    return dict(simple(None, "warning", {**values, **_HEAD}))


def test_text_has_time_level_event_and_values() -> None:
    made = record(sink="siem", seconds=1.5, number=3, is_late=False, dropped=None)
    assert as_text(made) == (
        b"2026-11-28T21:00:00.000000Z warning sink down "
        b"sink=siem seconds=1.5 number=3 is_late=false dropped=null\n"
    )


def test_json_keeps_the_types_of_values() -> None:
    made = record(sink="siem", seconds=1.5, number=3, is_late=False, dropped=None, names=("a", "b"))
    assert orjson.loads(as_json(made)) == {
        **_HEAD, "sink": "siem", "seconds": 1.5, "number": 3, "is_late": False, "dropped": None,
        "names": ["a", "b"],
    }  # fmt: skip


class _Colour(enum.Enum):
    RED = "red one"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("it's", "it's"),
        ("two words", '"two words"'),
        ("", '""'),
        ('a "b"', r'"a \"b\""'),
        ("x level=error", '"x level=error"'),
        ('x \\" level=error', r'"x \\\" level=error"'),
        ("C:\\", r'"C:\\"'),
        ("red\x1b[31m\n", r"red\x1b[31m\x0a"),
        ("\u202e\udc80", r'"\u202e\\x80"'),
        (Path("/var/log/a"), "/var/log/a"),
        (["a", "b'c"], '"a, b\'c"'),
        ([Path("/a")], "/a"),
        ((), '""'),
        ({"a": [1, None]}, '"a=1, null"'),
        (_Colour.RED, '"red one"'),
        (ValueError("no"), "no"),
        (1 << 70, str(1 << 70)),
    ],
)
def test_value_in_text_has_no_python_in_it(value: object, text: str) -> None:
    assert as_text(record(key=value)).decode().partition(" key=")[2] == f"{text}\n"
    assert orjson.loads(as_json(record(key=value)))["event"] == "sink down"


@given(st.dictionaries(st.sampled_from("abc"), st.text(max_size=300)), st.integers(150, 400))
@pytest.mark.parametrize("encode", [as_json, as_text])
def test_line_is_one_printable_line_of_limited_size(
    encode: Callable[[Mapping[str, Any]], bytes], values: dict[str, str], size: int
) -> None:
    made = record(**values)
    line = limited(made, encode, size)
    whole = encode(made)
    assert len(line) <= size
    assert line == whole or (len(whole) > size and "…".encode() in line)
    assert line.decode().removesuffix("\n").isprintable()
    if encode is as_json:
        assert orjson.loads(line).keys() == made.keys()


@pytest.mark.parametrize("encode", [as_json, as_text])
def test_longest_value_is_shortened_no_more_than_needed(
    encode: Callable[[Mapping[str, Any]], bytes],
) -> None:
    made = record(short="s" * 20, long="x" * 500)
    line = limited(made, encode, 300)
    assert len(line) == 300
    assert b"s" * 20 in line
    assert "x…".encode() in line
    assert limited(made, encode, len(encode(made))) == encode(made)


def test_list_is_shortened_as_text() -> None:
    line = limited(record(names=["agent"] * 500), as_json, 300)
    assert orjson.loads(line)["names"].startswith("agent, agent")
    assert len(line) <= 300
