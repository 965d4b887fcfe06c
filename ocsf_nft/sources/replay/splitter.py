"""Splitter of a byte stream into lines and journal export entries, in constant memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from ocsf_nft.record import Reject

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

#: Maximum length of a line, and of a field that we use (journald cuts kernel lines far below).
LINE_LIMIT: Final = 1 << 20
#: Start of an export entry, which has each field on a line. The entry ends with an empty line, or
#: with a line that is not a field.
ENTRY_START: Final = b"__CURSOR="
#: journal_field_valid() in systemd's src/libsystemd/sd-journal/journal-file.c.
_NAME: Final = re.compile(rb"[A-Z_][A-Z0-9_]{0,63}")
#: Maximum length of any field (DATA_SIZE_MAX in systemd's src/shared/journal-importer.h).
_FIELD_LIMIT: Final = 768 << 20
#: A binary field has its length before its value. If no line break follows the value, the length is
#: wrong.
_LENGTH_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class OverlongLine:
    """Beginning of a line that is longer than twice LINE_LIMIT; the rest is discarded."""

    start: bytes


#: Line, selected fields of a journal export entry, or a Reject for an unreadable field of one. An
#: entry has no binary field longer than LINE_LIMIT.
Piece: TypeAlias = "bytes | dict[str, bytes] | OverlongLine | Reject"


class Splitter:
    """Splitter of a file's bytes into lines and journal export entries.

    The bytes arrive in chunks. ``selected`` are the names of the export entry fields to return.
    """

    def __init__(self, selected: AbstractSet[str]) -> None:
        self._selected = selected
        self._rest = b""
        self._skip = 0
        self._overlong: bytes | None = None
        self._fields: dict[str, bytes] | None = None

    @property
    def is_inside(self) -> bool:
        """Return True if the last chunk ended inside a line or a journal export entry."""
        return bool(
            self._rest or self._skip or self._overlong is not None or self._fields is not None
        )

    def feed(self, chunk: bytes) -> Iterator[Piece]:
        """Yield the lines and journal export entries that end in this chunk.

        An incomplete line or entry waits for the next chunk. An unreadable field is yielded as a
        Reject, and the beginning of a very long line as an :class:`OverlongLine`. A field is
        unreadable if its stated length is wrong, or if the file ends inside it.
        """
        data = self._rest + chunk
        at = 0
        if self._skip:
            at = min(self._skip, len(data))
            self._skip -= at
            if not self._skip and data[at - 1 : at] != b"\n":
                at -= 1
                yield from self._broken_field("is longer than its stated length")
        while (end := data.find(b"\n", at)) >= 0:
            line = data[at:end]
            at = end + 1
            if self._overlong is not None:
                yield OverlongLine(self._overlong)
                self._overlong = None
            elif self._fields is None and not line.startswith(ENTRY_START):
                yield line
            elif _NAME.fullmatch(line):
                try:
                    after = self._binary(line, data, at)
                except ValueError:
                    yield from self._broken_field("is longer than a field can be")
                    continue
                if after is None:
                    at = end - len(line)
                    break
                at = after
                if not self._skip and data[at - 1 : at] != b"\n":
                    at -= 1
                    yield from self._broken_field("is longer than its stated length")
            else:
                yield from self._entry_line(line)
        self._rest = data[at:]
        self._limit_rest()

    def finish(self) -> Iterator[Piece]:
        """Yield the rest of the file, if the file does not end with a complete line or entry.

        The rest is a line without a line break, or a journal export entry without an empty line
        after it.
        """
        rest, self._rest = self._rest, b""
        if self._overlong is not None:
            yield OverlongLine(self._overlong)
        elif self._skip or b"\n" in rest:
            yield from self._broken_field("is cut by the end of the file")
        elif self._fields is not None or rest.startswith(ENTRY_START):
            yield from self._entry_line(rest)
            yield from self._end_of_entry()
        elif rest:
            yield rest

    def _entry_line(self, line: bytes) -> Iterator[Piece]:
        name, equals, value = line.partition(b"=")
        if line.startswith(ENTRY_START) or not (equals and _NAME.fullmatch(name)):
            yield from self._end_of_entry()
        if equals and _NAME.fullmatch(name):
            self._store(name, value)
        elif line:
            yield line

    def _store(self, name: bytes, value: bytes) -> None:
        if self._fields is None:
            self._fields = {}
        key = name.decode("ascii", "replace")
        if key in self._selected:
            self._fields.setdefault(key, value)  # the first one of several values counts

    def _end_of_entry(self) -> Iterator[Piece]:
        if self._fields:
            yield self._fields
        self._fields = None

    def _broken_field(self, problem: str) -> Iterator[Piece]:
        yield from self._end_of_entry()
        reason = f"a field of a journal export entry {problem}: its content can't be read"
        yield Reject(kind="malformed", reason=reason, line="")

    def _binary(self, name: bytes, data: bytes, at: int) -> int | None:
        """Read a binary field into the current export entry.

        ``data`` has the field's length at offset ``at``, then the value. Return the offset after
        the field, or None if more data is needed. Raises ValueError for an impossible length.
        """
        start = at + _LENGTH_BYTES
        if len(data) < start:
            return None
        size = int.from_bytes(data[at:start], "little")
        if size > _FIELD_LIMIT:
            raise ValueError
        end = start + size
        if len(data) <= end:
            if size <= LINE_LIMIT:
                return None
            # Without waiting for the rest of the value, which feed() skips.
            self._skip = end + 1 - len(data)
            return len(data)
        if size <= LINE_LIMIT:
            self._store(name, data[start:end])
        return end + 1

    def _limit_rest(self) -> None:
        if self._overlong is None and len(self._rest) > 2 * LINE_LIMIT:
            self._overlong = self._rest[:1024]
        if self._overlong is not None:
            self._rest = b""
