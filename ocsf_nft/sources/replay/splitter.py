"""A stream of bytes becomes lines and journal export entries, in constant memory.

An export entry is fields on lines of their own up to an empty line; it begins with ``__CURSOR=``.
A line in it that is no field ends it too. What can't be told apart from a field's value is not
read, and said to be lost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

#: No line and no field that matters is longer (journald cuts kernel lines far below).
LINE_LIMIT: Final = 1 << 20
_START: Final = b"__CURSOR="
#: journal_field_valid() in systemd's src/libsystemd/sd-journal/journal-file.c.
_NAME: Final = re.compile(rb"[A-Z_][A-Z0-9_]{0,63}")
#: No field is longer (DATA_SIZE_MAX in systemd's src/shared/journal-importer.h).
_FIELD_LIMIT: Final = 768 << 20
_LENGTH_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Export:
    """The wanted fields of one journal export entry, unless longer than LINE_LIMIT."""

    fields: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Overlong:
    """A line longer than LINE_LIMIT: its beginning."""

    start: bytes


@dataclass(frozen=True, slots=True)
class Broken:
    """A field of an export entry that is not as long as it says: the reason, as a sentence."""

    reason: str


Piece: TypeAlias = "bytes | Export | Overlong | Broken"


class _BrokenError(Exception):
    """The length of a field can't be."""


class Splitter:
    """Takes chunks, gives the pieces that are complete; what is not waits for the next chunk.

    Of an export entry the fields ``wanted`` are kept.
    """

    def __init__(self, wanted: AbstractSet[str]) -> None:
        self._wanted = wanted
        self._rest = b""
        self._skip = 0
        self._overlong: bytes | None = None
        self._fields: dict[str, bytes] | None = None

    def feed(self, chunk: bytes) -> Iterator[Piece]:
        """The pieces that end in this chunk."""
        data = self._rest + chunk
        at = 0
        if self._skip:
            at = min(self._skip, len(data))
            self._skip -= at
            if not self._skip and data[at - 1 : at] != b"\n":
                at -= 1
                yield from self._broken("is longer than it says")
        while (end := data.find(b"\n", at)) >= 0:
            line = data[at:end]
            at = end + 1
            if self._overlong is not None:
                yield Overlong(self._overlong)
                self._overlong = None
            elif self._fields is None and not line.startswith(_START):
                yield line
            elif _NAME.fullmatch(line):
                try:
                    after = self._binary(line, data, at)
                except _BrokenError:
                    yield from self._broken("is longer than a field can be")
                    continue
                if after is None:
                    at = end - len(line)
                    break
                at = after
                if not self._skip and data[at - 1 : at] != b"\n":
                    at -= 1
                    yield from self._broken("is longer than it says")
            else:
                yield from self._entry_line(line)
        self._rest = data[at:]
        self._bound()

    def finish(self) -> Iterator[Piece]:
        """What is left at the end of the stream: a last line, or entry, without its line break."""
        rest, self._rest = self._rest, b""
        if self._overlong is not None:
            yield Overlong(self._overlong)
        elif self._skip or b"\n" in rest:
            yield from self._broken("is cut by the end of the file")
        elif self._fields is not None or rest.startswith(_START):
            yield from self._entry_line(rest)
            yield from self._end_of_entry()
        elif rest:
            yield rest

    def _entry_line(self, line: bytes) -> Iterator[Piece]:
        name, equals, value = line.partition(b"=")
        if line.startswith(_START) or not (equals and _NAME.fullmatch(name)):
            yield from self._end_of_entry()
        if equals and _NAME.fullmatch(name):
            self._keep(name, value)
        elif line:
            yield line

    def _keep(self, name: bytes, value: bytes) -> None:
        if self._fields is None:
            self._fields = {}
        key = name.decode("ascii", "replace")
        if key in self._wanted:
            self._fields.setdefault(key, value)  # of several values the first one counts

    def _end_of_entry(self) -> Iterator[Piece]:
        if self._fields:
            yield Export(self._fields)
        self._fields = None

    def _broken(self, how: str) -> Iterator[Piece]:
        yield from self._end_of_entry()
        yield Broken(f"a field of a journal export entry {how}: what is in it can't be read")

    def _binary(self, name: bytes, data: bytes, at: int) -> int | None:
        """Keep a field given by length: where its line break ends, ``None`` when more must come.

        Raises _BrokenError when there is no such length: this is no field.
        """
        start = at + _LENGTH_BYTES
        if len(data) < start:
            return None
        size = int.from_bytes(data[at:start], "little")
        if size > _FIELD_LIMIT:
            raise _BrokenError
        end = start + size
        if len(data) <= end:
            if size <= LINE_LIMIT:
                return None
            self._skip = end + 1 - len(data)
            return len(data)
        if size <= LINE_LIMIT:
            self._keep(name, data[start:end])
        return end + 1

    def _bound(self) -> None:
        if self._overlong is None and len(self._rest) > 2 * LINE_LIMIT:
            self._overlong = self._rest[:1024]
        if self._overlong is not None:
            self._rest = b""
