"""JSON Lines, to a file or to standard output.

A file is appended to with whole lines only: what a full disk or a crash cut short is taken back,
so that a forwarder that follows the file never reads half an event. A file that was renamed
or removed (logrotate) is left to whoever did so, and a new one of the name is begun.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

#: Events name who did what: for their owner and a group of forwarders, nobody else.
_MODE: Final = 0o640
_DIRECTORY_MODE: Final = 0o750
_TAIL_BYTES: Final = 1 << 16


class Jsonl:
    """Appends events to a file, or writes them to standard output when ``path`` is None.

    Can be entered once. What is left by a failure or a cancellation is not waited for, since a
    pipe that nobody reads would never let go: a batch that is being written is still written to
    its end, one that is waiting for it is not begun, and then the file is closed.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor = -1
        self._is_file = False
        # One thread of its own has the descriptor: nothing is written between the parts of a
        # batch, nothing closes under a write, and no other slow work stands before it.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="jsonl")

    @property
    def _name(self) -> str:
        return "standard output" if self._path is None else str(self._path)

    async def __aenter__(self) -> Self:
        """Open the file, and make its directory; raises DeliveryError when it can't be written."""
        try:
            await self._in_turn(self._open)
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file; raises DeliveryError when the system says only now what it lost."""
        try:
            if kind is None:
                await self._in_turn(self._close)
        finally:
            self._leave()

    async def deliver(self, events: Sequence[bytes]) -> None:
        """Append events, one line each."""
        if not events:
            return
        lines = b"\n".join(events) + b"\n"
        await self._in_turn(lambda: self._write(lines))

    async def _in_turn(self, work: Callable[[], None]) -> None:
        # Not shielded: a thread that has begun can't be stopped, and what has not must not be.
        await asyncio.get_running_loop().run_in_executor(self._writer, work)

    def _leave(self) -> None:
        """Close once what is being written has been, without waiting for it."""
        self._writer.submit(self._close)
        self._writer.shutdown(wait=False)

    def _open(self) -> None:
        if self._path is None:
            self._descriptor = sys.stdout.fileno()
            return
        try:
            self._descriptor = _opened(self._path)
            self._is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        except OSError as error:
            raise self._failure(error) from error

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if self._path is None or descriptor < 0:
            return
        try:
            os.close(descriptor)
        except OSError as error:
            raise self._failure(error) from error

    def _follow(self, path: Path) -> None:
        """Leave a file that no longer has its name; raises OSError."""
        try:
            if os.path.samestat(path.stat(), os.fstat(self._descriptor)):
                return
        except FileNotFoundError:
            pass  # begun anew below
        left, self._descriptor = self._descriptor, _opened(path)
        os.close(left)
        self._is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)

    def _write(self, lines: bytes) -> None:
        view = memoryview(lines)
        try:
            if self._is_file and self._path is not None:
                self._follow(self._path)
            size = os.fstat(self._descriptor).st_size
            try:
                while view:
                    view = view[_write_some(self._descriptor, view) :]
            except OSError:
                if self._is_file:
                    os.ftruncate(self._descriptor, size)
                raise
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> DeliveryError:
        return DeliveryError(f"{self._name} can't be written: {error.strerror}")


def _opened(path: Path) -> int:
    """A descriptor that appends whole lines; raises OSError."""
    # Without O_NONBLOCK a named pipe that nobody reads would wait for ever.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, _MODE)
    except FileNotFoundError:
        # Its directory alone: one further up that is not there is rather a mistake in the path.
        path.parent.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
        descriptor = os.open(path, flags, _MODE)
    try:
        os.set_blocking(descriptor, True)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.ftruncate(descriptor, _whole_lines(path))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _write_some(descriptor: int, data: memoryview) -> int:
    """The bytes that were written, one or more; raises OSError."""
    while True:
        try:
            return os.write(descriptor, data)
        except BlockingIOError:
            # Standard output that whoever gave us it made non-blocking, for themselves too.
            select.select((), (descriptor,), ())


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
