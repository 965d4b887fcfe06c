from __future__ import annotations

from typing import Any, Final

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.delivery.parquet_columns import ListOf, Scalar, Struct, row_of

COLUMNS: Final = Struct(
    {
        "text": Scalar.TEXT,
        "flag": Scalar.FLAG,
        "small": Scalar.INT32,
        "big": Scalar.INT64,
        "free": Scalar.JSON,
        "texts": ListOf(Scalar.TEXT),
        "inner": Struct({"text": Scalar.TEXT}),
        "inners": ListOf(Struct({"text": Scalar.TEXT, "texts": ListOf(Scalar.TEXT)})),
        "unmapped": Scalar.JSON,
    }
)
WHOLE: Final[dict[str, Any]] = {
    "text": "a\x00\u202e",
    "flag": False,
    "small": -(1 << 31),
    "big": (1 << 63) - 1,
    "texts": [],
    "inner": {},
    "inners": [{"text": "x", "texts": ["y", "z"]}, {}],
}


def _row(event: dict[str, Any]) -> dict[str, Any]:
    row = row_of(event, COLUMNS)
    if row.get("unmapped") is not None:
        row["unmapped"] = orjson.loads(row["unmapped"])
    return row


def test_value_with_a_column_is_in_it_unchanged() -> None:
    assert _row(WHOLE) == WHOLE


def test_object_without_fixed_attributes_is_json() -> None:
    row = _row({"free": {"b": [1, None], "a": "ü"}, "unmapped": {"x": 1}})
    assert row == {"free": '{"b":[1,null],"a":"ü"}', "unmapped": {"x": 1}}


@pytest.mark.parametrize(
    ("event", "row"),
    [
        ({"other": 1}, {"unmapped": {"other": 1}}),
        ({"inner": {"other": 1}}, {"inner": {}, "unmapped": {"inner.other": 1}}),
        (
            {"inners": [{"text": "x"}, {"y": {"z": 1}}]},
            {"inners": [{"text": "x"}, {}], "unmapped": {"inners[1].y": {"z": 1}}},
        ),
        ({"other": 1, "unmapped": {"x": 2}}, {"unmapped": {"x": 2, "other": 1}}),
    ],
)
def test_value_without_a_column_is_unmapped(event: dict[str, Any], row: dict[str, Any]) -> None:
    assert _row(event) == row


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", 1),
        ("text", ["x"]),
        ("flag", 1),
        ("flag", "true"),
        ("small", True),
        ("small", 1.0),
        ("small", 1 << 31),
        ("small", "1"),
        ("big", 1 << 63),
        ("inner", "x"),
        ("inner", [{}]),
        ("texts", "x"),
        ("texts", {"text": "x"}),
    ],
)
def test_value_of_another_type_than_its_column_is_unmapped(name: str, value: Any) -> None:
    assert _row({name: value}) == {name: None, "unmapped": {name: value}}


def test_value_of_another_type_than_its_list_is_unmapped_with_its_index() -> None:
    assert _row({"texts": ["x", 1, "z"]}) == {
        "texts": ["x", None, "z"],
        "unmapped": {"texts[1]": 1},
    }


def test_null_is_not_unmapped() -> None:
    assert _row({"text": None, "inner": None, "texts": None, "unmapped": None}) == {
        "text": None,
        "inner": None,
        "texts": None,
        "unmapped": None,
    }


def test_own_unmapped_values_keep_their_keys() -> None:
    event = {"other": 1, "unmapped": {"other": 2, "other_": 3}}
    assert _row(event) == {"unmapped": {"other": 2, "other_": 3, "other__": 1}}


def test_own_unmapped_value_that_is_no_object_is_stored_too() -> None:
    assert _row({"unmapped": [1]}) == {"unmapped": [1]}
    assert _row({"unmapped": [1], "other": 2}) == {"unmapped": {"unmapped": [1], "other": 2}}


_JSON: Final[st.SearchStrategy[Any]] = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


def _scalars(value: Any) -> list[Any]:
    """Return the scalars in a value, at any depth."""
    if isinstance(value, dict):
        return [each for inner in value.values() for each in _scalars(inner)]
    if isinstance(value, list):
        return [each for inner in value for each in _scalars(inner)]
    return [] if value is None else [repr(value)]


@given(st.dictionaries(st.sampled_from(list(COLUMNS.columns)) | st.text(max_size=2), _JSON))
def test_row_has_every_value_of_any_event(event: dict[str, Any]) -> None:
    row = _row(event)
    if row.get("free") is not None:
        row["free"] = orjson.loads(row["free"])
    assert sorted(_scalars(row)) == sorted(_scalars(event))


def test_integer_column_holds_its_bits_and_no_more() -> None:
    for name, bits in (("small", 32), ("big", 64)):
        least, most = -(1 << bits - 1), (1 << bits - 1) - 1
        for value in (least, most):
            assert _row({name: value}) == {name: value}
        # JSON as orjson reads it has no integer below those of 64 bits.
        for other in (least - 1, most + 1) if bits == 32 else (most + 1,):
            assert _row({name: other}) == {name: None, "unmapped": {name: other}}
