from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any, Final

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.ocsf.lean import lean
from ocsf_nft.ocsf.line_templates import MAX_BEGINNINGS, MAX_TEMPLATES, LineConverter
from ocsf_nft.ocsf.placeholder_values import taken_apart
from ocsf_nft.ocsf.safe_text import encodable, printable
from ocsf_nft.ocsf.versions import STORED, VERSIONS, at_version
from tests.delivery import sample_events as samples
from tests.strategies import HOSTILE_TEXT

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.ocsf.line_templates import Conversion

#: Texts that could end a value early, or that JSON and terminals treat in their own way.
TEXTS: Final = (
    "", "x", "203.0.113.7", '"', "\\", '\\"', '","time":1,"x":"', '"}', "\x1f\x00\b\n", "\x7f",
    "\x85", "\u202e", "\u00fc", "\U0001f480", "%s%b%%", "\\u0041", "x" * 3000,
)  # fmt: skip
INTEGERS: Final = (0, -1, 7, 443, 99, 10**17, 10**18, -(1 << 63), (1 << 64) - 1)


def _by_hand(convert: Conversion, line: bytes) -> bytes:
    return printable(orjson.dumps(convert(orjson.loads(line))))


def _expected(convert: Conversion, line: bytes) -> bytes | type[Exception]:
    return _result(lambda line: _by_hand(convert, line), line)


def _result(convert: Callable[[bytes], bytes], line: bytes) -> bytes | type[Exception]:
    try:
        return convert(line)
    except Exception as error:  # noqa: BLE001 - compared with that of another conversion
        return type(error)


