"""Files of events: one JSON object a line, or JSON documents that go over several lines.

A file is read as documents when its first line is the beginning of one that goes on in the next,
and when its only line is an array. The items of an array are then the events.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from ocsf_nft.validation.fault import LINE, Fault
from ocsf_nft.validation.strict_json import Decoder, NotJsonError, documents, skip_space

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ocsf_nft.validation.validate_event import Judge

#: Of a line, and of all documents of a file.
LIMIT_BYTES: Final = 32 << 20
_TOO_LONG: Final = Fault(
    "error", LINE, f"is longer than {LIMIT_BYTES >> 20} MiB: write one event a line"
)


@dataclass(frozen=True, slots=True)
class Judged:
    """What one event, or what should have been one, is like; ``line`` is where it begins."""

    line: int
    faults: list[Fault]


class _Line(NamedTuple):
    """A line that is not blank; of one that is too long there is no text."""

    number: int
    text: str | None


def judged(file: BinaryIO, judge: Judge) -> Iterator[Judged]:
    """Judge each event of a file as it is read; blank lines are none. Raises OSError.

    What is not JSON is one error, at the path ``line``.
    """
    lines = _lines(file)
    first = next(lines, None)
    if first is None:
        return
    if first.text is None or not _may_be_documents(first.text):
        yield from _line_by_line(chain((first,), lines), judge)
        return
    held, is_all = _held(first, lines)
    if is_all and _are_documents(held):
        yield from _document_by_document(_whole(held), judge)
    elif _is_bracket(first.text):
        yield Judged(first.number, [_TOO_LONG])
    else:
        yield from _line_by_line(chain(held, lines), judge)


def _lines(file: BinaryIO) -> Iterator[_Line]:
    number = 0
    while data := file.readline(LIMIT_BYTES + 1):
        number += 1
        if len(data) > LIMIT_BYTES:
            while data and not data.endswith(b"\n"):
                data = file.readline(LIMIT_BYTES)
            yield _Line(number, None)
        elif data.strip():
            # Bytes that are no UTF-8 become lone surrogates, and are told of where they are.
            yield _Line(number, data.decode("utf-8", "surrogateescape"))


def _line_by_line(lines: Iterable[_Line], judge: Judge) -> Iterator[Judged]:
    decoder = Decoder()
    for number, text in lines:
        if text is None:
            yield Judged(number, [_TOO_LONG])
            continue
        try:
            event = decoder.one(text)
        except NotJsonError as error:
            yield Judged(number, [Fault("error", LINE, str(error))])
        else:
            yield Judged(number, decoder.faults() + judge.faults(event))


def _document_by_document(text: str, judge: Judge) -> Iterator[Judged]:
    """Up to the first that is not JSON: where the next one begins nobody knows."""
    decoder = Decoder()
    events = documents(text, decoder)
    line, place = 1, 0
    while True:
        try:
            start, event = next(events)
        except StopIteration:
            return
        except NotJsonError as error:
            line += text.count("\n", place, error.at)
            yield Judged(line, [Fault("error", LINE, str(error))])
            return
        line, place = line + text.count("\n", place, start), start
        yield Judged(line, decoder.faults() + judge.faults(event))


def _may_be_documents(text: str) -> bool:
    """Whether a first line is an array, or lacks no more than what the next ones may hold."""
    text = text.strip()
    try:
        Decoder().at(text, 0)
    except NotJsonError as error:
        return error.at >= len(text)
    return text.startswith("[")


def _is_bracket(text: str) -> bool:
    return text.strip() in {"{", "["}


def _held(first: _Line, lines: Iterator[_Line]) -> tuple[list[_Line], bool]:
    """Lines that documents may be made of, and whether these are all that there are."""
    held, size = [first], len(first.text or "")
    for line in lines:
        held.append(line)
        size += len(line.text or "")
        # The number counts the blank lines, which become text again.
        if line.text is None or size + line.number > LIMIT_BYTES:
            return held, False
    return held, True


def _are_documents(held: list[_Line]) -> bool:
    first, decoder = held[0].text or "", Decoder()
    if _is_bracket(first):
        return True
    try:
        decoder.at(first, skip_space(first, 0))
    except NotJsonError:
        return _begins_well(_whole(held), decoder)
    return len(held) == 1


def _begins_well(text: str, decoder: Decoder) -> bool:
    try:
        next(documents(text, decoder), None)
    except NotJsonError:
        return False
    return True


def _whole(held: list[_Line]) -> str:
    """The text of a file, blank lines and all, so that lines can be counted in it."""
    before = [0, *(line.number for line in held)]
    return "".join(
        "\n" * (line.number - last - 1) + (line.text or "")
        for last, line in zip(before, held, strict=False)
    )
