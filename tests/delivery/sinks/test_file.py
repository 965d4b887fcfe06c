from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.delivery.sinks.file import File
from ocsf_nft.errors import DeliveryError
from tests.delivery.sinks.batches import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


async def test_events_are_appended_one_line_each(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"old":1}\n')
    async with File(path=path) as sink:
        await sink.deliver(messages(b'{"a":1}', b'{"b":2}'))
        await sink.deliver(messages(b'{"c":3}'))
    assert path.read_bytes() == b'{"old":1}\n{"a":1}\n{"b":2}\n{"c":3}\n'


async def test_created_file_is_accessible_to_its_owner_and_group_only(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with File(path=path):
        assert path.stat().st_mode & 0o777 & ~0o640 == 0


@pytest.mark.parametrize("complete", [b"", b'{"whole":1}\n', b'{"x":"' + b"y" * 100_000 + b'"}\n'])
@pytest.mark.parametrize("torn", [b"{", b'{"tor', b"z" * 200_000])
async def test_file_sink_removes_the_torn_line_of_a_crash(
    tmp_path: Path, complete: bytes, torn: bytes
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(complete + torn)
    async with File(path=path) as sink:
        await sink.deliver(messages(b"{}"))
    assert path.read_bytes() == complete + b"{}\n"


async def test_the_directory_of_the_file_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "events.jsonl"
    async with File(path=path) as sink:
        await sink.deliver(messages(b"{}"))
    assert path.read_bytes() == b"{}\n"
    assert path.parent.stat().st_mode & 0o777 & ~0o750 == 0


@pytest.mark.parametrize(
    ("name", "cause"),
    [("file/events.jsonl", "Not a directory"), ("a/b/events.jsonl", "No such file or directory")],
)
async def test_error_for_a_directory_that_can_not_be_made_is_one_sentence(
    tmp_path: Path, name: str, cause: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeliveryError, match=cause):
        await File(path=tmp_path / name).open()


async def test_file_sink_creates_a_new_file_after_external_rotation(tmp_path: Path) -> None:
    path, rotated = tmp_path / "new" / "events.jsonl", tmp_path / "events.jsonl.1"
    async with File(path=path) as sink:
        await sink.deliver(messages(b'{"a":1}'))
        path.rename(rotated)
        await sink.deliver(messages(b'{"b":2}'))
        assert path.read_bytes() == b'{"b":2}\n'
        path.unlink()
        path.write_bytes(b'{"other":0}\n')
        await sink.deliver(messages(b'{"c":3}'))
        assert path.read_bytes() == b'{"other":0}\n{"c":3}\n'
        path.unlink()
        path.parent.rmdir()
        await sink.deliver(messages(b'{"d":4}'))
        path.unlink()
        path.parent.rmdir()
        path.parent.touch()
        with pytest.raises(DeliveryError, match="Not a directory"):
            await sink.deliver(messages(b'{"e":5}'))
        path.parent.unlink()
        await sink.deliver(messages(b'{"f":6}'))
    assert path.read_bytes() == b'{"f":6}\n'
    assert rotated.read_bytes() == b'{"a":1}\n'


async def test_file_sink_continues_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with File(path=path) as sink:
        await sink.deliver(messages(b'{"a":1}'))
        os.truncate(path, 0)
        await sink.deliver(messages(b'{"b":2}'))
    assert path.read_bytes() == b'{"b":2}\n'


async def test_file_sink_writes_a_batch_again_after_a_concurrent_truncation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    sync = os.fdatasync
    async with File(path=path) as sink:
        await sink.deliver(messages(b'{"a":1}'))

        def copytruncate(descriptor: int) -> None:
            sync(descriptor)
            os.truncate(path, 0)

        monkeypatch.setattr(os, "fdatasync", copytruncate)
        with pytest.raises(DeliveryError, match="another process truncated it during the write"):
            await sink.deliver(messages(b'{"b":2}'))
        monkeypatch.setattr(os, "fdatasync", sync)
        await sink.deliver(messages(b'{"b":2}'))
    assert path.read_bytes() == b'{"b":2}\n'


@pytest.mark.parametrize("is_synced", [True, False])
async def test_file_sink_syncs_delivered_events_unless_disabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_synced: bool
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda number: sizes.append(os.fstat(number).st_size))
    async with File(path=tmp_path / "events.jsonl", sync=is_synced) as sink:
        await sink.deliver(messages(b"A"))
        await sink.deliver(messages(b"B"))
    assert sizes == ([2, 4] if is_synced else [])


async def test_file_sink_removes_lines_that_could_not_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "events.jsonl"
    path.write_bytes(b"A\n")
    async with File(path=path) as sink:
        monkeypatch.setattr(os, "fdatasync", broken)
        with pytest.raises(DeliveryError, match="Input/output error"):
            await sink.deliver(messages(b"B"))
    assert path.read_bytes() == b"A\n"


async def test_error_for_a_reader_that_closed_a_named_pipe_is_one_sentence(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    async with File(path=fifo) as sink:
        await sink.deliver(messages(b"{}"))
        assert os.read(reader, 100) == b"{}\n"
        os.close(reader)
        with pytest.raises(DeliveryError, match="Broken pipe"):
            await sink.deliver(messages(b"{}"))


async def test_slow_reader_of_a_named_pipe_gets_all_events(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        async with File(path=fifo) as sink:
            delivery = asyncio.create_task(sink.deliver(messages(b"A" * 200_000)))
            found = b""
            while len(found) <= 200_000:
                await asyncio.sleep(0.001)
                with contextlib.suppress(BlockingIOError):
                    found += os.read(reader, 1 << 20)
            await delivery
    finally:
        os.close(reader)
    assert found == b"A" * 200_000 + b"\n"


async def test_file_sink_does_not_wait_for_a_reader_of_a_named_pipe(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(DeliveryError):
        await asyncio.wait_for(File(path=fifo).open(), 60)


@pytest.mark.kernel
async def test_error_for_a_full_disk_is_one_sentence_and_no_torn_line_is_left(
    small_disk: Path,
) -> None:
    path = small_disk / "events.jsonl"
    async with File(path=path) as sink:
        await sink.deliver(messages(b"x" * 3000) * 10)
        with pytest.raises(DeliveryError, match="No space left on device"):
            await sink.deliver(messages(b"y" * 3000) * 500)
        assert path.read_bytes() == (b"x" * 3000 + b"\n") * 10


class SlowDisk:
    """Replacement of os.write that writes five bytes and then waits for ``go_on``."""

    def __init__(self, write: Callable[[int, memoryview], int]) -> None:
        self._write = write
        self._started = threading.Event()
        self.go_on = threading.Event()

    def write(self, descriptor: int, data: memoryview) -> int:
        written = self._write(descriptor, data[:5])
        self._started.set()
        assert self.go_on.wait(120)
        return written

    async def started(self) -> None:
        assert await asyncio.to_thread(self._started.wait, 60)

    async def cancel_delivery(self, sink: File, line: bytes) -> None:
        """Cancel a delivery during its write; raises CancelledError as the delivery does."""
        delivery = asyncio.create_task(sink.deliver(messages(line)))
        await self.started()
        delivery.cancel()
        await delivery


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    disk = SlowDisk(os.write)
    monkeypatch.setattr(os, "write", disk.write)
    yield disk
    disk.go_on.set()


async def test_cancelled_delivery_returns_at_once_and_is_not_mixed_with_the_next(
    tmp_path: Path, slow_disk: SlowDisk
) -> None:
    path = tmp_path / "events.jsonl"
    async with File(path=path) as sink:
        started = asyncio.create_task(sink.deliver(messages(b"A" * 10)))
        await slow_disk.started()
        waiting = asyncio.create_task(sink.deliver(messages(b"B" * 10)))
        await asyncio.sleep(0)
        for task in (started, waiting):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 60)
        other = asyncio.create_task(sink.deliver(messages(b"C" * 10)))
        await asyncio.sleep(0.1)
        assert path.read_bytes() == b"A" * 5
        slow_disk.go_on.set()
        await other
    assert path.read_bytes() == b"A" * 10 + b"\n" + b"C" * 10 + b"\n"


async def test_file_is_closed_after_a_running_write(tmp_path: Path, slow_disk: SlowDisk) -> None:
    path, other_file = tmp_path / "events.jsonl", tmp_path / "other_file"
    sink = File(path=path)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(sink)
        delivery = asyncio.create_task(sink.deliver(messages(b"A" * 10)))
        await slow_disk.started()
        delivery.cancel()
        closing = asyncio.create_task(stack.aclose())
        await asyncio.sleep(0.1)
        with other_file.open("wb"):  # gets the lowest free descriptor number
            slow_disk.go_on.set()
            await closing
    assert path.read_bytes() == b"A" * 10 + b"\n"
    assert other_file.read_bytes() == b""


async def test_file_sink_does_not_wait_for_a_write_after_a_failure(
    tmp_path: Path, slow_disk: SlowDisk
) -> None:
    path, other_file = tmp_path / "events.jsonl", tmp_path / "other_file"
    sink = File(path=path)
    with pytest.raises(asyncio.CancelledError):
        async with sink:
            await slow_disk.cancel_delivery(sink, b"A" * 10)
    with other_file.open("wb"):
        slow_disk.go_on.set()
        async with sink:
            pass
    assert path.read_bytes() == b"A" * 10 + b"\n"
    assert other_file.read_bytes() == b""


async def test_file_sink_that_is_opened_again_waits_for_the_running_write(
    tmp_path: Path, slow_disk: SlowDisk
) -> None:
    path = tmp_path / "events.jsonl"
    sink = File(path=path)
    with pytest.raises(asyncio.CancelledError):
        async with sink:
            await slow_disk.cancel_delivery(sink, b"A" * 10)
    threads = threading.active_count()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), sink:
                pytest.fail("the earlier write has not ended")
    assert threading.active_count() == threads, "a waiting sink has no thread"
    slow_disk.go_on.set()
    async with sink:
        await sink.deliver(messages(b"B" * 10))
    assert path.read_bytes() == b"A" * 10 + b"\n" + b"B" * 10 + b"\n"


async def test_second_sink_of_a_file_waits_for_the_running_write(
    tmp_path: Path, slow_disk: SlowDisk
) -> None:
    """Two sinks exist after a reload while the disk hangs."""
    path = tmp_path / "events.jsonl"
    with pytest.raises(asyncio.CancelledError):
        async with File(path=path) as sink:
            await slow_disk.cancel_delivery(sink, b"A" * 10)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1), File(path=path):
            pytest.fail("the earlier write has not ended")
    slow_disk.go_on.set()
    async with File(path=path) as sink:
        await sink.deliver(messages(b"B" * 10))
    assert path.read_bytes() == b"A" * 10 + b"\n" + b"B" * 10 + b"\n"


async def test_file_sink_can_be_opened_repeatedly(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    sink = File(path=path)
    for number in range(3):
        async with sink:
            await sink.deliver(messages(b"%d" % number))
    assert path.read_bytes() == b"0\n1\n2\n"


async def test_delivery_does_not_wait_for_other_threads(tmp_path: Path) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    done = threading.Event()
    work = asyncio.create_task(asyncio.to_thread(done.wait, 120))
    try:
        async with asyncio.timeout(60), File(path=tmp_path / "events.jsonl", sync=False) as sink:
            await sink.deliver(messages(b"{}"))
    finally:
        done.set()
        await work
