"""JSON decoder for validation: it also decodes invalid values, so that they can be reported.

The decoder accepts lone surrogates, NaN, integers of more than 64 bits, and repeated names. orjson
refuses or hides these faults.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.validation.fault import LIMIT, LINE, Fault, describe

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_SPACE: Final = re.compile(r"[ \t\r\n]*")
#: Maximum digits of an integer that is converted exactly: Python refuses very long ones.
_DIGITS: Final = 40


class NotJsonError(Exception):
    """Error: a text is not JSON; ``at`` is the offset of the fault in the text."""

    def __init__(self, text: str, at: int, reason: str) -> None:
        super().__init__(f"{reason} (column {at - text.rfind(chr(10), 0, at)})")
        self.at = at


class Decoder:
    """JSON decoder that also finds names that occur twice in one object (see :meth:`faults`)."""

    def __init__(self) -> None:
        self._repeated: list[str] = []
        self._json = json.JSONDecoder(object_pairs_hook=self._object, parse_int=_integer)

    def decode(self, text: str) -> Any:
        """Decode a text that consists of one JSON value; white space around the value is ignored.

        Raises NotJsonError if the text is not JSON, or has more than one value.
        """
        value, end = self.decode_at(text, skip_space(text, 0))
        end = skip_space(text, end)
        if end != len(text):
            raise NotJsonError(text, end, "is not JSON: more after its end")
        return value

    def decode_at(self, text: str, start: int) -> tuple[Any, int]:
        """Decode the JSON value at offset ``start``; return the value and the offset after it.

        Raises NotJsonError if there is no valid value.
        """
        self._repeated.clear()
        try:
            return self._json.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise NotJsonError(text, error.pos, f"is not JSON: {error.msg}") from None
        except RecursionError:
            raise NotJsonError(text, start, "is nested too deep to be read") from None

    def faults(self) -> list[Fault]:
        """Return a fault for each name that occurs twice in an object of the last decoded value.

        At most :data:`LIMIT` faults are returned.
        """
        return [
            Fault("error", LINE, f"the name {describe(name)} is in one object twice")
            for name in self._repeated
        ]

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen and len(self._repeated) < LIMIT:
                    self._repeated.append(name)
                seen.add(name)
        return found


def documents(text: str, decoder: Decoder) -> Iterator[tuple[int, Any]]:
    """Yield each event in a text of JSON documents, with its offset in the text.

    The items of an array are events; any other document is one event. Raises NotJsonError at the
    first part of the text that is not JSON.
    """
    at = skip_space(text, 0)
    while at < len(text):
        if text[at] == "[":
            at = yield from _items(text, at + 1, decoder)
        else:
            value, end = decoder.decode_at(text, at)
            yield at, value
            at = end
        at = skip_space(text, at)


def _items(text: str, start: int, decoder: Decoder) -> Generator[tuple[int, Any], None, int]:
    """Yield the items of a JSON array with their offsets; return the offset after the array.

    ``start`` is the offset after the opening bracket. Raises NotJsonError if the array is
    not valid JSON.
    """
    at = skip_space(text, start)
    if text.startswith("]", at):
        return at + 1
    while True:
        value, end = decoder.decode_at(text, at)
        yield at, value
        end = skip_space(text, end)
        if text.startswith("]", end):
            return end + 1
        if not text.startswith(",", end):
            raise NotJsonError(text, end, "is not JSON: an array goes on with ',' or ends with ']'")
        at = skip_space(text, end + 1)


def skip_space(text: str, at: int) -> int:
    """Return the offset of the first character at or after ``at`` that is not white space.

    Return the length of the text if there is none.
    """
    match = _SPACE.match(text, at)
    return at if match is None else match.end()


def _integer(digits: str) -> int:
    if len(digits) <= _DIGITS:
        return int(digits)
    # The report has no digits, only that the integer is past 64 bits.
    return -(1 << 128) if digits.startswith("-") else 1 << 128
