"""JSON Lines, to a file or to standard output.

A file is appended to with whole lines only: what a full disk or a crash cut short is taken back,
so that a forwarder that follows the file never reads half an event.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

#: Events name who did what: for their owner and a group of forwarders, nobody else.
_MODE: Final = 0o640
_TAIL_BYTES: Final = 1 << 16


class Jsonl:
    """Appends events to a file, or writes them to standard output when ``path`` is None."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor = -1
        self._is_file = False
        self._turn = asyncio.Lock()

    @property
    def _name(self) -> str:
        return "standard output" if self._path is None else str(self._path)

    async def __aenter__(self) -> Self:
        """Open the file; raises DeliveryError when it can't be written."""
        await asyncio.to_thread(self._open)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        if self._path is not None:
            os.close(self._descriptor)

    async def deliver(self, events: Sequence[bytes]) -> None:
        """Append events, one line each."""
        if not events:
            return
        lines = b"\n".join(events) + b"\n"
        async with self._turn:
            # A disk or a pipe may be slow; a cancelled task still lets the write end.
            await asyncio.shield(asyncio.to_thread(self._write, lines))

    def _open(self) -> None:
        if self._path is None:
            self._descriptor = sys.stdout.fileno()
            return
        try:
            # Without O_NONBLOCK a named pipe that nobody reads would wait for ever.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, _MODE)
            os.set_blocking(self._descriptor, True)
            self._is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
            if self._is_file:
                os.ftruncate(self._descriptor, _whole_lines(self._path))
        except OSError as error:
            raise self._failure(error) from error

    def _write(self, lines: bytes) -> None:
        view = memoryview(lines)
        try:
            size = os.fstat(self._descriptor).st_size
            try:
                while view:
                    view = view[os.write(self._descriptor, view) :]
            except OSError:
                if self._is_file:
                    os.ftruncate(self._descriptor, size)
                raise
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> DeliveryError:
        return DeliveryError(f"{self._name} can't be written: {error.strerror}")


def _whole_lines(path: Path) -> int:
    """The size of a file in bytes up to the end of its last whole line."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _TAIL_BYTES)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
