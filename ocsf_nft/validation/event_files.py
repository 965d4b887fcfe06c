"""Reader of event files: one JSON object on each line, or JSON documents over several lines.

Each document is one event or an array of events. The decoder accepts lone surrogates, NaN, integers
of more than 64 bits and repeated names, so that they can be reported. orjson refuses or hides them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

from ocsf_nft.validation.fault import LIMIT, LINE, Fault, describe

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from ocsf_nft.validation.validate_event import EventValidator

#: Maximum size of a line, and of all documents of a file.
LIMIT_BYTES: Final = 32 << 20
_TOO_LONG: Final = Fault(
    "error", LINE, f"is longer than {LIMIT_BYTES >> 20} MiB: write one event a line"
)
_SPACE: Final = re.compile(r"[ \t\r\n]*")
#: Maximum digits of an integer that is converted exactly: Python refuses very long ones.
_DIGITS: Final = 40


@dataclass(frozen=True, slots=True)
class ValidatedEvent:
    """Validation result of one event, or of text that can't be read as an event.

    ``line`` is the number of the line where the event or text begins. The first line has number 1.
    """

    line: int
    faults: list[Fault]


class _Line(NamedTuple):
    """Non-blank line of an event file and its number; ``text`` is None if the line is too long."""

    number: int
    text: str | None


def validate_events(file: BinaryIO, validator: EventValidator) -> Iterator[ValidatedEvent]:
    """Validate each event of a file, and yield each result while the file is read.

    Text that is not JSON gives a result with one fault. Raises OSError if the file can't be read.
    """
    lines = _lines(file)
    first = next(lines, None)
    if first is None:
        return
    # A file has documents if its first one continues on the next line, or if its only line is an
    # array. Otherwise each line is one event.
    if first.text is None or not _may_be_documents(first.text):
        yield from _line_by_line(chain((first,), lines), validator)
        return
    collected, is_all = _collect(first, lines)
    if is_all and _are_documents(collected):
        yield from _document_by_document(_join(collected), validator)
    elif _is_bracket(first.text):
        yield ValidatedEvent(first.number, [_TOO_LONG])
    else:
        yield from _line_by_line(chain(collected, lines), validator)


def _lines(file: BinaryIO) -> Iterator[_Line]:
    number = 0
    while data := file.readline(LIMIT_BYTES + 1):
        number += 1
        if len(data) > LIMIT_BYTES:
            while data and not data.endswith(b"\n"):
                data = file.readline(LIMIT_BYTES)
            yield _Line(number, None)
        elif data.strip():
            # Bytes that are not UTF-8 become lone surrogates, which the validator reports.
            yield _Line(number, data.decode("utf-8", "surrogateescape"))


def _line_by_line(lines: Iterable[_Line], validator: EventValidator) -> Iterator[ValidatedEvent]:
    decoder = _Decoder()
    for number, text in lines:
        if text is None:
            yield ValidatedEvent(number, [_TOO_LONG])
            continue
        try:
            event = decoder.decode(text)
        except NotJsonError as error:
            yield ValidatedEvent(number, [Fault("error", LINE, str(error))])
        else:
            yield ValidatedEvent(number, decoder.faults() + validator.faults(event))


def _document_by_document(text: str, validator: EventValidator) -> Iterator[ValidatedEvent]:
    decoder = _Decoder()
    events = _documents(text, decoder)
    line, position = 1, 0
    while True:
        try:
            start, event = next(events)
        except StopIteration:
            return
        except NotJsonError as error:
            line += text.count("\n", position, error.at)
            yield ValidatedEvent(line, [Fault("error", LINE, str(error))])
            # The end of such text is unknown, so the events after it can't be found.
            return
        line, position = line + text.count("\n", position, start), start
        yield ValidatedEvent(line, decoder.faults() + validator.faults(event))


def _may_be_documents(text: str) -> bool:
    """Return False if the first line of a file shows that each line is one event."""
    text = text.strip()
    try:
        _Decoder().decode_at(text, 0)
    except NotJsonError as error:
        return error.at >= len(text)
    return text.startswith("[")


def _is_bracket(text: str) -> bool:
    return text.strip() in {"{", "["}


def _collect(first: _Line, lines: Iterator[_Line]) -> tuple[list[_Line], bool]:
    """Return the lines of a file up to the limit, and True if these are all."""
    collected, size = [first], len(first.text or "")
    for line in lines:
        collected.append(line)
        size += len(line.text or "")
        # The line number includes the blank lines, which ``_join`` restores.
        if line.text is None or size + line.number > LIMIT_BYTES:
            return collected, False
    return collected, True


def _are_documents(collected: list[_Line]) -> bool:
    first, decoder = collected[0].text or "", _Decoder()
    if _is_bracket(first):
        return True
    try:
        decoder.decode_at(first, _skip_space(first, 0))
    except NotJsonError:
        return _has_valid_document(_join(collected), decoder)
    return len(collected) == 1


def _has_valid_document(text: str, decoder: _Decoder) -> bool:
    try:
        next(_documents(text, decoder), None)
    except NotJsonError:
        return False
    return True


def _join(collected: list[_Line]) -> str:
    """Join lines to one text; each blank line of the file is an empty line of the text."""
    # So the number of line breaks before a position gives the line in the file.
    before = [0, *(line.number for line in collected)]
    return "".join(
        "\n" * (line.number - last - 1) + (line.text or "")
        for last, line in zip(before, collected, strict=False)
    )


class NotJsonError(Exception):
    """Error: a text is not JSON; ``at`` is the offset of the fault in the text."""

    def __init__(self, text: str, at: int, reason: str) -> None:
        super().__init__(f"{reason} (column {at - text.rfind(chr(10), 0, at)})")
        self.at = at


class _Decoder:
    """JSON decoder that also finds names that occur twice in one object (see :meth:`faults`)."""

    def __init__(self) -> None:
        self._repeated: list[str] = []
        self._json = json.JSONDecoder(object_pairs_hook=self._object, parse_int=_integer)

    def decode(self, text: str) -> Any:
        """Decode a text of one JSON value, with white space around it; raises NotJsonError."""
        value, end = self.decode_at(text, _skip_space(text, 0))
        end = _skip_space(text, end)
        if end != len(text):
            raise NotJsonError(text, end, "is not JSON: more after its end")
        return value

    def decode_at(self, text: str, start: int) -> tuple[Any, int]:
        """Return the JSON value at an offset, and the offset after it; raises NotJsonError."""
        self._repeated.clear()
        try:
            return self._json.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise NotJsonError(text, error.pos, f"is not JSON: {error.msg}") from None
        except RecursionError:
            raise NotJsonError(text, start, "is nested too deep to be read") from None

    def faults(self) -> list[Fault]:
        """Return a fault for each name that is in one object twice; at most :data:`LIMIT`."""
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


def _documents(text: str, decoder: _Decoder) -> Iterator[tuple[int, Any]]:
    """Yield each event in a text of JSON documents, with its offset; raises NotJsonError."""
    at = _skip_space(text, 0)
    while at < len(text):
        if text[at] == "[":
            at = yield from _items(text, at + 1, decoder)
        else:
            value, end = decoder.decode_at(text, at)
            yield at, value
            at = end
        at = _skip_space(text, at)


def _items(text: str, start: int, decoder: _Decoder) -> Generator[tuple[int, Any], None, int]:
    """Yield the items of a JSON array with their offsets; return the offset after the array."""
    at = _skip_space(text, start)
    if text.startswith("]", at):
        return at + 1
    while True:
        value, end = decoder.decode_at(text, at)
        yield at, value
        end = _skip_space(text, end)
        if text.startswith("]", end):
            return end + 1
        if not text.startswith(",", end):
            raise NotJsonError(text, end, "is not JSON: an array goes on with ',' or ends with ']'")
        at = _skip_space(text, end + 1)


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()


def _integer(digits: str) -> int:
    if len(digits) <= _DIGITS:
        return int(digits)
    # The report has no digits, only that the integer is past 64 bits.
    return -(1 << 128) if digits.startswith("-") else 1 << 128
