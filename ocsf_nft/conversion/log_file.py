"""Conversion of one log file: its lines to events and rejected lines."""

# ruff: noqa: PLC0415 - ctypes and multiprocessing are imported where they are needed

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ocsf_nft.sources.replay.line_numbers import LineNumbers
from ocsf_nft.sources.replay.splitter import LINE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed import ReadableBuffer

    from ocsf_nft.conversion.converter import Converted, Converter
    from ocsf_nft.sources.replay import Reader
    from ocsf_nft.sources.replay.line_numbers import LineCounter

#: A longer rest without a line end is left to the reader, for which it is no line either.
LONGEST_REST: Final = 2 * LINE_LIMIT


class MakeReader(Protocol):
    """Creator of the reader of a log file."""

    def __call__(self, *, number_of: Callable[[bytes], int]) -> Reader:
        """Return the reader; ``number_of`` is that of :class:`Reader`."""


class EventOutput(NamedTuple):
    """Output of events, which arrive as lines of JSON with line ends."""

    #: Converts events to their form in the output.
    form: Callable[[ReadableBuffer], ReadableBuffer]
    write: Callable[[ReadableBuffer], None]
    #: Writes the events that ``form`` has collected.
    finish: Callable[[], None] = lambda: None


class LineConverter(Protocol):
    """Converter of the lines of one log file."""

    @property
    def reader(self) -> Reader:
        """General reader of the file."""

    @property
    def counter(self) -> LineCounter:
        """Counter of equal lines."""

    def keep_events(self, *, is_on: bool) -> None:
        """Keep the events of all later conversions valid until the next call, or not."""

    def convert(self, lines: bytes) -> Iterator[Converted]:
        """Convert complete lines."""

    def finish(self, rest: bytes) -> Iterator[Converted]:
        """Convert the rest of the file, which has no line end."""


class GeneralConverter:
    """Converter of the lines of one log file, all by the general code."""

    def __init__(self, converter: Converter, make_reader: MakeReader) -> None:
        self._converter = converter
        self.counter = LineNumbers()
        self.reader = make_reader(number_of=self.counter.count_line)

    def keep_events(self, *, is_on: bool) -> None:
        """Do nothing: events are bytes of their own."""

    def convert(self, lines: bytes) -> Iterator[Converted]:
        """Convert complete lines."""
        for batch in self.reader.feed(lines):
            yield from self._converter.converted(batch)

    def finish(self, rest: bytes) -> Iterator[Converted]:
        """Convert the rest of the file, which has no line end."""
        yield from self.convert(rest)
        for batch in self.reader.finish():
            yield from self._converter.converted(batch)


def line_converter(converter: Converter, make_reader: MakeReader) -> LineConverter:
    """Return the fastest converter of the lines of a log file that is available."""
    if not converter.mapper.has_severities:
        from ocsf_nft.conversion import native_library

        library = native_library.load_library()
        if library is not None:
            from ocsf_nft.conversion.fast_path import FastPath

            return FastPath(library, converter, make_reader)
    return GeneralConverter(converter, make_reader)


def convert(chunks: Iterable[bytes], lines: LineConverter) -> Iterator[Converted]:
    """Convert a file, which arrives in chunks."""
    rest = b""
    for chunk in chunks:
        whole, line_end, rest_of_chunk = chunk.rpartition(b"\n")
        if line_end:
            yield from lines.convert(rest + whole + line_end)
            rest = rest_of_chunk
        else:
            rest += chunk
        if len(rest) > LONGEST_REST:
            yield from lines.convert(rest)
            rest = b""
    yield from lines.finish(rest)
