"""Parquet sink with a directory."""

from __future__ import annotations

import asyncio
import os
import random
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import duckdb
import pyarrow.parquet as pq
import pytest

from ocsf_nft.config.sinks.columns import columns
from ocsf_nft.delivery.object_storage import Directory
from ocsf_nft.delivery.parquet_files import Maker
from ocsf_nft.delivery.parquet_layout import Layout
from ocsf_nft.delivery.sinks.base import DELIVERED, BatchResult, Message, Refusal
from ocsf_nft.delivery.sinks.parquet import Parquet
from ocsf_nft.errors import DeliveryError
from ocsf_nft.ocsf.versions import STORED
from tests.conformance.corpus import TIME_NS
from tests.delivery import read_back
from tests.delivery import sample_events as samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ocsf_nft.delivery.parquet_files import File

PARTITION: Final = "region=eu-west-1/accountId=external"
TIME_MS: Final = TIME_NS // 1_000_000
OTHER_USER_ID: Final = 65534


_LAYOUT: Final = Layout("ocsf-nft", "1.8.0", "eu-west-1", "external")


def parquet(path: Path, layout: Layout = _LAYOUT) -> Parquet:
    return Parquet(storage=Directory(path=path), columns=columns(STORED), layout=layout)


async def deliver(path: Path, messages: list[Message]) -> BatchResult:
    async with parquet(path) as sink:
        return await sink.deliver(messages)


def counts(path: Path) -> list[int]:
    contents = [file.read_bytes() for file in read_back.files(path) if file.suffix == ".parquet"]
    return [
        event["count"] for event in read_back.events(contents, columns(STORED)[samples.REFUSED])
    ]


def big(count: int) -> list[Message]:
    """Return events that do not compress well."""
    noise = random.Random(1)
    return [
        Message(each.uid, each.line.replace(b'"raw_data":"', b'"raw_data":"%s' % text, 1))
        for each in samples.packets(count)
        for text in (noise.randbytes(5000).hex().encode(),)
    ]


async def test_batch_becomes_one_file_for_each_class_and_day_at_the_security_lake_path(
    tmp_path: Path,
) -> None:
    finding = next(each for each in samples.messages(STORED) if b'"class_uid":2004' in each.line)
    batch = [*samples.packets(3, since_ms=TIME_MS + 86_398_000), finding]
    assert await deliver(tmp_path / "lake", batch) == DELIVERED
    assert [path.parent.relative_to(tmp_path / "lake") for path in read_back.files(tmp_path)] == [
        Path(f"ext/ocsf-nft-2004/1.8.0/{PARTITION}/eventDay=20260101"),
        Path(f"ext/ocsf-nft-4001/1.8.0/{PARTITION}/eventDay=20260101"),
        Path(f"ext/ocsf-nft-4001/1.8.0/{PARTITION}/eventDay=20260102"),
    ]
    assert counts(tmp_path / "lake" / "ext" / "ocsf-nft-4001") == [0, 1, 2]


async def test_path_has_no_part_for_a_missing_source_version(tmp_path: Path) -> None:
    sink = parquet(tmp_path, Layout("s", "", "r", "123456789012"))
    async with sink:
        await sink.deliver(samples.packets(1))
    (path,) = read_back.files(tmp_path)
    folder = "ext/s-4001/region=r/accountId=123456789012/eventDay=20260101"
    assert str(path.parent) == f"{tmp_path}/{folder}"


async def test_duckdb_and_arrow_read_the_partitions(tmp_path: Path) -> None:
    async with parquet(tmp_path) as sink:
        for day in range(3):
            await sink.deliver(samples.packets(10, since_ms=TIME_MS + day * 86_400_000))
    table = f"{tmp_path}/ext/ocsf-nft-4001"
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT region, accountId, eventDay::INTEGER AS day, count(*), sum(count) "
            "FROM read_parquet($1, hive_partitioning = true) "
            "GROUP BY ALL ORDER BY day",
            [f"{table}/**/*.parquet"],
        ).fetchall()
    assert rows == [
        ("eu-west-1", "external", day, 10, 45) for day in (20260101, 20260102, 20260103)
    ]
    found = pq.read_table(table, partitioning="hive", filters=[("eventDay", "=", 20260102)])
    assert found.num_rows == 10
    assert {"region", "accountId", "eventDay"} < set(found.column_names)


