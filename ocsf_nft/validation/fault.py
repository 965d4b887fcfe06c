"""Faults of an event, as text that a hostile event can't manipulate.

Names and values of the event are shown as JSON in ASCII, and cut if they are long. So each fault is
one printable line.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

#: ``error``: the event does not conform. ``warning``: it conforms, but should be changed.
Severity: TypeAlias = Literal["error", "warning"]

#: Path of a fault of the whole event, and path of a fault of the text that should be an event.
EVENT: Final = "event"
LINE: Final = "line"

#: Maximum number of faults of one event: an event could consist of faults only.
LIMIT: Final = 1000
#: Maximum number of characters of a text that are shown.
_SHOWN_CHARACTERS: Final = 60
_PLAIN: Final = re.compile(r"[A-Za-z0-9_/-]{1,60}")
_INT64_BITS: Final = 64


@dataclass(frozen=True, slots=True)
class Fault:
    """Fault of an event: severity, path of the attribute (``observables[0].name``) and message."""

    severity: Severity
    path: str
    message: str

    def __str__(self) -> str:
        """Return the fault as one line of text: severity, path and message."""
        return f"{self.severity}: {self.path}: {self.message}"


def error(path: str, message: str) -> Fault:
    """Return an error about the attribute at ``path``."""
    return Fault("error", path, message)


def warning(path: str, message: str) -> Fault:
    """Return a warning about the attribute at ``path``."""
    return Fault("warning", path, message)


def describe(value: Any) -> str:
    """Describe a JSON value in a short text for people, for example ``true`` or ``an object``.

    Text, numbers, booleans and null are shown as JSON; long text is cut. Objects, arrays and very
    long integers are shown only by their type. Never raises.
    """
    if isinstance(value, str):
        shown = json.dumps(value[:_SHOWN_CHARACTERS])
        return shown if len(value) <= _SHOWN_CHARACTERS else f"{shown}…"
    if value is None or isinstance(value, bool | float):
        return json.dumps(value)
    if isinstance(value, int):
        # Python refuses to convert a very long integer to text.
        is_short = value.bit_length() <= _INT64_BITS
        return str(value) if is_short else "an integer past 64 bits"
    if isinstance(value, dict):
        return "an object"
    return "an array" if isinstance(value, list) else f"a {type(value).__name__}"


def child_path(path: str, key: Any) -> str:
    """Return the path of the attribute ``key`` of an object, for example ``device.os``.

    ``path`` is the object's path, or an empty text for the event itself. A ``key`` with special
    characters, such as a space, is quoted. A ``key`` of over 60 characters is quoted and cut.
    """
    name = key if isinstance(key, str) and _PLAIN.fullmatch(key) else describe(key)
    return f"{path}.{name}" if path else name
