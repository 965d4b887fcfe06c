from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.delivery.sinks import stdout
from ocsf_nft.delivery.sinks.line_writer import write_lines
from ocsf_nft.delivery.sinks.stdout import Stdout
from ocsf_nft.errors import ClosedError, DeliveryError
from tests.delivery.sinks.batches import messages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class InheritedStdout:
    """Standard output that the parent process has opened."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch

    def is_descriptor(self, descriptor: int) -> None:
        # Not in sys itself: pytest replaces sys.stdout before each phase of a test.
        stream = SimpleNamespace(fileno=lambda: descriptor)
        self._patch.setattr(stdout, "sys", SimpleNamespace(stdout=stream))


class Pipe:
    """A pipe as standard output, and its reader."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def fill(self) -> None:
        os.set_blocking(self.writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self.writer, b"\0" * 4096)
        os.set_blocking(self.writer, True)

    def read_until(self, end: bytes) -> bytes:
        found = b""
        while not found.endswith(end):
            found += os.read(self.reader, 1 << 20)
        return found.lstrip(b"\0")


@pytest.fixture
def inherited(monkeypatch: pytest.MonkeyPatch) -> InheritedStdout:
    return InheritedStdout(monkeypatch)


@pytest.fixture
def pipe(inherited: InheritedStdout) -> Iterator[Pipe]:
    pipe = Pipe()
    inherited.is_descriptor(pipe.writer)
    yield pipe
    os.close(pipe.writer)
    os.close(pipe.reader)


async def test_events_are_written_one_line_each(pipe: Pipe) -> None:
    async with Stdout() as sink:
        await sink.deliver(messages(b'{"a":1}', b'{"b":2}'))
        await sink.deliver(messages(b'{"c":3}'))
    assert os.read(pipe.reader, 100) == b'{"a":1}\n{"b":2}\n{"c":3}\n'


async def test_first_line_after_a_crash_is_not_joined_to_the_rest_of_a_line(pipe: Pipe) -> None:
    os.write(pipe.writer, b'{"cut": ')
    sink = Stdout()
    sink.note_crash()
    async with sink:
        for number in range(2):
            await sink.deliver(messages(b'{"a":%d}' % number))
    assert os.read(pipe.reader, 100) == b'{"cut": \n{"a":0}\n{"a":1}\n'


async def test_stdout_stays_open_and_the_sink_can_be_opened_again(pipe: Pipe) -> None:
    sink = Stdout()
    for number in range(3):
        async with sink:
            await sink.deliver(messages(b"%d" % number))
    assert os.read(pipe.reader, 100) == b"0\n1\n2\n"


async def test_reader_that_closes_the_pipe_causes_closed_error(inherited: InheritedStdout) -> None:
    reader, writer = os.pipe()
    inherited.is_descriptor(writer)
    os.close(reader)
    try:
        async with Stdout() as sink:
            with pytest.raises(ClosedError, match="its reader has closed it"):
                await sink.deliver(messages(b"{}"))
    finally:
        os.close(writer)


async def test_slow_reader_does_not_block_the_event_loop(pipe: Pipe) -> None:
    pipe.fill()
    async with Stdout() as sink:
        delivery = asyncio.create_task(sink.deliver(messages(b"A" * 200_000, b"B")))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not delivery.done()
        found = await asyncio.to_thread(pipe.read_until, b"B\n")
        await delivery
    assert found == b"A" * 200_000 + b"\nB\n"


async def test_a_non_blocking_pipe_is_waited_for_too(pipe: Pipe) -> None:
    pipe.fill()
    os.set_blocking(pipe.writer, False)
    async with Stdout() as sink:
        delivery = asyncio.create_task(sink.deliver(messages(b"A" * 200_000)))
        found = await asyncio.to_thread(pipe.read_until, b"\n")
        await delivery
    assert found == b"A" * 200_000 + b"\n"


async def test_cancelled_delivery_is_written_completely_before_the_next_one(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.fill()
    sink = Stdout()
    has_begun = threading.Event()

    def write(descriptor: int, lines: bytes) -> None:
        has_begun.set()
        write_lines(descriptor, lines)

    monkeypatch.setattr(stdout, "write_lines", write)
    async with sink:
        delivery = asyncio.create_task(sink.deliver(messages(b"A" * 200_000)))
        assert await asyncio.to_thread(has_begun.wait, 60)
        delivery.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivery
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1), sink:
            pytest.fail("the earlier write has not ended")
    reading = asyncio.create_task(asyncio.to_thread(pipe.read_until, b"B\n"))
    async with sink:
        await sink.deliver(messages(b"B"))
    assert await reading == b"A" * 200_000 + b"\nB\n"


@pytest.mark.parametrize("append", [True, False])
async def test_truncated_file_gets_no_hole(
    tmp_path: Path, inherited: InheritedStdout, *, append: bool
) -> None:
    path = tmp_path / "out"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else 0), 0o600)
    inherited.is_descriptor(descriptor)
    try:
        async with Stdout() as sink:
            await sink.deliver(messages(b"a"))
            os.truncate(path, 0)
            await sink.deliver(messages(b"b"))
    finally:
        os.close(descriptor)
    assert path.read_bytes() == b"b\n"


@pytest.mark.kernel
@pytest.mark.parametrize("append", [True, False])
async def test_a_full_disk_leaves_no_half_line(
    small_disk: Path, inherited: InheritedStdout, *, append: bool
) -> None:
    path = small_disk / "out"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else 0), 0o600)
    inherited.is_descriptor(descriptor)
    try:
        async with Stdout() as sink:
            await sink.deliver(messages(b"x" * 3000))
            with pytest.raises(DeliveryError, match="No space left on device") as raised:
                await sink.deliver(messages(b"y" * 3000) * 500)
            assert not isinstance(raised.value, ClosedError)
            assert path.read_bytes() == b"x" * 3000 + b"\n"
            await sink.deliver(messages(b"z"))
            assert path.read_bytes() == b"x" * 3000 + b"\nz\n"
    finally:
        os.close(descriptor)
