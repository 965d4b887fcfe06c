"""Values that sinks need, read from an event's line of JSON without parsing the whole line.

A parse takes more time than the rest of a delivery. The text of an event is hostile, so a value is
only taken where its position in the line proves its path. Otherwise the line is parsed.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final

from ocsf_nft.delivery.sinks.json_access import decoded, integer, text

# A string of JSON has no quotation mark without a backslash before it. So `,"time":` in valid JSON
# is always a key, never a part of a text.

#: Integer with so few digits that it has 64 bits, and the end of its value.
_INTEGER: Final = re.compile(rb"(-?(?:0|[1-9][0-9]{0,17}))[,}]")
_TEXT: Final = re.compile(rb'"([^"\\]*)"')
_DEVICE: Final = b',"device":{"hostname":'
_UNMAPPED: Final = b',"unmapped":'
_METADATA: Final = b',"metadata":{'
_UNREAD: Final = object()


class LineFields:
    """Fields of one event: of the JSON object ``line``, without repeated keys.

    For a ``line`` that is no JSON object, the fields are those of an empty object.
    """

    __slots__ = ("_end", "_event", "_line")

    def __init__(self, line: bytes) -> None:
        self._line = line
        self._event: Any = _UNREAD
        # Before the first inner object or list, each key belongs to the event itself.
        self._end = line.find(b"{", 1)
        start_of_list = line.find(b"[", 1, self._end)
        if start_of_list >= 0:
            self._end = start_of_list

    def integer(self, name: str) -> int | None:
        """Return the integer attribute ``name`` of the event; None if it is no integer."""
        found = self._own(_INTEGER, name)
        return integer(self._parsed(), name) if found is None else int(found)

    def milliseconds(self, name: str) -> int:
        """Return the time ``name`` of the event in ms since the epoch; 0 if it is no valid time."""
        return max(self.integer(name) or 0, 0)

    def text(self, name: str) -> str:
        """Return the text attribute ``name`` of the event; an empty text if it is no text."""
        found = self._own(_TEXT, name)
        return text(self._parsed(), name) if found is None else found.decode()

    def hostname(self) -> str:
        """Return the name of the event's device; an empty text without such a name."""
        line = self._line
        start = line.find(_DEVICE)
        # In the models only events have a ``device``.
        if start >= 0 and _is_defined(line, start):
            found = _TEXT.match(line, start + len(_DEVICE))
            if found is not None:
                return found[1].decode()
        return text(self._parsed(), "device", "hostname")

    def unmapped_text(self, name: str) -> str:
        """Return the text ``name`` in ``unmapped`` of the event; an empty text if there is none."""
        span = unmapped_span(self._line)
        inner = None if span is None else decoded(self._line[slice(*span)])
        return text(self._parsed(), "unmapped", name) if inner is None else text(inner, name)

    def _own(self, value: re.Pattern[bytes], name: str) -> bytes | None:
        key = _key(name)
        at = self._line.find(key, 0, self._end)
        if at < 0:
            if not self._line.startswith(b"{" + key[1:]):
                return None
            at = 0
        found = value.match(self._line, at + len(key))
        return None if found is None else found[1]

    def _parsed(self) -> Any:
        if self._event is _UNREAD:
            self._event = decoded(self._line)
        return self._event


def unmapped_span(line: bytes) -> tuple[int, int] | None:
    """Return the start and the end of the value of ``unmapped`` in an event's line of JSON.

    If the value at these positions is not valid JSON, they are wrong. Return None if the positions
    are unknown.
    """
    # In the models only events have ``unmapped``, and ``metadata`` is the last attribute.
    key = line.find(_UNMAPPED)
    start, end = key + len(_UNMAPPED), line.rfind(_METADATA)
    return (start, end) if 0 <= key < end and _is_defined(line, key) else None


def _is_defined(line: bytes, end: int) -> bool:
    """Return True if the models define all attributes before the position ``end``."""
    # The content of these two objects is not defined: any key may be in it.
    return line.find(b'"data":', 0, end) < 0 and line.find(b'"unmapped":', 0, end) < 0


@cache
def _key(name: str) -> bytes:
    return f',"{name}":'.encode()
