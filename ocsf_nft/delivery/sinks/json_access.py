"""What is read of JSON that others wrote: of an event apart from itself, and of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def milliseconds(event: Any, *path: str) -> int:
    """A moment of an event in ms since the epoch, 0 where it has none."""
    return max(whole(event, *path) or 0, 0)


def text(found: Any, *path: str) -> str:
    """The text at a place, empty where there is none."""
    value = at(found, *path)
    return value if isinstance(value, str) else ""


def whole(found: Any, *path: str) -> int | None:
    """The number without a fraction at a place, None where there is none."""
    value = at(found, *path)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def at(found: Any, *path: str) -> Any:
    """What is at a place, None where there is no such place."""
    for name in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found
