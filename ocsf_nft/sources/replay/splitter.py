"""A stream of bytes becomes lines and journal export entries, in constant memory.

An export entry is fields on lines of their own up to an empty line; it begins with ``__CURSOR=``.
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
_NAME: Final = re.compile(rb"[A-Z0-9_]{1,64}")
_LENGTH_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Export:
    """The wanted fields of one journal export entry, unless longer than LINE_LIMIT."""

    fields: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Overlong:
    """A line longer than LINE_LIMIT: its beginning."""

    start: bytes


Piece: TypeAlias = "bytes | Export | Overlong"


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
        if self._skip:
            skipped = min(self._skip, len(chunk))
            self._skip -= skipped
            chunk = chunk[skipped:]
        data = self._rest + chunk
        at = 0
        while (end := data.find(b"\n", at)) >= 0:
            line = data[at:end]
            if self._overlong is not None:
                yield Overlong(self._overlong)
                self._overlong = None
            elif self._fields is None and not line.startswith(_START):
                yield line
            elif b"=" in line:
                self._field(line)
            elif not line:
                yield from self._end_of_entry()
            elif _NAME.fullmatch(line):
                after = self._binary(line, data, end + 1)
                if after is None:
                    break
                end = after
            else:
                yield from self._end_of_entry()
                yield line
            at = end + 1
        self._rest = data[at:]
        self._bound()

    def finish(self) -> Iterator[Piece]:
        """What is left at the end of the stream: a last line, or entry, without its line break."""
        rest, self._rest = self._rest, b""
        if self._overlong is not None:
            yield Overlong(self._overlong)
            self._overlong = None
        elif self._fields is not None or rest.startswith(_START):
            if b"=" in rest:
                self._field(rest)
            yield from self._end_of_entry()
        elif rest:
            yield rest

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b"=")
        self._keep(name, value)

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

    def _binary(self, name: bytes, data: bytes, at: int) -> int | None:
        """Keep a field given by length: where its line break is, ``None`` when more must come."""
        if len(data) < at + _LENGTH_BYTES:
            return None
        size = int.from_bytes(data[at : at + _LENGTH_BYTES], "little")
        start = at + _LENGTH_BYTES
        end = start + size
        if size > LINE_LIMIT:
            have = len(data) - start
            if have <= size:
                self._skip = size + 1 - have
                return len(data) - 1
            return end
        if len(data) <= end:
            return None
        self._keep(name, data[start:end])
        return end

    def _bound(self) -> None:
        if self._overlong is None and len(self._rest) > 2 * LINE_LIMIT:
            self._overlong = self._rest[:1024]
        if self._overlong is not None:
            self._rest = b""