async def test_repeated_batch_is_stored_once(tmp_path: Path) -> None:
    batch = list(samples.messages(STORED))
    assert Parquet.repeats_batches
    async with parquet(tmp_path) as sink:
        await sink.deliver(batch)
        first = {path: path.read_bytes() for path in read_back.files(tmp_path)}
        await sink.deliver(batch)
    await deliver(tmp_path, batch)
    assert {path: path.read_bytes() for path in read_back.files(tmp_path)} == first


async def test_two_sinks_may_share_a_directory(tmp_path: Path) -> None:
    other = _LAYOUT._replace(source="other")
    async with asyncio.timeout(60), parquet(tmp_path) as one, parquet(tmp_path, other) as two:
        assert await one.deliver(samples.packets(2)) == DELIVERED
        assert await two.deliver(samples.packets(3)) == DELIVERED
    assert counts(tmp_path / "ext/ocsf-nft-4001") == [0, 1]
    assert counts(tmp_path / "ext/other-4001") == [0, 1, 2]


async def test_parquet_sink_refuses_an_invalid_event_and_delivers_the_others(
    tmp_path: Path,
) -> None:
    bad = Message("bad", b"{")
    outcome = await deliver(tmp_path, [*samples.packets(2), bad])
    assert [refusal.message for refusal in outcome.refused] == [bad]
    assert counts(tmp_path) == [0, 1]


async def test_files_are_accessible_to_their_owner_and_group_only(tmp_path: Path) -> None:
    await deliver(tmp_path / "lake", samples.packets(1))
    for path in (tmp_path / "lake", *(tmp_path / "lake").rglob("*")):
        allowed = 0o750 if path.is_dir() else 0o640
        assert stat.S_IMODE(path.stat().st_mode) & ~allowed == 0


@pytest.mark.parametrize(
    ("name", "cause"),
    [("file", "Not a directory"), ("a/b", "No such file or directory")],
)
async def test_error_for_a_directory_that_can_not_be_made_is_one_sentence(
    tmp_path: Path, name: str, cause: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeliveryError, match=f"{tmp_path}/{name} can't be written: {cause}"):
        await parquet(tmp_path / name).open()


