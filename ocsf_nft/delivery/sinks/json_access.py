"""Access to values in decoded JSON of any shape: stored events and answers of receivers.

``path`` is the sequence of object keys that leads to a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def milliseconds(event: Any, *path: str) -> int:
    """Return an event's time at ``path`` in ms since the epoch; 0 if there is none."""
    return max(integer(event, *path) or 0, 0)


def text(document: Any, *path: str) -> str:
    """Return the text at ``path`` (object keys) in decoded JSON, or an empty one."""
    value = value_at(document, *path)
    return value if isinstance(value, str) else ""


def integer(document: Any, *path: str) -> int | None:
    """Return the integer at ``path`` (object keys) in decoded JSON, or None."""
    value = value_at(document, *path)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def value_at(document: Any, *path: str) -> Any:
    """Return the value at ``path`` (object keys) in decoded JSON, or None."""
    for name in path:
        if not isinstance(document, Mapping):
            return None
        document = document.get(name)
    return document
