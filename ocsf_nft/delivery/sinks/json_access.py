"""Access to values in decoded JSON of any shape.

``path`` is the sequence of object keys that leads to a value. For example, the keys ``device`` and
``hostname`` lead to ``document["device"]["hostname"]``.
"""

from __future__ import annotations

from typing import Any

import orjson


def decoded(data: bytes) -> Any:
    """Return decoded JSON; None if ``data`` is not JSON."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def milliseconds(event: Any, *path: str) -> int:
    """Return the time at ``path`` in an event: an integer, in ms since the epoch.

    Returns 0 if there is no integer at ``path``, or if the integer is negative.
    """
    return max(integer(event, *path) or 0, 0)


def text(document: Any, *path: str) -> str:
    """Return the text at ``path`` in decoded JSON; an empty text if ``path`` leads to no text."""
    value = value_at(document, *path)
    return value if isinstance(value, str) else ""


def integer(document: Any, *path: str) -> int | None:
    """Return the integer at ``path`` in decoded JSON; None if ``path`` leads to no integer."""
    value = value_at(document, *path)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def value_at(document: Any, *path: str) -> Any:
    """Return the value at ``path`` in decoded JSON; None if ``path`` leads to no value."""
    for name in path:
        if not isinstance(document, dict):
            return None
        document = document.get(name)
    return document
