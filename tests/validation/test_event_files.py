"""Files of events, well made and not."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from ocsf_nft.validation import Judge, event_files, judged
from ocsf_nft.validation.fault import LIMIT
from ocsf_nft.validation.strict_json import NotJsonError
from tests.validation.events import good

JUDGE = Judge()
EVENT = json.dumps(good())
PRETTY = json.dumps(good(), indent=2)
LINES = PRETTY.count("\n") + 1


def told(data: str | bytes) -> list[tuple[int, list[str]]]:
    file = io.BytesIO(data if isinstance(data, bytes) else data.encode())
    return [(each.line, [str(fault) for fault in each.faults]) for each in judged(file, JUDGE)]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("\n \r\n\t\n", []),
        (EVENT, [1]),
        (f"{EVENT}\n{EVENT}\r\n", [1, 2]),
        (f"\n\n{EVENT}\n\n  {EVENT}  \n", [3, 5]),
        (PRETTY, [1]),
        (f"\n{PRETTY}\n\n{PRETTY}\n", [2, 2 + LINES + 1]),
        (f"[{EVENT},{EVENT}]", [1, 1]),
        (f"[{EVENT},\n{EVENT}\n]\n", [1, 2]),
        (f"[\n{PRETTY},\n\n{PRETTY}\n]\n", [2, 2 + LINES + 1]),
        (json.dumps([good()] * 3, indent=1), [2, 2 + LINES, 2 + 2 * LINES]),
        ("[]", []),
        ("[\n]\n", []),
        (f"[]{EVENT}", [1]),
        (f"[{EVENT}]{EVENT}[ ]{EVENT}", [1, 1, 1]),
    ],
)
def test_events_are_read_one_a_line_or_as_documents(text: str, lines: list[int]) -> None:
    assert told(text) == [(line, []) for line in lines]


@pytest.mark.parametrize(
    ("text", "line", "fault"),
    [
        ("{", 1, "is not JSON: Expecting property name enclosed in double quotes (column 2)"),
        ("nonsense", 1, "is not JSON: Expecting value (column 1)"),
        ('{"a": 1', 1, "is not JSON: Expecting ',' delimiter (column 8)"),
        (f"{EVENT} {{}}", 1, f"is not JSON: more after its end (column {len(EVENT) + 2})"),
        ("\x00", 1, "is not JSON: Expecting value (column 1)"),
        ("\ufeff{}", 1, "is not JSON: Expecting value (column 1)"),
        ("{1: 2}", 1, "is not JSON: Expecting property name enclosed in double quotes (column 2)"),
        ('{"a": "\x01"}', 1, "is not JSON: Invalid control character at (column 8)"),
        ("[" * 100_000, 1, "is nested too deep to be read (column 1)"),
        ('{"a":' * 100_000, 1, "is nested too deep to be read (column 1)"),
        ("[\n{}\n", 2, None),
        ("[\n1 2]", 2, "is not JSON: an array goes on with ',' or ends with ']' (column 3)"),
        ("[\n1,\n]", 3, "is not JSON: Expecting value (column 1)"),
        ('{\n "a": 1,\n "b"\n}', 4, "is not JSON: Expecting ':' delimiter (column 1)"),
    ],
)  # fmt: skip
def test_what_is_not_json_is_an_error_of_its_line(text: str, line: int, fault: str | None) -> None:
    found = told(text)
    if fault is None:
        assert "array goes on" in found[-1][1][0]
    else:
        assert found[-1] == (line, [f"error: line: {fault}"])


def test_a_line_that_is_not_json_does_not_spoil_the_others() -> None:
    found = told(f'{{"a":\n{EVENT}\nnull\n[1]\n{EVENT}')
    assert [(line, bool(faults)) for line, faults in found] == [
        (1, True), (2, False), (3, True), (4, True), (5, False),
    ]  # fmt: skip
    assert found[2][1] == ["error: event: null is no event: an event is an object"]
    assert found[3][1] == ["error: event: an array is no event: an event is an object"]


def test_an_array_is_an_event_only_where_there_is_nothing_else() -> None:
    found = told(f"[{EVENT}]\n{EVENT}")
    assert found == [
        (1, ["error: event: an array is no event: an event is an object"]),
        (2, []),
    ]


def test_after_a_broken_document_nothing_more_is_read() -> None:
    found = told(f"{PRETTY}\n{PRETTY[:-1]},\n{PRETTY}")
    assert [line for line, _ in found] == [1, 2 * LINES + 1]
    assert len(found[1][1]) == 1


def of_one(name: str, value: str) -> list[str]:
    """What is told of a good event with raw JSON as one more value."""
    ((_, faults),) = told(f'{EVENT[:-1]}, "{name}": {value}}}')
    return faults


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (r'"\ud800"', "is no UTF-8: it holds a broken character"),
        ("NaN", "NaN is no string"),
        ("9" * 10_000, "an integer past 64 bits is no string"),
    ],
)
def test_what_other_readers_of_json_refuse_is_told_where_it_is(value: str, fault: str) -> None:
    assert of_one("app_name", value) == [f"error: app_name: {fault}"]


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("NaN", "is a number that JSON doesn't have"),
        ("-Infinity", "is a number that JSON doesn't have"),
        ("1e999", "is a number that JSON doesn't have"),
        ("9223372036854775808", "doesn't fit 64 bits"),
        ("-" + "9" * 1_000_000, "doesn't fit 64 bits"),
        ("1.0", "1.0 is an integer written as a fraction"),
        ("1e3", "1000.0 is an integer written as a fraction"),
    ],
)
def test_a_number_that_is_none_of_64_bits_is_told_where_it_is(value: str, fault: str) -> None:
    event = EVENT.replace('"count": 3', f'"count": {value}')
    assert told(event) == [(1, [f"error: count: {fault}"])]


def test_bytes_that_are_no_utf_8_are_told_where_they_are() -> None:
    event = EVENT.replace("icmpx-port-unreachable", "HERE").encode().replace(b"HERE", b"\xff\xfe")
    assert told(event + b"\n\xff\n") == [
        (1, ["error: status_code: is no UTF-8: it holds a broken character"]),
        (2, ["error: line: is not JSON: Expecting value (column 1)"]),
    ]


def test_a_name_that_is_in_one_object_twice_is_an_error() -> None:
    twice = EVENT.replace('"direction_id": 2', '"direction_id": 1, "direction_id": 2')
    assert told(f"{twice}\n{EVENT}") == [
        (1, ['error: line: the name "direction_id" is in one object twice']),
        (2, []),
    ]


def test_of_names_that_are_there_twice_only_so_many_are_told() -> None:
    ((_, faults),) = told("{" + '"a": 1, ' * 100_000 + '"a": 1}')
    assert len(faults) == LIMIT + 1


class Slow(io.BytesIO):
    """A file that knows how much of it has been read."""

    def readline(self, size: int | None = -1, /) -> bytes:
        self.lines = getattr(self, "lines", 0) + 1
        return super().readline(size)


@pytest.mark.parametrize("first", [EVENT, "nonsense", '{"a": "b'])
def test_events_are_judged_as_they_are_read(first: str) -> None:
    file = Slow(f"{first}\n".encode() + f"{EVENT}\n".encode() * 4)
    found = judged(file, JUDGE)
    for number in range(1, 6):
        assert next(found).line == file.lines == number


def test_what_is_too_long_to_be_read_is_an_error_and_the_rest_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_files, "LIMIT_BYTES", 2 * len(EVENT))
    long = json.dumps(good(message="x" * 3 * len(EVENT)))
    too_long = ["error: line: is longer than 32 MiB: write one event a line"]
    assert told(f"{EVENT}\n{long}\n{EVENT}") == [(1, []), (2, too_long), (3, [])]
    assert told(f"{long}\n{EVENT}") == [(1, too_long), (2, [])]
    assert told(f"{long}") == [(1, too_long)]
    # Documents over several lines are held, so they have the limit together.
    assert told(json.dumps([good()] * 4, indent=1)) == [(1, too_long)]
    assert told("[" + "\n" * 5 * len(EVENT) + "1]") == [(1, too_long)]
    assert told("\n" * 5 * len(EVENT) + EVENT) == [(5 * len(EVENT) + 1, [])]
    # What only begins like one is told line by line.
    broken = told("{ \n".replace("{", '{"a":') + f"{EVENT}\n" * 4)
    assert [line for line, faults in broken if not faults] == [2, 3, 4, 5]


def test_nothing_is_read_before_it_is_asked_for() -> None:
    file = io.BytesIO(EVENT.encode())
    found = judged(file, JUDGE)
    assert file.tell() == 0
    assert [each.line for each in found] == [1]


def test_an_event_of_ten_megabytes_is_judged() -> None:
    events: list[dict[str, Any]] = [
        good(message="x" * 10_000_000),
        good(unmapped={"numbers": [1] * 3_000_000}),
    ]
    for event in events:
        assert told(json.dumps(event)) == [(1, [])]


def test_line_is_read_up_to_the_limit_with_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_files, "LIMIT_BYTES", len(EVENT) + 1)
    too_long = ["error: line: is longer than 32 MiB: write one event a line"]
    for spaces, faults in (("", []), (" ", too_long), (" " * 2 * len(EVENT), too_long)):
        assert told(f"{EVENT}\n{EVENT}{spaces}\n{EVENT}\n") == [(1, []), (2, faults), (3, [])]


def test_documents_are_read_up_to_the_limit_with_their_blank_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = f"{{\n\n{PRETTY[1:]}\n"
    size = len(text) - 2 + text.count("\n")  # a blank line counts as a number of a line only
    monkeypatch.setattr(event_files, "LIMIT_BYTES", size)
    assert told(text) == [(1, [])]
    monkeypatch.setattr(event_files, "LIMIT_BYTES", size - 1)
    assert told(text) == [(1, ["error: line: is longer than 32 MiB: write one event a line"])]


def test_column_is_counted_from_the_start_of_its_line() -> None:
    for text, at, column in (("abc", 0, 1), ("abc", 2, 3), ("\nabc", 2, 2), ("a\n\nbc", 4, 2)):
        assert str(NotJsonError(text, at, "is wrong")) == f"is wrong (column {column})"
