"""Conversion of an event to a row of a Parquet table with fixed columns.

The column ``unmapped`` gets each value that has no column, or does not have its column's type.
The key of such a value is its path, for example ``src_endpoint.port``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

UNMAPPED: Final = "unmapped"


class Scalar(Enum):
    """Type of a Parquet column with a single value: text, boolean, integer or JSON text."""

    TEXT = "text"
    FLAG = "flag"
    INT32 = "int32"
    INT64 = "int64"
    #: For example for an object whose attributes the OCSF schema does not define.
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Struct:
    """Type of a Parquet column for an object, with an inner column for each attribute.

    A Struct also describes a whole row, since an event is an object.
    """

    columns: Mapping[str, Column]


@dataclass(frozen=True, slots=True)
class ListOf:
    """Type of a Parquet column with a list of values of one type."""

    item: Column


Column: TypeAlias = Scalar | Struct | ListOf

#: Value of a column in place of one that it can't hold.
_NULL: Final = None
_RANGES: Final = {
    Scalar.INT32: range(-(1 << 31), 1 << 31),
    Scalar.INT64: range(-(1 << 63), 1 << 63),
}
_TYPES: Final = {Scalar.TEXT: str, Scalar.FLAG: bool}


def row_of(event: Mapping[str, Any], columns: Struct) -> dict[str, Any]:
    """Convert a parsed event to a row, which maps the names of Parquet columns to values.

    Columns without a value are omitted. ``columns`` must include ``unmapped`` (JSON), which gets
    the values that fit no other column.
    """
    unmapped: dict[str, Any] = {}
    row: dict[str, Any] = _struct(event, columns, "", unmapped)
    if unmapped:
        row[UNMAPPED] = _json(_merge_unmapped(event.get(UNMAPPED), unmapped))
    return row


def _merge_unmapped(own: Any, unmapped: Mapping[str, Any]) -> dict[str, Any]:
    # ``own`` is the event's attribute; ``unmapped`` has the other values, by their paths.
    merged = dict(own) if isinstance(own, dict) else {} if own is None else {UNMAPPED: own}
    for path, value in unmapped.items():
        key = path
        while key in merged:
            key += "_"
        merged[key] = value
    return merged


def _struct(
    values: Mapping[str, Any], struct: Struct, path: str, unmapped: dict[str, Any]
) -> dict[str, Any]:
    columns = struct.columns
    row: dict[str, Any] = {}
    for name, value in values.items():
        column = columns.get(name)
        if column is None:
            unmapped[path + name] = value
        else:
            row[name] = _value(value, column, path, name, unmapped)
    return row


def _value(value: Any, column: Column, path: str, name: str, unmapped: dict[str, Any]) -> Any:
    if value is None:
        return _NULL
    if isinstance(column, Scalar):
        if column is Scalar.JSON:
            return _json(value)
        if _fits(value, column):
            return value
    elif isinstance(column, Struct):
        if isinstance(value, dict):
            return _struct(value, column, f"{path}{name}.", unmapped)
    elif isinstance(value, list):
        return [
            _value(each, column.item, path, f"{name}[{index}]", unmapped)
            for index, each in enumerate(value)
        ]
    unmapped[path + name] = value
    return _NULL


def _fits(value: Any, column: Scalar) -> bool:
    if column in _RANGES:
        return type(value) is int and value in _RANGES[column]
    return isinstance(value, _TYPES[column])


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
