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


async def test_a_directory_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="No such file or directory"):
        await Jsonl(tmp_path / "nowhere" / "events.jsonl").__aenter__()


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
