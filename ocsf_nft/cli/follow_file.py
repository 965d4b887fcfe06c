"""Reader of complete lines from a growing file or a pipe, with a maximum line length."""

from __future__ import annotations

import os
import select
from functools import partial
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import AbsentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

#: Longer lines are skipped: no event is that long.
LINE_BYTES: Final = 1 << 20
#: Placeholder for a skipped line.
TOO_LONG: Final = b""
_BLOCK_BYTES: Final = 1 << 16
#: The bytes before a position identify it after a change of the file: more than most events have.
_CONTEXT_BYTES: Final = 1 << 13


class _Cutter:
    """Splitter of data into lines; a line that is too long becomes an empty line."""

    def __init__(self) -> None:
        self._in_long_line = False

    def cut(self, data: bytes) -> tuple[list[bytes], int]:
        """Return the complete lines at the start of ``data``, and their size in bytes.

        The caller must pass the rest of ``data`` again, followed by more data.
        """
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
        """Return a list with the input's last line if that line has no line end; else ``[]``.

        ``rest`` has the bytes after the input's last line end.
        """
        if self._in_long_line:
            return [TOO_LONG]
        return [rest] if rest else []


def opened(path: Path) -> int:
    """Open a file or a pipe for reading and return its descriptor.

    Raises AbsentError if it can't be opened.
    """
    try:
        # Opened as a file object, which fails at once for a directory.
        with path.open("rb", buffering=0) as file:
            return os.dup(file.fileno())
    except OSError as error:
        raise AbsentError(f"{path} can't be read: {error.strerror}") from error


def lines_of_pipe(descriptor: int) -> Iterator[list[bytes]]:
    """Yield lists of lines as they arrive from a pipe, until no process has it open for writing.

    A last line without a line end is yielded too. Raises OSError if the pipe can't be read.
    """
    return lines_of(chunks_of_pipe(descriptor))


def lines_of(chunks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield lists of the lines in chunks of data, also a last line without a line end."""
    cutter, rest = _Cutter(), b""
    for chunk in chunks:
        rest += chunk
        lines, size = cutter.cut(rest)
        rest = rest[size:]
        yield lines
    yield cutter.last(rest)


def chunks_of_pipe(descriptor: int) -> Iterator[bytes]:
    """Yield the data of a pipe as it arrives, until no process has it open for writing.

    Raises OSError if the pipe can't be read.
    """
    return iter(partial(_read, descriptor), b"")


def _read(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, _BLOCK_BYTES)
        except BlockingIOError:
            # The process that gave us standard input made it non-blocking, and shares it.
            select.select((descriptor,), (), ())


class GrowingFile:
    """Reader of a regular file to which another process appends lines.

    ``descriptor`` belongs to the open file, and ``path`` is the file's path. If another file gets
    this path (log rotation), the reader closes ``descriptor`` and continues with the new file. If
    ``path`` is None, the reader never changes to another file.
    """

    def __init__(self, descriptor: int, path: Path | None) -> None:
        self._descriptor = descriptor
        self._path = path
        self._is_left = False
        self._begin(0)

    def _begin(self, at: int) -> None:
        self._cutter = _Cutter()
        self._at = at
        self._context = os.pread(
            self._descriptor, min(at, _CONTEXT_BYTES), max(0, at - _CONTEXT_BYTES)
        )

    def last_lines(self, number: int, *, growing: bool) -> Iterator[list[bytes]]:
        """Yield the last ``number`` lines of the file, in lists of lines.

        A last line without a line end is included if ``growing`` is false. If ``growing`` is true,
        :meth:`new_lines` yields this line when it is complete. Raises OSError if reading fails.
        """
        # No further: a writer that is faster than this reader would keep the loop going.
        end = os.fstat(self._descriptor).st_size
        if growing and end and os.pread(self._descriptor, 1, end - 1) != b"\n":
            end = self._start_of_last(1, end)
        self._begin(self._start_of_last(number, end))
        yield from self._read_on(end)
        if not growing:
            yield self._rest(end)

    def new_lines(self) -> Iterator[list[bytes]]:
        """Yield the lines that became complete since the last call, in lists of lines.

        A rewritten file is read from its beginning. After a log rotation, the new file is read
        after the old one. Raises OSError if reading fails. Raises AbsentError if the new file can't
        be opened.
        """
        if self._is_rewritten():
            self._begin(0)
        grown = False
        for lines in self._read_on():
            grown = True
            yield lines
        successor = self._successor()
        # After a log rotation, the old file is read until it has stopped growing.
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
            self._context = (self._context + chunk[max(0, size - _CONTEXT_BYTES) : size])[
                -_CONTEXT_BYTES:
            ]
            yield lines

    def _rest(self, end: int | None = None) -> list[bytes]:
        """Return the lines up to the offset ``end``, also a last one without a line end."""
        chunk = os.pread(self._descriptor, self._room(end), self._at)
        lines, size = self._cutter.cut(chunk)
        return [*lines, *self._cutter.last(chunk[size:])]

    def _room(self, end: int | None) -> int:
        return LINE_BYTES if end is None else max(0, min(LINE_BYTES, end - self._at))

    def _is_rewritten(self) -> bool:
        size = len(self._context)
        return os.pread(self._descriptor, size, self._at - size) != self._context

    def _successor(self) -> int | None:
        """Open the file that has the name ``path`` now; return None if there is no other one."""
        if self._path is None:
            return None
        try:
            named = self._path.stat()
        except FileNotFoundError:  # renamed, and no new file was created since
            return None
        if os.path.samestat(named, os.fstat(self._descriptor)):
            return None
        return opened(self._path)

    def _start_of_last(self, number: int, end: int) -> int:
        """Return the offset in the file where the last ``number`` lines before ``end`` begin."""
        if not number:
            return end
        before = end - 1  # before the line end of the last line
        while before > 0:
            start = max(0, before - _BLOCK_BYTES)
            block = os.pread(self._descriptor, before - start, start)
            position = len(block)
            while (position := block.rfind(b"\n", 0, position)) >= 0:
                number -= 1
                if not number:
                    return start + position + 1
            before = start
        return 0