class _Counted:
    """Conversion that counts its calls with whole events, and not those to make a template."""

    def __init__(self, convert: Conversion) -> None:
        self.convert = convert
        self.calls = 0

    def __call__(self, event: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        return self.convert(event)


def _varied(line: bytes, chance: random.Random, changes: int) -> bytes:
    """Return a line with other values at a few places, also at those that conversions read."""
    event = orjson.loads(line)
    objects = [event]
    for each in objects:
        values = each.values() if isinstance(each, dict) else each
        objects += [inner for inner in values if isinstance(inner, dict | list)]
    for _ in range(changes):
        holder = chance.choice([each for each in objects if each])
        key = chance.choice(list(holder)) if isinstance(holder, dict) else 0
        if type(holder[key]) is int:
            holder[key] = chance.choice(INTEGERS)
        elif isinstance(holder[key], str):
            holder[key] = chance.choice(TEXTS)
    return printable(orjson.dumps(event))


_CONVERSIONS: Final[dict[str, Conversion]] = {
    **{version: lambda event, version=version: at_version(event, version)  # type: ignore[misc]
       for version in VERSIONS if version != STORED},
    "lean": lean,
    "1.1.0 lean": lambda event: lean(at_version(event, "1.1.0")),
}  # fmt: skip


@pytest.mark.parametrize("name", _CONVERSIONS)
def test_conversion_by_templates_is_the_conversion_of_the_event(name: str) -> None:
    convert = _CONVERSIONS[name]
    chance = random.Random(name)
    lines = chance.sample([each.line for each in samples.messages(STORED)], 40)
    for line in lines:
        converter = LineConverter(convert)
        for number in range(60):
            varied = _varied(line, chance, number % 4)
            expected = _expected(convert, varied)
            assert _result(converter, varied) == expected


@pytest.mark.parametrize("name", _CONVERSIONS)
def test_lines_that_differ_in_copied_values_are_converted_without_a_parse(name: str) -> None:
    convert = _Counted(_CONVERSIONS[name])
    converter = LineConverter(convert)
    lines = [
        printable(orjson.dumps(each.event() | {"message": 'é\x85\x7f%"\u202e'}))
        for each in samples.packets(400)
    ]
    assert [converter(line) for line in lines] == [
        _by_hand(convert.convert, line) for line in lines
    ]
    assert convert.calls < 40


def _line(**values: Any) -> bytes:
    return orjson.dumps({"class_uid": 1, "time": 2, **values, "end": 0})


_READS: Final[dict[str, Callable[[Any], Any]]] = {
    "equality": lambda value: value == 7,
    "reverse equality": lambda value: 7 == value,  # noqa: SIM300 - the other operand is asked first
    "inequality": lambda value: value != "x",
    "equality of containers": lambda value: [value] == [7],
    "member of a set": lambda value: value in {7, "x"},
    "member of a tuple": lambda value: value in (7, "x"),
    "key of a dictionary": lambda value: {7: 1, "x": 2}.get(value, 3),
    "new key": lambda value: {str(value): 1},
    "truth": lambda value: "yes" if value else "no",
    "order": lambda value: value > 5 if isinstance(value, int) else value > "m",
    "sum": lambda value: value + value,
    "product": lambda value: 2 * value,
    "format": lambda value: f"<{value}>",
    "percent": lambda value: "<%s>" % value,  # noqa: UP031 - another way to read a value
    "text": str,
    "representation": repr,
    "length": lambda value: len(value) if isinstance(value, str) else -1,
    "method": lambda value: value.upper() if isinstance(value, str) else value.bit_length(),
    "part": lambda value: "x" in value if isinstance(value, str) else False,
    "slice": lambda value: value[:1] if isinstance(value, str) else 0,
    "pieces": lambda value: list(value) if isinstance(value, str) else 0,
    "join": lambda value: "-".join(["a", str(value)]),
    "integer": int,
    "type": lambda value: "int" if isinstance(value, int) else "text",
    "empty": lambda value: value in ({}, [], ""),
    "identity": lambda value: value is None,
    "copy": lambda value: [value, {"again": value}],
    "none": lambda _: 0,
}


@pytest.mark.parametrize("name", _READS)
def test_value_that_a_conversion_reads_has_no_slot(name: str) -> None:
    def convert(event: dict[str, Any]) -> dict[str, Any]:
        return event | {"result": _READS[name](event["read"])}

    converter = LineConverter(convert)
    values = (7, 8, 12, "x", "y", "7", "8", "", "xy")
    for number in range(400):
        line = _line(read=values[number % 4 if number < 200 else number % 9], a=number, b=-number)
        expected = _expected(convert, line)
        assert _result(converter, line) == expected


_LEAVES: Final = (
    st.integers(-(1 << 63), (1 << 64) - 1)
    | HOSTILE_TEXT.map(encodable)
    | st.sampled_from(TEXTS)
    | st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
)


@given(st.lists(st.lists(_LEAVES, min_size=4, max_size=4), min_size=8, max_size=12))
def test_any_values_in_the_places_of_others_are_converted_alike(rows: list[list[Any]]) -> None:
    def convert(event: dict[str, Any]) -> dict[str, Any]:
        return {"%s": event["c"], "b": [event["b"], event["a"]], "d": event["d"], "a": event["a"]}

    converter = LineConverter(convert)
    usual = [{"a": number, "b": f"{number}", "c": "é", "d": str(-number)} for number in range(4)]
    for event in [*usual, *(dict(zip("abcd", row, strict=True)) for row in rows)]:
        in_full = _line(**event)
        for line in (in_full, printable(in_full)):
            assert converter(line) == _by_hand(convert, line)


@pytest.mark.parametrize(
    "line",
    [
        b'{"a":1,"b":"x" ,"c":2}', b'{"a":01,"b":"x","c":2}', b'{"a":-0,"b":"x","c":2}',
        b'{"a":1.0,"b":"x","c":2}', b'{"a":1e3,"b":"x","c":2}', b'{"a":1,"b":"\\u0041","c":2}',
        b'{"a":1,"b":"\\/","c":2}', b'{"a":1,"b":"\\u001F","c":2}', b'{"a":1,"b":"\\u0008","c":2}',
        b'{"a":1,"b":"\x7f\xc2\x85","c":2}', b'{"a":1,"b":"\xff","c":2}', b'{"a":1,"b":"\n","c":2}',
        b'{"a":1,"b":"x","c":2}}', b'{"a":1,"b":"x","c":2', b'{"a":1,"b":"x","c":2} ',
        b'{"a":1,"b":"","c":2}', b'{"a":"1","b":"x","c":2}', b'{"a":1,"b":"x","c":2,"c":3}',
        b'{"a":99999999999999999999,"b":"x","c":2}', b'{"a":1,"b":"x\\","c":2}',
        b'{"a":1,"b":"\\","c":2}', b'{"a":1,"b":"\\u2028","c":2}', b'{"a":1,"b":"\\ud800","c":2}',
        b'{"a":,"b":"x","c":2}', b'{"a":1,"b":"x"y","c":2}', b"",
    ],
)  # fmt: skip
def test_line_in_another_form_is_converted_as_without_templates(line: bytes) -> None:
    converter = LineConverter(lambda event: event)
    usual = [
        b'{"class_uid":1,"time":2,'
        + orjson.dumps({"a": number, "b": f"n{number}", "c": number})[1:]
        for number in range(20)
    ]
    assert list(map(converter, usual)) == usual
    line = line.replace(b"{", b'{"class_uid":1,"time":2,', 1)
    found = _result(converter, line)
    expected = _expected(lambda event: event, line)
    if isinstance(expected, bytes):
        assert found == expected
    else:
        assert isinstance(found, type)
        assert issubclass(found, ValueError)


def test_number_of_templates_is_limited() -> None:
    converter = LineConverter(lambda event: event)
    for number, _ in itertools.product(range(100), range(20)):
        converter(_line(**{f"key{number}": 1}))
        converter(orjson.dumps({"class_uid": number, "time": 1}))
    found = converter._templates.values()
    assert len(found) <= MAX_BEGINNINGS
    assert max(map(len, found)) <= MAX_TEMPLATES


def test_template_in_use_is_not_replaced_by_those_of_new_shapes() -> None:
    convert = _Counted(lambda event: event)
    converter = LineConverter(convert)
    for number in range(2000):
        converter(_line(usual=number, other=f"{number}"))
        converter(_line(**{f"key{number}": 1}))
    calls = convert.calls
    for number in range(100):
        converter(_line(usual=number, other=f"{number}"))
    assert convert.calls == calls


def test_lines_of_ever_new_shapes_are_rarely_examined() -> None:
    convert = _Counted(lambda event: event)
    converter = LineConverter(convert)
    for number in range(5000):
        converter(_line(**{f"key{number // 3}": number, "x": f"{number}"}))
    assert converter._budget < 300
    assert convert.calls < 5000 + 160


def test_shapes_are_equal_only_with_the_same_order_and_types() -> None:
    values: list[Any] = [
        {"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1}, {"a": "1"}, {"a": ""}, {"a": None},
        {"a": True}, {"a": 1.0}, {"a": False}, {"a": []}, {"a": {}}, {"a": [1]}, {"a": [1, 1]},
    ]  # fmt: skip
    for one, other in itertools.combinations(values, 2):
        assert taken_apart(one)[0] != taken_apart(other)[0]
    assert taken_apart({"a": 1, "b": ["x", 2]}) == taken_apart({"a": 1, "b": ["x", 2]})
    assert taken_apart({"a": 1, "b": ["x", 2]})[1] == [1, "x", 2]