@pytest.mark.kernel
async def test_error_for_a_directory_without_write_permission_is_one_sentence(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "lake"
    folder.mkdir(mode=0o755)
    os.seteuid(OTHER_USER_ID)
    try:
        with pytest.raises(DeliveryError, match="can't be written: Permission denied"):
            await parquet(folder).open()
    finally:
        os.seteuid(0)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", disk], check=True)


@pytest.mark.kernel
async def test_error_for_a_read_only_disk_is_one_sentence(disk: Path) -> None:
    remount(disk, "ro")
    with pytest.raises(DeliveryError, match="can't be written: Read-only file system"):
        await parquet(disk).open()


@pytest.mark.kernel
async def test_full_disk_has_no_file_until_there_is_space_for_the_batch(
    disk: Path,
) -> None:
    batch = big(100)
    sink = parquet(disk)
    with pytest.raises(DeliveryError, match="can't be written: No space left on device"):
        async with sink:
            await sink.deliver(batch)
    assert read_back.files(disk) == []
    remount(disk, "size=4m")
    async with sink:
        assert await sink.deliver(batch) == DELIVERED
    assert counts(disk) == list(range(100))


async def test_parquet_sink_creates_a_deleted_directory_again(tmp_path: Path) -> None:
    folder = tmp_path / "lake"
    async with parquet(folder) as sink:
        await sink.deliver(samples.packets(1))
        (path,) = read_back.files(folder)
        path.unlink()
        path.parent.rmdir()
        await sink.deliver(samples.packets(2))
    assert counts(folder) == [0, 1]


_KILLED: Final = """
import asyncio, os, stat, sys, time
from pathlib import Path
from tests.delivery import sample_events as samples
from tests.delivery.sinks.test_parquet import deliver

def never(descriptor):
    if os.fstat(descriptor).st_size and stat.S_ISREG(os.fstat(descriptor).st_mode):
        print("writing", flush=True)
        time.sleep(600)

os.fsync = never
asyncio.run(deliver(Path(sys.argv[1]), samples.packets(50)))
"""


def _write_until_killed(path: Path) -> None:
    command = [sys.executable, "-c", _KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        line = writer.stdout.readline()
        writer.kill()
    assert line == b"writing\n"


async def test_killed_writer_leaves_no_file_that_a_reader_lists(tmp_path: Path) -> None:
    await asyncio.to_thread(_write_until_killed, tmp_path)
    (left,) = read_back.files(tmp_path)
    assert left.name.startswith(".")
    assert left.name.endswith(".parquet.part")
    with duckdb.connect() as connection, pytest.raises(duckdb.IOException, match="No files found"):
        connection.execute(f"FROM read_parquet('{tmp_path}/**/*.parquet')")
    await deliver(tmp_path, samples.packets(50))
    assert not left.exists()
    assert len(read_back.files(tmp_path)) == 1
    assert counts(tmp_path) == list(range(50))


class SlowDisk:
    """Replacement of os.fsync that waits for ``go_on``."""

    def __init__(self, sync: Callable[[int], None]) -> None:
        self._sync = sync
        self._started = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def sync(self, descriptor: int) -> None:
        self._started.set()
        assert self.go_on.wait(120)
        self._sync(descriptor)

    def stop(self) -> None:
        self._started.clear()
        self.go_on.clear()

    async def started(self) -> None:
        assert await asyncio.to_thread(self._started.wait, 60)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    slow = SlowDisk(os.fsync)
    monkeypatch.setattr(os, "fsync", slow.sync)
    yield slow
    slow.go_on.set()


async def test_cancelled_parquet_delivery_does_not_wait_and_its_files_are_complete_later(
    tmp_path: Path, slow_disk: SlowDisk
) -> None:
    sink = parquet(tmp_path)
    async with sink:
        slow_disk.stop()
        delivery = asyncio.create_task(sink.deliver(samples.packets(5)))
        await slow_disk.started()
        delivery.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(delivery, 60)
    entering: asyncio.Task[Any] = asyncio.create_task(sink.open())
    await asyncio.sleep(0.05)
    assert not entering.done()
    assert all(path.name.startswith(".") for path in read_back.files(tmp_path))
    slow_disk.go_on.set()
    await entering
    await sink.deliver(samples.packets(5))
    await sink.close()
    assert counts(tmp_path) == list(range(5))
    assert len(read_back.files(tmp_path)) == 1


async def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        calls.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink()}")
        sync(descriptor)

    def replaced(*names: Any, **more: Any) -> None:
        calls.append(f"name {names[1]}")
        replace(*names, **more)

    async with parquet(tmp_path) as sink:
        await sink.deliver(samples.packets(1))
        (path,) = read_back.files(tmp_path)
        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "replace", replaced)
        await sink.deliver(samples.packets(1))
    part = path.with_name(f".{path.name}.part")
    assert calls == [f"sync {part}", f"name {path}", f"sync {path.parent}"]


async def test_the_event_loop_makes_no_file_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    make = Maker.make

    def made(self: Maker, messages: Sequence[Message]) -> tuple[list[File], list[Refusal]]:
        threads.append(threading.current_thread().name)
        return make(self, messages)

    monkeypatch.setattr(Maker, "make", made)
    await deliver(tmp_path, samples.packets(1))
    assert threads == ["parquet_0"]


async def test_parquet_sink_closes_without_the_file_that_its_thread_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    making, goes_on = threading.Event(), threading.Event()

    def held_up(_maker: Maker, _messages: Sequence[Message]) -> tuple[list[File], list[Refusal]]:
        making.set()
        assert goes_on.wait(120)
        raise AssertionError("no caller waits for the file")

    monkeypatch.setattr(Maker, "make", held_up)
    sink = parquet(tmp_path)
    await sink.open()
    delivering = asyncio.create_task(sink.deliver(samples.packets(1)))
    assert await asyncio.to_thread(making.wait, 60)
    # A close that waits for the thread ends when the timer does.
    timer = threading.Timer(60, goes_on.set)
    timer.start()
    await sink.close()
    assert not goes_on.is_set()
    timer.cancel()
    goes_on.set()
    with pytest.raises(AssertionError, match="no caller waits"):
        await delivering
