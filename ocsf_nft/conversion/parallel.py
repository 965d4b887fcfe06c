"""Conversion of one log file by several processes, with the events in the order of the lines.

The first block of lines is converted by this process, so that the others begin with its templates.
Then each block goes to a process of its own, which has its turn to write the events.
"""

from __future__ import annotations

import mmap
import multiprocessing
import signal
from collections import Counter, deque
from contextlib import ExitStack, suppress
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.conversion import log_file
from ocsf_nft.errors import OcsfNftError, SourceError
from ocsf_nft.record import Reject

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from multiprocessing.connection import Connection
    from types import TracebackType
    from typing import Self

    from ocsf_nft.conversion.converter import Converted
    from ocsf_nft.conversion.log_file import EventOutput, LineConverter
    from ocsf_nft.sources.replay import LineTally

#: Minimum size of a block. A process converts one in some milliseconds.
_BLOCK_BYTES: Final = 1 << 19
#: Maximum size: a block ends at a line end.
_SLOT_BYTES: Final = _BLOCK_BYTES + log_file.LONGEST_REST
#: Start of a journal export entry, whose lines can't be divided.
_ENTRY: Final = b"__CURSOR="
_INDENTED: Final = (b" ", b"\t")


class _Result(NamedTuple):
    """Result of a block, besides its events."""

    lines: int
    records: int
    skipped: int
    rejected: Counter[str]
    unparsed: tuple[Reject, ...]


def convert(
    chunks: Iterable[bytes],
    lines: LineConverter,
    output: EventOutput,
    jobs: int,
) -> Iterator[Converted]:
    """Convert a file, which arrives in chunks, by ``jobs`` processes.

    Those processes write the events, and this function yields only what they have not written:
    events of short files and of journal exports, and rejected lines. Raises what
    ``output.write`` raises, and SourceError if a process ends early.
    """
    blocks = _Blocks(chunks)
    first = blocks.next()
    if first is not None:
        yield from lines.convert(first)
        with _Processes(lines, output) as processes:
            while (block := blocks.next()) is not None:
                yield from processes.convert(block, jobs)
            yield from processes.finish()
    yield from log_file.convert(blocks.rest(), lines)


class _Blocks:
    """Divider of a file into blocks of whole records."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def next(self) -> bytes | None:
        """Return the next block; None if what follows must stay in one piece."""
        data = self._rest
        while True:
            end = _end_of_block(data) if len(data) >= _BLOCK_BYTES else 0
            if end or len(data) > _SLOT_BYTES:
                break
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            data += chunk
        if not end or end > _SLOT_BYTES or _has_entry(data[:end]):
            self._rest = data
            return None
        self._rest = data[end:]
        return data[:end]

    def rest(self) -> Iterator[bytes]:
        """Return what :meth:`next` has not returned."""
        return chain((self._rest,), self._chunks)


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


def _has_entry(block: bytes) -> bool:
    return block.startswith(_ENTRY) or b"\n" + _ENTRY in block


class _Process:
    """Process that converts blocks, and this process's end of the connection to it."""

    def __init__(
        self,
        lines: LineConverter,
        output: EventOutput,
        others: Iterable[_Process],
    ) -> None:
        context = multiprocessing.get_context("fork")
        self._slot = mmap.mmap(-1, _SLOT_BYTES)
        self.connection, end = context.Pipe()
        to_close = (self.connection, *(each.connection for each in others))
        self._process = context.Process(
            target=_work, args=(end, to_close, self._slot, lines, output), daemon=True
        )
        self._process.start()
        end.close()

    def begin(self, block: bytes, numbers: bytes) -> None:
        """Begin the conversion of a block, whose ``numbers`` the counter of lines returned."""
        self._slot[: len(block)] = block
        self.connection.send((len(block), numbers))

    def wait_converted(self) -> None:
        """Wait until the block is converted; raises the error that ended the conversion."""
        self._receive()

    def let_write(self) -> None:
        """Let the process write the events of its block."""
        self.connection.send(None)

    def wait_written(self) -> _Result:
        """Wait until the events are written; raises the error that ended the write."""
        return self._receive()

    def _receive(self) -> _Result:
        try:
            found: _Result | BaseException = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise SourceError(
                f"a process that converts lines has ended with code {self._process.exitcode}: "
                "give --jobs 1 to convert without such processes"
            ) from None
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self._process.terminate()
        self._process.join()
        self._slot.close()


class _Processes:
    """Processes that convert the blocks of one file in turns."""

    def __init__(
        self,
        lines: LineConverter,
        output: EventOutput,
    ) -> None:
        self._lines = lines
        self._output = output
        self._stack = ExitStack()
        self._all: list[_Process] = []
        #: Processes with a block, the oldest block first.
        self._busy: deque[_Process] = deque()

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

    def convert(self, block: bytes, limit: int) -> Iterator[Reject]:
        """Give a block to one of ``limit`` processes; yield rejected lines of earlier blocks."""
        numbers = self._lines.counter.count_lines(block)
        if len(self._all) < limit:
            process = _Process(self._lines, self._output, self._all)
            self._stack.callback(process.close)
            self._all.append(process)
            process.begin(block, numbers)
        else:
            process = self._busy.popleft()
            process.wait_converted()
            process.let_write()
            process.begin(block, numbers)
            yield from self._counted(process.wait_written())
        self._busy.append(process)

    def finish(self) -> Iterator[Reject]:
        """Wait for all blocks; yield their rejected lines."""
        while self._busy:
            process = self._busy.popleft()
            process.wait_converted()
            process.let_write()
            yield from self._counted(process.wait_written())

    def _counted(self, result: _Result) -> Iterator[Reject]:
        tally = self._lines.reader.tally
        tally.lines += result.lines
        tally.records += result.records
        tally.skipped += result.skipped
        tally.rejected += result.rejected
        yield from result.unparsed


def _work(
    connection: Connection,
    to_close: Iterable[Connection],
    slot: mmap.mmap,
    lines: LineConverter,
    output: EventOutput,
) -> None:
    """Convert blocks until the other end of the connection is closed."""
    # The first process ends the others after an interrupt.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for each in to_close:  # else this process would keep the connections of others open
        each.close()
    events = bytearray()
    with suppress(EOFError, ConnectionError):  # the first process has ended
        try:
            while True:
                size, numbers = connection.recv()
                result, end = _converted(slot[:size], numbers, lines, output, events)
                connection.send(None)
                connection.recv()  # its turn
                output.write(memoryview(events)[:end])
                connection.send(result)
        except (OcsfNftError, SystemExit) as error:
            connection.send(error)


def _converted(
    block: bytes,
    numbers: bytes,
    lines: LineConverter,
    output: EventOutput,
    events: bytearray,
) -> tuple[_Result, int]:
    """Convert a block into ``events``; return the result, and the size of the events."""
    tally = lines.reader.tally
    _clear(tally)
    lines.counter.use_counted(numbers)
    unparsed: list[Reject] = []
    end = 0
    for found in lines.convert(block):
        if isinstance(found, Reject):
            unparsed.append(found)
        else:
            formatted = memoryview(output.form(found))
            # The memory of the block before is used again.
            events[end : end + len(formatted)] = formatted
            end += len(formatted)
    rejected = Counter(tally.rejected)
    return _Result(tally.lines, tally.records, tally.skipped, rejected, tuple(unparsed)), end


def _clear(tally: LineTally) -> None:
    tally.lines = tally.records = tally.skipped = 0
    tally.rejected.clear()
