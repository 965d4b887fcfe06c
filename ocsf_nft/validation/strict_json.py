"""JSON text becomes what is judged, and keeps what most readers of JSON throw away.

The standard library reads it: orjson takes no lone surrogates, no NaN and no integers past 64 bits,
and says nothing of a name that is in one object twice. All these are to be told as what they are.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.validation.fault import LIMIT, LINE, Fault, shown

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_SPACE: Final = re.compile(r"[ \t\r\n]*")
#: Digits of an integer that are read as they are: Python refuses to read very long ones.
_DIGITS: Final = 40


class NotJsonError(Exception):
    """Text that can't be read as JSON: from which character on, and why."""

    def __init__(self, text: str, at: int, reason: str) -> None:
        """Make the sentence of a reason; columns are counted from 1."""
        super().__init__(f"{reason} (column {at - text.rfind(chr(10), 0, at)})")
        self.at = at


class Decoder:
    """Decodes one text after another; ``faults`` are those of the values decoded last."""

    def __init__(self) -> None:
        """Begin with none."""
        self._twice: list[str] = []
        self._json = json.JSONDecoder(object_pairs_hook=self._object, parse_int=_integer)

    def one(self, text: str) -> Any:
        """The value of a text that holds one; raises NotJsonError."""
        value, end = self.at(text, skip_space(text, 0))
        end = skip_space(text, end)
        if end != len(text):
            raise NotJsonError(text, end, "is not JSON: more after its end")
        return value

    def at(self, text: str, start: int) -> tuple[Any, int]:
        """The value that begins at a place, and where it ends; raises NotJsonError."""
        self._twice.clear()
        try:
            return self._json.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise NotJsonError(text, error.pos, f"is not JSON: {error.msg}") from None
        except RecursionError:
            raise NotJsonError(text, start, "is nested too deep to be read") from None

    def faults(self) -> list[Fault]:
        """What the text of the value decoded last says that its value doesn't."""
        return [
            Fault("error", LINE, f"the name {shown(name)} is in one object twice")
            for name in self._twice
        ]

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen and len(self._twice) < LIMIT:
                    self._twice.append(name)
                seen.add(name)
        return found


def documents(text: str, decoder: Decoder) -> Iterator[tuple[int, Any]]:
    """The events of a text and where each begins: the items of its arrays, its other values.

    Raises NotJsonError.
    """
    at = skip_space(text, 0)
    while at < len(text):
        if text[at] == "[":
            at = yield from _items(text, at + 1, decoder)
        else:
            value, end = decoder.at(text, at)
            yield at, value
            at = end
        at = skip_space(text, at)


def _items(text: str, start: int, decoder: Decoder) -> Generator[tuple[int, Any], None, int]:
    """The items of the array whose first one may begin at ``start``; returns where it ends."""
    at = skip_space(text, start)
    if text.startswith("]", at):
        return at + 1
    while True:
        value, end = decoder.at(text, at)
        yield at, value
        end = skip_space(text, end)
        if text.startswith("]", end):
            return end + 1
        if not text.startswith(",", end):
            raise NotJsonError(text, end, "is not JSON: an array goes on with ',' or ends with ']'")
        at = skip_space(text, end + 1)


def skip_space(text: str, at: int) -> int:
    """The place of the first character from ``at`` on that is no space."""
    match = _SPACE.match(text, at)
    return at if match is None else match.end()


def _integer(digits: str) -> int:
    if len(digits) <= _DIGITS:
        return int(digits)
    # What is told of it is only that it is past 64 bits.
    return -(1 << 128) if digits.startswith("-") else 1 << 128
