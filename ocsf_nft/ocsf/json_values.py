"""Values of decoded JSON that may have any form, such as an event from a file."""

from __future__ import annotations

from typing import Any, Final

_INT64: Final = 1 << 63


def at(value: Any, *path: str | int) -> Any:
    """Return the value at a path of keys and list indexes; None if the path does not exist."""
    for step in path:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, dict) else None
        else:
            value = value[step] if isinstance(value, list) and len(value) > step else None
    return value


def number(value: Any) -> int | None:
    """Return an integer of at most 64 bits; None for every other value."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number and -_INT64 <= value < _INT64 else None


def text(value: Any) -> str:
    """Return a string; an empty one for every other value."""
    return value if isinstance(value, str) else ""


def items(value: Any, most: int) -> list[Any]:
    """Return the first ``most`` items of a list; an empty list for every other value."""
    return value[:most] if isinstance(value, list) else []
