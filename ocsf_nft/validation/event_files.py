"""Reader of event files: one JSON object on each line, or JSON documents over several lines.

Each document is one event or an array of events.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from ocsf_nft.validation.fault import LINE, Fault
from ocsf_nft.validation.strict_json import Decoder, NotJsonError, documents, skip_space

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ocsf_nft.validation.validate_event import EventValidator

#: Maximum size of a line, and of all documents of a file.
LIMIT_BYTES: Final = 32 << 20
_TOO_LONG: Final = Fault(
    "error", LINE, f"is longer than {LIMIT_BYTES >> 20} MiB: write one event a line"
)


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
    decoder = Decoder()
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
    decoder = Decoder()
    events = documents(text, decoder)
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
    """Return True if a file may have JSON documents of several lines, or arrays of events.

    ``text`` is the file's first line. False means that each line is one event.
    """
    text = text.strip()
    try:
        Decoder().decode_at(text, 0)
    except NotJsonError as error:
        return error.at >= len(text)
    return text.startswith("[")


def _is_bracket(text: str) -> bool:
    return text.strip() in {"{", "["}


def _collect(first: _Line, lines: Iterator[_Line]) -> tuple[list[_Line], bool]:
    """Return all lines of a file, and true.

    If the lines exceed ``LIMIT_BYTES``, return the lines that were read until then, and false.
    ``first`` is the first line, and ``lines`` are the lines after it.
    """
    collected, size = [first], len(first.text or "")
    for line in lines:
        collected.append(line)
        size += len(line.text or "")
        # The line number includes the blank lines, which ``_join`` restores.
        if line.text is None or size + line.number > LIMIT_BYTES:
            return collected, False
    return collected, True


def _are_documents(collected: list[_Line]) -> bool:
    first, decoder = collected[0].text or "", Decoder()
    if _is_bracket(first):
        return True
    try:
        decoder.decode_at(first, skip_space(first, 0))
    except NotJsonError:
        return _has_valid_document(_join(collected), decoder)
    return len(collected) == 1


def _has_valid_document(text: str, decoder: Decoder) -> bool:
    try:
        next(documents(text, decoder), None)
    except NotJsonError:
        return False
    return True


def _join(collected: list[_Line]) -> str:
    """Join the lines of a file to one text with the same line numbers.

    ``collected`` lacks the file's blank lines, so the text gets an empty line for each of them.
    """
    # So the number of line breaks before a position gives the line in the file.
    before = [0, *(line.number for line in collected)]
    return "".join(
        "\n" * (line.number - last - 1) + (line.text or "")
        for last, line in zip(before, collected, strict=False)
    )
