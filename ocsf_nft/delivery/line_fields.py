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


def _object(depth: int) -> bytes:
    inner = rb"|" + _object(depth - 1) if depth else b""
    return rb'\{(?:[^"{}]++|"(?:[^"\\]++|\\.)*+"' + inner + rb")*+\}"


#: Integer with so few digits that it has 64 bits, and the end of its value.
_INTEGER: Final = re.compile(rb"(-?(?:0|[1-9][0-9]{0,17}))[,}]")
_TEXT: Final = re.compile(rb'"([^"\\]*)"')
_DEVICE: Final = b',"device":{"hostname":'
_UNMAPPED: Final = b'"unmapped":'
_DATA: Final = b'"data":'
_METADATA: Final = b',"metadata":{'
#: JSON object with objects in it, three levels deep.
_OBJECT: Final = re.compile(_object(3))
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
        # In the models only events have a ``device``. But a free value may have any key.
        if start >= 0 and line.find(_DATA, 0, start) < 0 and line.find(_UNMAPPED, 0, start) < 0:
            found = _TEXT.match(line, start + len(_DEVICE))
            if found is not None:
                return found[1].decode()
        return text(self._parsed(), "device", "hostname")

    def unmapped_text(self, name: str) -> str:
        """Return the text ``name`` in ``unmapped`` of the event; an empty text if there is none."""
        line = self._line
        for start, end in free_spans(line) or ():
            if line.startswith(_UNMAPPED, start - len(_UNMAPPED)):
                inner = decoded(line[start:end])
                if inner is not None:
                    return text(inner, name)
        return text(self._parsed(), "unmapped", name)

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


def free_spans(line: bytes) -> list[tuple[int, int]] | None:
    """Return the start and the end of each value of ``data`` and ``unmapped`` in an event's line.

    The models do not define the content of these values. Return None if a position is unknown. If
    the text at one of the positions is not valid JSON, all positions are unknown.
    """
    # In the models only enrichments have ``data``, and only events have ``unmapped`` and
    # ``metadata``. Keys inside a free value are not found, since the search continues after it.
    found: list[tuple[int, int]] = []
    end = 0
    while True:
        data, unmapped = line.find(_DATA, end), line.find(_UNMAPPED, end)
        if data < 0 and unmapped < 0:
            return found
        if data >= 0 and (unmapped < 0 or data < unmapped):
            value = _OBJECT.match(line, data + len(_DATA))
            if value is None:
                return None
            start, end = value.span()
        else:
            start, end = unmapped + len(_UNMAPPED), line.rfind(_METADATA)
            if end <= start:
                return None
        found.append((start, end))


@cache
def _key(name: str) -> bytes:
    return f',"{name}":'.encode()
