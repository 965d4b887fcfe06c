from __future__ import annotations

import asyncio
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.delivery.sinks.jsonl import Jsonl
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


async def test_events_are_appended_one_line_each(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"old":1}\n')
    async with Jsonl(path) as sink:
        await sink.deliver([b'{"a":1}', b'{"b":2}'])
        await sink.deliver([])
        await sink.deliver([b'{"c":3}'])
    assert path.read_bytes() == b'{"old":1}\n{"a":1}\n{"b":2}\n{"c":3}\n'


async def test_a_file_is_made_for_its_owner_and_group_alone(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with Jsonl(path):
        assert path.stat().st_mode & 0o777 & ~0o640 == 0


@pytest.mark.parametrize("kept", [b"", b'{"whole":1}\n', b'{"x":"' + b"y" * 100_000 + b'"}\n'])
@pytest.mark.parametrize("torn", [b'{"tor', b"z" * 200_000])
async def test_what_a_crash_left_half_written_is_taken_back(
    tmp_path: Path, kept: bytes, torn: bytes
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(kept + torn)
    async with Jsonl(path) as sink:
        await sink.deliver([b"{}"])
    assert path.read_bytes() == kept + b"{}\n"


async def test_the_directory_of_the_file_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "events.jsonl"
    async with Jsonl(path) as sink:
        await sink.deliver([b"{}"])
    assert path.read_bytes() == b"{}\n"
    assert path.parent.stat().st_mode & 0o777 & ~0o750 == 0


@pytest.mark.parametrize(
    ("place", "cause"),
    [("file/events.jsonl", "Not a directory"), ("a/b/events.jsonl", "No such file or directory")],
)
async def test_a_directory_that_can_not_be_made_is_one_sentence(
    tmp_path: Path, place: str, cause: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeliveryError, match=cause):
        await Jsonl(tmp_path / place).__aenter__()


async def test_a_file_that_was_rotated_away_is_begun_anew(tmp_path: Path) -> None:
    path, rotated = tmp_path / "new" / "events.jsonl", tmp_path / "events.jsonl.1"
    async with Jsonl(path) as sink:
        await sink.deliver([b'{"a":1}'])
        path.rename(rotated)
        await sink.deliver([b'{"b":2}'])
        assert path.read_bytes() == b'{"b":2}\n'
        path.unlink()
        path.write_bytes(b'{"other":0}\n')
        await sink.deliver([b'{"c":3}'])
        assert path.read_bytes() == b'{"other":0}\n{"c":3}\n'
        path.unlink()
        path.parent.rmdir()
        await sink.deliver([b'{"d":4}'])
        path.unlink()
        path.parent.rmdir()
        path.parent.touch()
        with pytest.raises(DeliveryError, match="Not a directory"):
            await sink.deliver([b'{"e":5}'])
        path.parent.unlink()
        await sink.deliver([b'{"f":6}'])
    assert path.read_bytes() == b'{"f":6}\n'
    assert rotated.read_bytes() == b'{"a":1}\n'


async def test_a_file_that_was_emptied_in_its_place_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with Jsonl(path) as sink:
        await sink.deliver([b'{"a":1}'])
        os.truncate(path, 0)
        await sink.deliver([b'{"b":2}'])
    assert path.read_bytes() == b'{"b":2}\n'


async def test_a_reader_that_went_away_is_one_sentence(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    async with Jsonl(fifo) as sink:
        await sink.deliver([b"{}"])
        assert os.read(reader, 100) == b"{}\n"
        os.close(reader)
        with pytest.raises(DeliveryError, match="Broken pipe"):
            await sink.deliver([b"{}"])


async def test_a_named_pipe_without_a_reader_is_not_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(DeliveryError):
        await asyncio.wait_for(Jsonl(fifo).__aenter__(), 5)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.kernel
async def test_a_full_disk_is_one_sentence_and_leaves_no_half_line(small_disk: Path) -> None:
    path = small_disk / "events.jsonl"
    async with Jsonl(path) as sink:
        await sink.deliver([b"x" * 3000] * 10)
        with pytest.raises(DeliveryError, match="No space left on device"):
            await sink.deliver([b"y" * 3000] * 30)
        assert path.read_bytes() == (b"x" * 3000 + b"\n") * 10


async def test_batches_of_several_tasks_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with Jsonl(path) as sink, asyncio.TaskGroup() as group:
        for task in range(8):
            group.create_task(sink.deliver([b"%d" % task * 5000] * 20))
    lines = path.read_bytes().splitlines()
    assert len(lines) == 160
    assert all(len(line) == 5000 and len(set(line)) == 1 for line in lines)
