"""Tests of the validation of event files, with and without faults."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from ocsf_nft.validation import EventValidator, event_files, validate_events
from ocsf_nft.validation.event_files import NotJsonError
from ocsf_nft.validation.fault import LIMIT
from tests.validation.events import good

VALIDATOR = EventValidator()
EVENT = json.dumps(good())
PRETTY = json.dumps(good(), indent=2)
LINES = PRETTY.count("\n") + 1


def validate(data: str | bytes) -> list[tuple[int, list[str]]]:
    file = io.BytesIO(data if isinstance(data, bytes) else data.encode())
    return [
        (each.line, [str(fault) for fault in each.faults])
        for each in validate_events(file, VALIDATOR)
    ]


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
def test_event_file_is_read_by_lines_or_as_documents(text: str, lines: list[int]) -> None:
    assert validate(text) == [(line, []) for line in lines]


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
def test_event_file_text_that_is_not_json_is_an_error_of_its_line(
    text: str, line: int, fault: str | None
) -> None:
    found = validate(text)
    if fault is None:
        assert "array goes on" in found[-1][1][0]
    else:
        assert found[-1] == (line, [f"error: line: {fault}"])


def test_event_file_line_that_is_not_json_does_not_affect_the_others() -> None:
    found = validate(f'{{"a":\n{EVENT}\nnull\n[1]\n{EVENT}')
    assert [(line, bool(faults)) for line, faults in found] == [
        (1, True), (2, False), (3, True), (4, True), (5, False),
    ]  # fmt: skip
    assert found[2][1] == ["error: event: null is no event: an event is an object"]
    assert found[3][1] == ["error: event: an array is no event: an event is an object"]


def test_event_file_array_has_events_only_if_it_is_the_only_line() -> None:
    found = validate(f"[{EVENT}]\n{EVENT}")
    assert found == [
        (1, ["error: event: an array is no event: an event is an object"]),
        (2, []),
    ]


def test_event_file_is_not_read_after_a_broken_document() -> None:
    found = validate(f"{PRETTY}\n{PRETTY[:-1]},\n{PRETTY}")
    assert [line for line, _ in found] == [1, 2 * LINES + 1]
    assert len(found[1][1]) == 1


def faults_with_value(name: str, value: str) -> list[str]:
    """Return the faults of a good event with raw JSON as one more value."""
    ((_, faults),) = validate(f'{EVENT[:-1]}, "{name}": {value}}}')
    return faults


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (r'"\ud800"', "is no UTF-8: it holds a broken character"),
        ("NaN", "NaN is no string"),
        ("9" * 10_000, "an integer past 64 bits is no string"),
    ],
)
def test_event_file_reports_the_path_of_values_that_other_json_readers_refuse(
    value: str, fault: str
) -> None:
    assert faults_with_value("app_name", value) == [f"error: app_name: {fault}"]


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
def test_event_file_reports_the_path_of_a_number_beyond_64_bits(value: str, fault: str) -> None:
    event = EVENT.replace('"count": 3', f'"count": {value}')
    assert validate(event) == [(1, [f"error: count: {fault}"])]


def test_event_file_reports_the_path_of_bytes_that_are_not_utf_8() -> None:
    event = EVENT.replace("icmpx-port-unreachable", "HERE").encode().replace(b"HERE", b"\xff\xfe")
    assert validate(event + b"\n\xff\n") == [
        (1, ["error: status_code: is no UTF-8: it holds a broken character"]),
        (2, ["error: line: is not JSON: Expecting value (column 1)"]),
    ]


def test_event_file_name_that_is_in_one_object_twice_is_an_error() -> None:
    twice = EVENT.replace('"direction_id": 2', '"direction_id": 1, "direction_id": 2')
    assert validate(f"{twice}\n{EVENT}") == [
        (1, ['error: line: the name "direction_id" is in one object twice']),
        (2, []),
    ]


def test_event_file_reports_a_limited_number_of_repeated_names() -> None:
    ((_, faults),) = validate("{" + '"a": 1, ' * 100_000 + '"a": 1}')
    assert len(faults) == LIMIT + 1


class Slow(io.BytesIO):
    """File that counts the lines that were read from it."""

    def readline(self, size: int | None = -1, /) -> bytes:
        self.lines = getattr(self, "lines", 0) + 1
        return super().readline(size)


@pytest.mark.parametrize("first", [EVENT, "nonsense", '{"a": "b'])
def test_event_file_is_validated_while_it_is_read(first: str) -> None:
    file = Slow(f"{first}\n".encode() + f"{EVENT}\n".encode() * 4)
    found = validate_events(file, VALIDATOR)
    for number in range(1, 6):
        assert next(found).line == file.lines == number


def test_event_file_line_above_the_limit_is_an_error_and_the_rest_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_files, "LIMIT_BYTES", 2 * len(EVENT))
    long = json.dumps(good(message="x" * 3 * len(EVENT)))
    too_long = ["error: line: is longer than 32 MiB: write one event a line"]
    assert validate(f"{EVENT}\n{long}\n{EVENT}") == [(1, []), (2, too_long), (3, [])]
    assert validate(f"{long}\n{EVENT}") == [(1, too_long), (2, [])]
    assert validate(f"{long}") == [(1, too_long)]
    # Documents over several lines are held in memory, so the limit is for all of them.
    assert validate(json.dumps([good()] * 4, indent=1)) == [(1, too_long)]
    assert validate("[" + "\n" * 5 * len(EVENT) + "1]") == [(1, too_long)]
    assert validate("\n" * 5 * len(EVENT) + EVENT) == [(5 * len(EVENT) + 1, [])]
    # Lines that only begin like a document are validated one by one.
    broken = validate("{ \n".replace("{", '{"a":') + f"{EVENT}\n" * 4)
    assert [line for line, faults in broken if not faults] == [2, 3, 4, 5]


def test_event_file_is_not_read_before_the_first_request() -> None:
    file = io.BytesIO(EVENT.encode())
    found = validate_events(file, VALIDATOR)
    assert file.tell() == 0
    assert [each.line for each in found] == [1]


def test_event_file_event_of_ten_megabytes_is_validated() -> None:
    events: list[dict[str, Any]] = [
        good(message="x" * 10_000_000),
        good(unmapped={"numbers": [1] * 3_000_000}),
    ]
    for event in events:
        assert validate(json.dumps(event)) == [(1, [])]


def test_event_file_line_limit_includes_the_line_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_files, "LIMIT_BYTES", len(EVENT) + 1)
    too_long = ["error: line: is longer than 32 MiB: write one event a line"]
    for spaces, faults in (("", []), (" ", too_long), (" " * 2 * len(EVENT), too_long)):
        assert validate(f"{EVENT}\n{EVENT}{spaces}\n{EVENT}\n") == [(1, []), (2, faults), (3, [])]


def test_event_file_document_limit_includes_blank_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = f"{{\n\n{PRETTY[1:]}\n"
    size = len(text) - 2 + text.count("\n")  # a blank line counts only as a line number
    monkeypatch.setattr(event_files, "LIMIT_BYTES", size)
    assert validate(text) == [(1, [])]
    monkeypatch.setattr(event_files, "LIMIT_BYTES", size - 1)
    assert validate(text) == [(1, ["error: line: is longer than 32 MiB: write one event a line"])]


def test_not_json_error_counts_the_column_from_the_start_of_the_line() -> None:
    for text, at, column in (("abc", 0, 1), ("abc", 2, 3), ("\nabc", 2, 2), ("a\n\nbc", 4, 2)):
        assert str(NotJsonError(text, at, "is wrong")) == f"is wrong (column {column})"
