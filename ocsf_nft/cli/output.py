"""Safe use of standard output and standard error, even if they are closed or can't accept data.

A failed write to standard output raises an error; a failed write to standard error is ignored.
"""

from __future__ import annotations

import io
import os
import re
import select
import stat
import sys
from typing import TYPE_CHECKING, Final, TextIO

from ocsf_nft.errors import DeliveryError
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed import ReadableBuffer

_STDOUT: Final = 1
_STDERR: Final = 2

#: A pipe that accepts any data accepts this many bytes at once.
AT_ONCE_BYTES: Final = select.PIPE_BUF


class _Stdout(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        """Write at least a part of ``data``; return the number of written bytes.

        Raises DeliveryError if writing fails. Raises SystemExit with code 0 if the reader closed
        the pipe.
        """
        try:
            return self._write_some(data)
        except OSError as error:
            # Discard buffered data: the interpreter's flush at exit must not fail on it again.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, _STDOUT)
            os.close(null)
            if isinstance(error, BrokenPipeError):
                raise SystemExit(0) from None
            raise DeliveryError(f"standard output can't be written: {error.strerror}") from error

    def _write_some(self, data: ReadableBuffer) -> int:
        while (written := super().write(data)) is None:
            # A full pipe. The process that gave it to us made it non-blocking, and shares it.
            select.select((), (self,), ())
        return written


class _Stderr(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        """Write ``data``; return the number of written bytes.

        If writing fails, drop ``data``, and return its size.
        """
        size = memoryview(data).nbytes
        try:
            return super().write(data) or size  # None: a non-blocking pipe is full
        except OSError:  # ignored, so that the exit code stays correct
            return size


def prepare() -> None:
    """Make the standard streams safe to use; call this function before any file is opened.

    A closed stream is opened on the null device. If standard output was closed, it is opened only
    for reading. So a write to it still raises an error.
    """
    # A file that is opened later would get the descriptor of a closed stream, and receive printed
    # text.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # it is the lowest free descriptor, so open() returns it
            os.open(os.devnull, os.O_RDONLY if number < _STDERR else os.O_WRONLY)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it lives as long as the process
    sys.stdout = _text(_Stdout(_STDOUT, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Stderr(_STDERR, "w", closefd=False), sys.stderr)


def write(data: ReadableBuffer) -> None:
    """Write ``data`` to standard output without buffering; raises DeliveryError if writing fails.

    Raises SystemExit with code 0 if the reader closed the pipe.
    """
    sys.stdout.flush()
    # Not through the buffer: after an interrupt between the write and the update of the buffer, the
    # flush at exit would write the same data again.
    stream = getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]


def write_json(found: object) -> None:
    """Write an object as one line of JSON; raises the same errors as :func:`write`."""
    import orjson  # noqa: PLC0415 - most commands start without it

    write(orjson.dumps(found) + b"\n")


def write_json_of_any_size(found: object) -> None:
    """Write an object as one line of JSON, also with numbers of more than 64 bits.

    A process in a namespace can make such numbers. Raises the same errors as :func:`write`.
    """
    import json  # noqa: PLC0415 - most commands start without it

    write(json.dumps(found, separators=(",", ":")).encode() + b"\n")


def show(text: str) -> None:
    """Write text for people to standard error; escape control characters in the text."""
    shown = re.sub(r"[^\n\t]+", lambda part: visible(part[0]), text)
    print(shown, file=sys.stderr)  # noqa: T201 - the only print


def reader_of_pipe() -> select.poll:
    """Return a poll object that becomes ready when a reader closes the pipe at standard output."""
    reader = select.poll()
    if stat.S_ISFIFO(os.fstat(_STDOUT).st_mode):
        reader.register(_STDOUT, 0)
    return reader


def rejected(numbers: Mapping[str, int]) -> str:
    """Return the end of a summary line for people: the numbers of rejected log lines, by kind.

    For example, ``{"malformed": 2}`` becomes ``, 2 malformed``. Without rejected lines, the
    text is empty.
    """
    return "".join(f", {number} {kind}" for kind, number in sorted(numbers.items()))


def write_stderr(data: bytes) -> bool:
    """Write ``data`` to standard error in one write, and return True; drop it if writing fails."""
    sys.stderr.flush()
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()
    return True


def write_stderr_at_once(data: bytes) -> bool:
    """Write ``data`` to standard error if it accepts data now; otherwise drop ``data``.

    Return True if ``data`` was written. With more than ``AT_ONCE_BYTES`` bytes, the write may
    block.
    """
    if not select.select((), (_STDERR,), (), 0)[1]:
        return False
    try:
        os.write(_STDERR, data)
    except OSError:  # closed, or a full disk
        return False
    return True


def _text(raw: io.FileIO, given: TextIO | None) -> io.TextIOWrapper:
    encoding, errors = ("utf-8", "replace") if given is None else (given.encoding, given.errors)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=True
    )
