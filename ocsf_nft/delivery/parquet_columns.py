"""A table's columns, and an event as a row of them: of the same columns, whatever it holds.

Nothing of an event is lost: what has no column, or is not what its column holds, goes into the
column ``unmapped`` under its path. What has no fixed attributes is JSON in a text.
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
    """What a column holds that has no parts."""

    TEXT = "text"
    FLAG = "flag"
    INT32 = "int32"
    INT64 = "int64"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Struct:
    """Columns in a column, one or more; a whole event is one."""

    columns: Mapping[str, Column]


@dataclass(frozen=True, slots=True)
class ListOf:
    """Any number of values of one kind."""

    item: Column


Column: TypeAlias = Scalar | Struct | ListOf

#: What a column takes in place of what it does not hold.
_NULL: Final = None
_RANGES: Final = {
    Scalar.INT32: range(-(1 << 31), 1 << 31),
    Scalar.INT64: range(-(1 << 63), 1 << 63),
}
_TYPES: Final = {Scalar.TEXT: str, Scalar.FLAG: bool}


def row_of(event: Mapping[str, Any], columns: Struct) -> dict[str, Any]:
    """The row of an event as JSON has it; a column that it has nothing for is left out.

    ``columns`` have one of JSON for what is ``unmapped``.
    """
    left: dict[str, Any] = {}
    row: dict[str, Any] = _struct(event, columns, "", left)
    if left:
        row[UNMAPPED] = _json(_unmapped(event.get(UNMAPPED), left))
    return row


def _unmapped(own: Any, left: Mapping[str, Any]) -> dict[str, Any]:
    """What an event says is unmapped, and what is left of the rest, which takes no place of it."""
    found = dict(own) if isinstance(own, dict) else {} if own is None else {UNMAPPED: own}
    for path, value in left.items():
        place = path
        while place in found:
            place += "_"
        found[place] = value
    return found


def _struct(
    values: Mapping[str, Any], struct: Struct, path: str, left: dict[str, Any]
) -> dict[str, Any]:
    columns = struct.columns
    row: dict[str, Any] = {}
    for name, value in values.items():
        column = columns.get(name)
        if column is None:
            left[path + name] = value
        else:
            row[name] = _value(value, column, path, name, left)
    return row


def _value(value: Any, column: Column, path: str, name: str, left: dict[str, Any]) -> Any:
    """A value as its column holds it; null, and the value is ``left``, where it can't."""
    if value is None:
        return _NULL
    if isinstance(column, Scalar):
        if column is Scalar.JSON:
            return _json(value)
        if _is_held(value, column):
            return value
    elif isinstance(column, Struct):
        if isinstance(value, dict):
            return _struct(value, column, f"{path}{name}.", left)
    elif isinstance(value, list):
        return [
            _value(each, column.item, path, f"{name}[{place}]", left)
            for place, each in enumerate(value)
        ]
    left[path + name] = value
    return _NULL


def _is_held(value: Any, column: Scalar) -> bool:
    if column in _RANGES:
        return type(value) is int and value in _RANGES[column]
    return isinstance(value, _TYPES[column])


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
