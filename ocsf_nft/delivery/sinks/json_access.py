"""Access to values in decoded JSON of any shape: stored events and answers of receivers.

``path`` is the sequence of object keys that leads to a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def milliseconds(event: Any, *path: str) -> int:
    """Return a time of an event in ms since the epoch, or 0 if it has none."""
    return max(integer(event, *path) or 0, 0)


def text(document: Any, *path: str) -> str:
    """Return the text at ``path``, or an empty one if there is none."""
    value = value_at(document, *path)
    return value if isinstance(value, str) else ""


def integer(document: Any, *path: str) -> int | None:
    """Return the integer at ``path``, or None if there is none."""
    value = value_at(document, *path)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def value_at(document: Any, *path: str) -> Any:
    """Return the value at ``path``, or None if the path does not exist."""
    for name in path:
        if not isinstance(document, Mapping):
            return None
        document = document.get(name)
    return document
