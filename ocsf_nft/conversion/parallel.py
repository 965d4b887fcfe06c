"""Conversion of one log file by several processes, with the events in the order of the lines.

The first block of lines is converted by this process, so that the others begin with its templates.
Then each block goes to a process of its own, which has its turn to write the events.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from collections import deque
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from ocsf_nft.conversion import log_file
from ocsf_nft.errors import OcsfNftError, SourceError
from ocsf_nft.privileges import end_with_parent
from ocsf_nft.record import Reject
from ocsf_nft.sources.replay.source import LineTally
from ocsf_nft.sources.replay.splitter import ENTRY_START

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from multiprocessing.connection import Connection
    from types import TracebackType
    from typing import Self

    from _typeshed import ReadableBuffer

    from ocsf_nft.conversion.converter import Converted
    from ocsf_nft.conversion.log_file import EventOutput, LineConverter

#: Minimum size of a block. A process converts one in some milliseconds.
_BLOCK_BYTES: Final = 1 << 19
#: Maximum size: a block ends at a line end.
_SLOT_BYTES: Final = _BLOCK_BYTES + log_file.LONGEST_REST
#: Longest wait of lines for more lines.
_LONGEST_WAIT_SECONDS: Final = 0.1
#: Maximum size of the numbers of a block's repeated lines: 16 bytes for a line of 4, ``IN=``.
_NUMBERS_BYTES: Final = 4 * _SLOT_BYTES
#: Offset of a block in the shared memory, its size, and the size of the numbers behind it. Both
#: ends of a connection may send at the same time: so a task must always fit into the connection.
_Task: TypeAlias = tuple[int, int, int]
_INDENTED: Final = (b" ", b"\t")


class _Result(NamedTuple):
    """Result of a block, besides its events."""

    tally: LineTally
    unparsed: tuple[Reject, ...]


def convert(
    chunks: Iterable[bytes],
    lines: LineConverter,
    output: EventOutput,
    jobs: int,
) -> Iterator[Converted]:
    """Convert a file, which arrives in chunks, by ``jobs`` processes.

    Those processes write the events of whole blocks. This function yields all other events, and the
    rejected lines. An empty chunk means that no more data is there for now: then all lines until
    there are converted at once, as are lines that have waited for others for a while. Raises what
    ``output.write`` raises, and SourceError if a process ends early.
    """
    waiting = b""
    began = time.monotonic()
    has_templates = False
    with _Processes(lines, output, jobs) as processes:
        for chunk in chunks:
            waiting += chunk
            is_late = not chunk or time.monotonic() > began + _LONGEST_WAIT_SECONDS
            if len(waiting) < _BLOCK_BYTES and not is_late:
                continue
            is_whole = len(waiting) >= _BLOCK_BYTES
            end = _end_of_block(waiting) if is_whole else waiting.rfind(b"\n") + 1
            if len(waiting) - end > log_file.LONGEST_REST:  # for the reader, it is no line
                end = len(waiting)
            block, waiting = waiting[:end], waiting[end:]
            if is_whole and has_templates and _can_be_divided(block, lines):
                yield from processes.convert(block)
            elif block:
                yield from processes.finish()
                yield from lines.convert(block)
                has_templates = True
            began = time.monotonic()  # the conversion itself is no wait for more lines
        yield from processes.finish()
        processes.end()
    yield from lines.finish(waiting)


def _end_of_block(data: bytes) -> int:
    """Return the end of the last record that is complete in ``data``; 0 if there is none.

    An indented line belongs to the line before, as in /dev/kmsg.
    """
    end = len(data)
    while (end := data.rfind(b"\n", 0, end)) >= 0:
        after = data[end + 1 : end + 2]
        if after and after not in _INDENTED:
            return end + 1
    return 0


def _can_be_divided(block: bytes, lines: LineConverter) -> bool:
    """Return True if a process can convert a block without the lines before and after it.

    It can't if the block has a journal export entry, because a block may end inside of an entry.
    """
    if not block.endswith(b"\n") or len(block) > _SLOT_BYTES or lines.reader.is_inside:
        return False
    return not (block.startswith((ENTRY_START, *_INDENTED)) or b"\n" + ENTRY_START in block)


class _Process:
    """Process that converts blocks, and this process's end of the connection to it."""

    def __init__(
        self,
        lines: LineConverter,
        output: EventOutput,
        others: Iterable[_Process],
    ) -> None:
        import multiprocessing  # noqa: PLC0415 - slow, and a short file needs no other process

        context = multiprocessing.get_context("fork")
        #: Memory for two blocks, and the offset of the last one.
        self._slots = mmap.mmap(-1, 2 * (_SLOT_BYTES + _NUMBERS_BYTES))
        self._at = 0
        self.connection, end = context.Pipe()
        to_close = (self.connection, *(each.connection for each in others))
        self._process = context.Process(
            target=_work,
            args=(os.getpid(), end, to_close, self._slots, lines, output),
            daemon=True,
        )
        self._process.start()
        end.close()

    def begin(self, block: bytes, numbers: bytes) -> None:
        """Begin the conversion of a block, whose ``numbers`` the counter of lines returned.

        A second block may wait until the first one is written.
        """
        self._at = _SLOT_BYTES + _NUMBERS_BYTES - self._at
        end = self._at + len(block)
        self._slots[self._at : end] = block
        self._slots[end : end + len(numbers)] = numbers
        self._send((self._at, len(block), len(numbers)))

    def let_write(self) -> None:
        """Let the process write the events of its block, also those that it makes from now on."""
        self._send(None)

    def wait_written(self) -> _Result:
        """Wait until the events are written; raises the error that ended the conversion."""
        return self._receive()

    def _send(self, task: _Task | None) -> None:
        try:
            self.connection.send(task)
        except ConnectionError:
            while True:  # until the error that has ended the process
                self._receive()

    def _receive(self) -> _Result:
        try:
            found: _Result | BaseException = self.connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise SourceError(
                "the events are incomplete, because a process that converts lines has ended with "
                f"code {self._process.exitcode}: give --jobs 1 to convert without such processes"
            ) from None
        if isinstance(found, BaseException):
            raise found
        return found

    def begin_end(self) -> None:
        """Let the process write the events that its output has collected."""
        self._send(None)

    def wait_ended(self) -> None:
        """Wait until that is written; raises the error that ended the write."""
        self._receive()

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self._process.terminate()
        self._process.join()
        self._slots.close()


