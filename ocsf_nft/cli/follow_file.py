"""Lines of a file that grows, and of a pipe: whole ones, and none so long that it fills memory."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import AbsentError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: What is longer is no line of anybody's: it is passed over.
LINE_BYTES: Final = 1 << 20
#: What stands for a line that was passed over.
TOO_LONG: Final = b""
_BLOCK_BYTES: Final = 1 << 16
#: By so many bytes before it, a place in a file is known again: more than most events have.
_MARK_BYTES: Final = 1 << 13


class _Cutter:
    """Cuts what was read into lines, over the parts of one that is too long."""

    def __init__(self) -> None:
        self._in_long_line = False

    def cut(self, data: bytes) -> tuple[list[bytes], int]:
        """The whole lines that data begins with, and their size; the rest is to come again."""
        end = data.rfind(b"\n") + 1
        if not end and len(data) >= LINE_BYTES:
            self._in_long_line = True
            return [], len(data)
        lines = data[:end].split(b"\n")[:-1]
        if lines and self._in_long_line:
            lines[0] = TOO_LONG
            self._in_long_line = False
        return lines, end

    def last(self, rest: bytes) -> list[bytes]:
        """The line that has no end, given what is left of it."""
        if self._in_long_line:
            return [TOO_LONG]
        return [rest] if rest else []


def opened(path: Path) -> int:
    """A descriptor to read a file or a pipe; raises AbsentError."""
    try:
        # As a file object, which refuses a directory at once.
        with path.open("rb", buffering=0) as file:
            return os.dup(file.fileno())
    except OSError as error:
        raise AbsentError(f"{path} can't be read: {error.strerror}") from error


def lines_of_pipe(descriptor: int) -> Iterator[list[bytes]]:
    """Lines as they come, until the pipe has no writer any more; raises OSError."""
    cutter, rest = _Cutter(), b""
    while chunk := _read(descriptor):
        rest += chunk
        lines, size = cutter.cut(rest)
        rest = rest[size:]
        yield lines
    yield cutter.last(rest)


def _read(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, _BLOCK_BYTES)
        except BlockingIOError:
            # Standard input that whoever gave us it made non-blocking, for themselves too.
            select.select((descriptor,), (), ())


class GrowingFile:
    """A regular file, read from its last lines on.

    ``descriptor`` is of the file, and its own from now on; ``path`` its name, None where it has
    none that could become another file's.
    """

    def __init__(self, descriptor: int, path: Path | None) -> None:
        self._descriptor = descriptor
        self._path = path
        self._is_left = False
        self._begin(0)

    def _begin(self, at: int) -> None:
        self._cutter = _Cutter()
        self._at = at
        self._mark = os.pread(self._descriptor, min(at, _MARK_BYTES), max(0, at - _MARK_BYTES))

    def last_lines(self, number: int, *, growing: bool) -> Iterator[list[bytes]]:
        """The last ``number`` lines; raises OSError.

        A last one without a line end is one of them, unless the file is growing: then it is one
        of the new lines once it is whole.
        """
        # No further: who writes faster than is read would hold us here.
        end = os.fstat(self._descriptor).st_size
        if growing and end and os.pread(self._descriptor, 1, end - 1) != b"\n":
            end = self._start_of_last(1, end)
        self._begin(self._start_of_last(number, end))
        yield from self._read_on(end)
        if not growing:
            yield self._rest(end)

    def new_lines(self) -> Iterator[list[bytes]]:
        """Lines that became whole since the last call; raises OSError, AbsentError.

        A file that was emptied, or cut and written anew (copytruncate), is read from its beginning.
        When its name is another file's (logrotate), that is gone on with once nothing more comes to
        the old one: who writes notices later than we do.
        """
        if self._is_another_at_our_place():
            self._begin(0)
        grown = False
        for lines in self._read_on():
            grown = True
            yield lines
        successor = self._successor()
        if successor is None or grown or not self._is_left:
            self._is_left = successor is not None
            if successor is not None:
                os.close(successor)
            return
        yield self._rest()
        os.close(self._descriptor)
        self._descriptor = successor
        self._is_left = False
        self._begin(0)
        yield from self._read_on()

    def _read_on(self, end: int | None = None) -> Iterator[list[bytes]]:
        while chunk := os.pread(self._descriptor, self._room(end), self._at):
            lines, size = self._cutter.cut(chunk)
            if not size:
                return
            self._at += size
            self._mark = (self._mark + chunk[max(0, size - _MARK_BYTES) : size])[-_MARK_BYTES:]
            yield lines

    def _rest(self, end: int | None = None) -> list[bytes]:
        """What there is behind the last whole line, as a line, and what came just now."""
        chunk = os.pread(self._descriptor, self._room(end), self._at)
        lines, size = self._cutter.cut(chunk)
        return [*lines, *self._cutter.last(chunk[size:])]

    def _room(self, end: int | None) -> int:
        return LINE_BYTES if end is None else max(0, min(LINE_BYTES, end - self._at))

    def _is_another_at_our_place(self) -> bool:
        size = len(self._mark)
        return os.pread(self._descriptor, size, self._at - size) != self._mark

    def _successor(self) -> int | None:
        """The file that has our name now, if it is another one."""
        if self._path is None:
            return None
        try:
            named = self._path.stat()
        except FileNotFoundError:  # renamed, and nobody has written since
            return None
        if os.path.samestat(named, os.fstat(self._descriptor)):
            return None
        return opened(self._path)

    def _start_of_last(self, number: int, end: int) -> int:
        """Where the last ``number`` lines before ``end`` begin: read backwards, and no more."""
        if not number:
            return end
        before = end - 1  # the last one's own end
        while before > 0:
            start = max(0, before - _BLOCK_BYTES)
            block = os.pread(self._descriptor, before - start, start)
            place = len(block)
            while (place := block.rfind(b"\n", 0, place)) >= 0:
                number -= 1
                if not number:
                    return start + place + 1
            before = start
        return 0
