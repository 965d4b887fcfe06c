"""Files of a data lake in a directory: their modes, and how they are written."""

from __future__ import annotations

import os
import stat
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.delivery.object_storage import Directory
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Directory]:
    directory = Directory(path=path)
    await directory.open("")
    try:
        yield directory
    finally:
        await directory.close()


def modes(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in folder.rglob("*")
    }


async def test_files_of_a_directory_are_for_their_owner_and_readers(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with opened(tmp_path / "lake") as directory:
            await directory.put("day/hour/a.parquet", b"A" * 100_000)
    finally:
        os.umask(before)
    assert modes(tmp_path) == {
        "lake": 0o750,
        "lake/day": 0o750,
        "lake/day/hour": 0o750,
        "lake/day/hour/a.parquet": 0o640,
    }
    assert (tmp_path / "lake/day/hour/a.parquet").read_bytes() == b"A" * 100_000


async def test_file_has_its_name_only_once_all_of_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []
    sync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        path, found = Path(f"/proc/self/fd/{descriptor}").readlink(), os.fstat(descriptor)
        calls.append((path.name, found.st_size if stat.S_ISREG(found.st_mode) else 0))
        sync(descriptor)

    def replaced(path: Path, target: Path) -> Path:
        calls.append((f"{path.name} > {target.name}", path.stat().st_size))
        return replace(path, target)

    async with opened(tmp_path) as directory:
        await directory.put("a", b"first")
        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(Path, "replace", replaced)
        await directory.put("a", b"another")
    assert calls == [(".a.part", 7), (".a.part > a", 7), (tmp_path.name, 0)]
    assert list(modes(tmp_path)) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"another"


async def test_file_that_cannot_be_put_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    async with opened(tmp_path) as directory:
        with pytest.raises(DeliveryError, match="can't be written: Is a directory"):
            await directory.put("a", b"content")
    assert list(modes(tmp_path)) == ["a"]
