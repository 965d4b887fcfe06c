"""Standard streams as whoever started us left them: closed, full, or with nobody at the far end.

A failure of standard output is told, since what is lost there is what was asked for; one of
standard error is not, since there is nowhere to tell it: the exit code stays the right one.
"""

from __future__ import annotations

import io
import os
import re
import select
import sys
from typing import TYPE_CHECKING, Final, TextIO

from ocsf_nft.errors import DeliveryError
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STDOUT: Final = 1
_STDERR: Final = 2

#: What a pipe with room for anything takes whole.
AT_ONCE_BYTES: Final = select.PIPE_BUF


class _Stdout(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        """Write; raises DeliveryError, or SystemExit when the reader has seen enough."""
        try:
            return self._write_some(data)
        except OSError as error:
            # What is still buffered has nowhere to go: the interpreter's flush at exit must not
            # fail on it again.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, _STDOUT)
            os.close(null)
            if isinstance(error, BrokenPipeError):
                raise SystemExit(0) from None
            raise DeliveryError(f"standard output can't be written: {error.strerror}") from error

    def _write_some(self, data: ReadableBuffer) -> int:
        while (written := super().write(data)) is None:
            # A full pipe that whoever gave us it made non-blocking, for themselves too.
            select.select((), (self,), ())
        return written


class _Stderr(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        """Write, or drop what can't be written."""
        size = memoryview(data).nbytes
        try:
            return super().write(data) or size  # None: a pipe that may not be waited for is full
        except OSError:
            return size


def prepare() -> None:
    """Make the three standard streams safe to use; call it before any file is opened.

    A closed descriptor is taken by the null device, so that the next file or socket to be opened
    does not get its number and with it what is printed. A closed standard output still fails to
    be written.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the lowest that is free, hence the one that open returns
            os.open(os.devnull, os.O_RDONLY if number < _STDERR else os.O_WRONLY)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it lives as long as the process
    sys.stdout = _text(_Stdout(_STDOUT, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Stderr(_STDERR, "w", closefd=False), sys.stderr)


def write(data: bytes) -> None:
    """Write to standard output, now; raises DeliveryError when it can't be written.

    Ends the program with exit code 0 when the reader of a pipe has gone.
    """
    sys.stdout.flush()
    # Not through the buffer: an interrupt after the write and before the buffer knows of it would
    # have the flush at exit write the same again.
    stream = getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]


def say(text: str) -> None:
    """Tell people, on standard error; what a name or a line holds can't steer their terminal."""
    shown = re.sub(r"[^\n\t]+", lambda part: visible(part[0]), text)
    print(shown, file=sys.stderr)  # noqa: T201 - here, and nowhere else


def write_stderr_at_once(data: bytes) -> bool:
    """Write to standard error where that needs no waiting; tells whether it was written.

    Of more than ``AT_ONCE_BYTES`` the end may have to wait.
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
