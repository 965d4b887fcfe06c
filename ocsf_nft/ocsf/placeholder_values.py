"""Placeholders for the values of an event, which show the values that a conversion reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection


class ReadError(Exception):
    """Error: a conversion reads the value with this number, so its result may depend on it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Placeholder:
    """Placeholder for a value of an event: for a text that is not empty, or for an integer.

    A conversion can copy it, inspect its type with isinstance, and compare it with an empty text or
    a container. Any other use raises ReadError, or another exception.
    """

    def __init__(self, number: int, kind: type) -> None:
        self.number = number
        self.kind = kind

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """Return the type of the value, as isinstance gets it."""
        return self.kind

    def __eq__(self, other: object) -> bool:
        """Return False for what the value can't be equal to; raise ReadError for another value."""
        if type(other) is not Placeholder and (isinstance(other, dict | list) or other == ""):
            return False
        raise ReadError(self.number)

    __hash__ = None  # type: ignore[assignment]


def _fail(value: Placeholder, *_: object) -> None:
    raise ReadError(value.number)


for _operation in (
    "getattr", "hash", "bool", "str", "repr", "format", "len", "iter", "contains", "getitem",
    "int", "index", "float", "lt", "le", "gt", "ge", "add", "radd", "sub", "rsub", "mul", "rmul",
    "mod", "rmod", "floordiv", "rfloordiv", "truediv", "rtruediv", "divmod", "rdivmod", "pow",
    "rpow", "and", "rand", "or", "ror", "xor", "rxor", "lshift", "rlshift", "rshift", "rrshift",
    "neg", "pos", "abs", "invert", "copy", "deepcopy",
):  # fmt: skip
    setattr(Placeholder, f"__{_operation}__", _fail)


def taken_apart(value: Any) -> tuple[object, list[object]]:
    """Return the shape of decoded JSON, and the texts and integers in it.

    Two equal shapes have the same keys in the same order, and values of the same types. Empty texts
    and all values that are neither text nor integer belong to the shape.
    """
    found: list[object] = []
    return _shape(value, found), found


def with_placeholders(event: Any, numbers: Collection[int]) -> Any:
    """Return a copy of decoded JSON with placeholders for the values with these numbers.

    The numbers are the positions in the list that :func:`taken_apart` returns.
    """
    number = -1

    def copied(value: Any) -> Any:
        nonlocal number
        if isinstance(value, dict):
            return {name: copied(each) for name, each in value.items()}
        if isinstance(value, list):
            return [copied(each) for each in value]
        if not _is_value(value):
            return value
        number += 1
        return Placeholder(number, type(value)) if number in numbers else value

    return copied(event)


def _shape(value: Any, found: list[object]) -> object:
    if isinstance(value, dict):
        return tuple((name, _shape(each, found)) for name, each in value.items())
    if isinstance(value, list):
        return [_shape(each, found) for each in value]
    if _is_value(value):
        found.append(value)
        return type(value)
    return type(value), value


def _is_value(value: Any) -> bool:
    return type(value) is int or (type(value) is str and bool(value))
