"""What is wrong with an event, told so that no event can forge what is told.

An event is hostile: its names and values are shown as JSON writes them in ASCII, cut where they
are long, so a fault is one line that prints and that JSON can hold.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

#: ``error``: the event does not conform. ``warning``: it does, and says something better unsaid.
Severity: TypeAlias = Literal["error", "warning"]

#: Path of a fault that is not one attribute's, and of one that is in the text, before any event.
EVENT: Final = "event"
LINE: Final = "line"

#: Of one event more are not told: it could be made of nothing else.
LIMIT: Final = 1000
#: Characters of a text that are shown.
_SHOWN: Final = 60
_PLAIN: Final = re.compile(r"[A-Za-z0-9_/-]{1,60}")
_INT64_BITS: Final = 64


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: how bad, where (``observables[0].name``) and what."""

    severity: Severity
    path: str
    message: str

    def __str__(self) -> str:
        """One line, without where the event was read."""
        return f"{self.severity}: {self.path}: {self.message}"


class TooManyError(Exception):
    """``LIMIT`` faults of one event have been found."""


class Findings:
    """The faults of one event, in the order in which they are found."""

    __slots__ = ("faults",)

    def __init__(self) -> None:
        """Begin without any."""
        self.faults: list[Fault] = []

    def error(self, path: str, message: str) -> None:
        """Add an error; raises TooManyError."""
        self._add(Fault("error", path, message))

    def warning(self, path: str, message: str) -> None:
        """Add a warning; raises TooManyError."""
        self._add(Fault("warning", path, message))

    def _add(self, fault: Fault) -> None:
        if len(self.faults) == LIMIT:
            raise TooManyError
        self.faults.append(fault)


def shown(value: Any) -> str:
    """A value for people: a scalar as JSON has it, cut when it is long; what holds others by name.

    Never raises, whatever the value.
    """
    if isinstance(value, str):
        return json.dumps(value) if len(value) <= _SHOWN else f"{json.dumps(value[:_SHOWN])}…"
    if value is None or isinstance(value, bool | float):
        return json.dumps(value)
    if isinstance(value, int):
        # Python refuses to write a very long one.
        is_short = value.bit_length() <= _INT64_BITS
        return str(value) if is_short else "an integer past 64 bits"
    if isinstance(value, dict):
        return "an object"
    return "an array" if isinstance(value, list) else f"a {type(value).__name__}"


def below(path: str, key: Any) -> str:
    """The path of ``key`` in the object at ``path``; a name that is no plain word is quoted."""
    name = key if isinstance(key, str) and _PLAIN.fullmatch(key) else shown(key)
    return f"{path}.{name}" if path else name