class _Processes:
    """Processes that convert the blocks of one file in turns."""

    def __init__(
        self,
        lines: LineConverter,
        output: EventOutput,
        limit: int,
    ) -> None:
        self._lines = lines
        self._limit = limit
        self._output = output
        self._stack = ExitStack()
        self._started = 0
        #: Processes with a block, the oldest block first, which may be written; and those without.
        self._busy: deque[_Process] = deque()
        self._idle: list[_Process] = []

    def __enter__(self) -> Self:
        """Return the object; processes start with the first blocks."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End all processes."""
        self._stack.close()

    def convert(self, block: bytes) -> Iterator[Reject]:
        """Give a block to a process; yield rejected lines of earlier blocks."""
        numbers = self._lines.counter.count_lines(block)
        if self._idle or self._started < self._limit:
            process = self._idle.pop() if self._idle else self._start()
            process.begin(block, numbers)
            self._busy.append(process)
            if len(self._busy) == 1:
                process.let_write()
        else:
            self._busy[0].begin(block, numbers)  # when it has written its present block
            process, result = self._wait_written()
            self._busy.append(process)
            self._busy[0].let_write()
            yield from self._counted(result)

    def finish(self) -> Iterator[Reject]:
        """Wait until all blocks are converted; yield their rejected lines."""
        while self._busy:
            process, result = self._wait_written()
            self._idle.append(process)
            if self._busy:
                self._busy[0].let_write()
            yield from self._counted(result)

    def _wait_written(self) -> tuple[_Process, _Result]:
        """Wait until the oldest block is written; return its process, and its result."""
        process = self._busy[0]
        result = process.wait_written()
        return self._busy.popleft(), result

    def end(self) -> None:
        """Wait until all processes, which have no block, have ended their output."""
        for process in self._idle:
            process.begin_end()
        for process in self._idle:
            process.wait_ended()

    def _start(self) -> _Process:
        self._output.finish()  # the process must not inherit collected events
        # The process must close the connections of the others.
        process = _Process(self._lines, self._output, (*self._busy, *self._idle))
        self._stack.callback(process.close)
        self._started += 1
        return process

    def _counted(self, result: _Result) -> Iterator[Reject]:
        self._lines.reader.tally.add(result.tally)
        yield from result.unparsed


def _work(  # noqa: PLR0913, PLR0917 - what a process inherits
    parent: int,
    connection: Connection,
    to_close: Iterable[Connection],
    slots: mmap.mmap,
    lines: LineConverter,
    output: EventOutput,
) -> None:
    """Convert blocks until the other end of the connection is closed."""
    # The first process ends the others after an interrupt.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        end_with_parent(parent)
    for each in to_close:  # else this process would keep the connections of others open
        each.close()
    with suppress(EOFError, ConnectionError):  # the first process has ended
        try:
            while (task := connection.recv()) is not None:
                at, size, numbers_size = task
                end = at + size
                lines.counter.use_counted(slots[end : end + numbers_size])
                connection.send(_convert_block(slots[at:end], lines, output, connection))
            output.finish()
            connection.send(None)
        except (OcsfNftError, SystemExit) as error:
            connection.send(error)


def _convert_block(
    block: bytes, lines: LineConverter, output: EventOutput, connection: Connection
) -> _Result:
    """Convert a block, and write its events from the turn on, which comes by the connection."""
    lines.reader.tally = LineTally()
    unparsed: list[Reject] = []
    #: Events that wait for the turn.
    waiting: list[ReadableBuffer] = []
    has_turn = False
    lines.keep_events(is_on=True)
    for found in lines.convert(block):
        if isinstance(found, Reject):
            unparsed.append(found)
            continue
        waiting.append(output.form(found))
        if has_turn or connection.poll():
            if not has_turn:
                connection.recv()
                has_turn = True
            _write(waiting, output)
            lines.keep_events(is_on=False)
    if not has_turn:
        connection.recv()
    _write(waiting, output)
    return _Result(lines.reader.tally, tuple(unparsed))


def _write(events: list[ReadableBuffer], output: EventOutput) -> None:
    for each in events:
        output.write(each)
    events.clear()
