from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import orjson
import pytest

from ocsf_nft.errors import AbsentError, SourceError
from ocsf_nft.state.archive import Archive, stores
from ocsf_nft.state.change import Account
from ocsf_nft.state.state_db import FILE
from tests.delivery.receiver import events, uids
from tests.delivery.stores import Store

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ocsf_nft.state.state_db import StoredEvent


def uids_of(found: Iterable[StoredEvent]) -> list[str]:
    return [orjson.loads(each.line)["metadata"]["uid"] for each in found]


async def test_store_in_use_is_read_from_both_ends(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE) as store:
        await store.put(events(range(1200)))
        with Archive(tmp_path / FILE) as archive:
            assert uids_of(archive.beyond(0)) == uids(range(1200))
            assert uids_of(archive.newest()) == uids(range(1199, -1, -1))
            assert uids_of(archive.beyond(1198)) == uids([1198, 1199])
            await store.put(events([7000]))
            assert uids_of(archive.beyond(1200)) == uids([7000])


def last_of(archive: Archive) -> StoredEvent | None:
    return next(archive.newest(), None)


async def test_restored_store_is_read_on_after_the_last_event(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.put(events(range(2)))
        with Archive(path) as archive:
            last = last_of(archive)
            path.unlink()
            assert archive.follow(last) is last
            await store.put(events([2]))
            assert archive.follow(last) is last
            assert last is not None
            assert uids_of(archive.beyond(last.number)) == uids([2])


def remove(path: Path) -> None:
    """Remove the files of a store, as a run does at its end."""
    for each in path.parent.rglob("*"):
        if each.is_file() and path.name in str(each):
            each.unlink()


@pytest.mark.parametrize("number", [0, 1, 5])
async def test_newly_created_store_is_read_from_its_beginning(tmp_path: Path, number: int) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.put(events(range(3)))
    with Archive(path) as archive:
        last = last_of(archive)
        remove(path)
        async with Store(path) as store:
            await store.put(events(range(10, 10 + number)))
            assert archive.follow(last) is None
            assert uids_of(archive.beyond(0)) == uids(range(10, 10 + number))


async def test_restored_store_without_the_last_event_is_read_from_its_beginning(
    tmp_path: Path,
) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.put(events(range(3)))
        with Archive(path) as archive:
            last = last_of(archive)
            path.unlink()
            await store.put(events([3]))
            with sqlite3.connect(path) as connection:
                connection.execute("DELETE FROM event WHERE number <= 3")
            connection.close()
            assert archive.follow(last) is None
            assert uids_of(archive.beyond(0)) == uids([3])


async def test_archive_waits_for_a_store_that_is_being_created(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.put(events(range(2)))
    with Archive(path) as archive:
        last = last_of(archive)
        remove(path)
        path.touch()
        assert archive.follow(last) is last
        assert uids_of(archive.beyond(0)) == uids(range(2))
        async with Store(path) as store:
            await store.put(events([9]))
        assert archive.follow(last) is None
        assert uids_of(archive.beyond(0)) == uids([9])


@pytest.mark.kernel
def test_stores_that_this_user_may_not_read_are_not_absent(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    tmp_path.chmod(0o700)
    # The user must reach the directory, but not read it.
    inside = os.open(tmp_path, os.O_PATH)
    code = (
        "import sys; from pathlib import Path; from ocsf_nft.errors import UnsupportedError\n"
        "from ocsf_nft.state.archive import stores\n"
        f"try: stores(Path('/proc/self/fd/{inside}'))\n"
        "except UnsupportedError as error: print(error)"
    )
    command = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", code]
    try:
        done = subprocess.run(
            command, pass_fds=[inside], capture_output=True, text=True, check=True, timeout=30
        )
    finally:
        os.close(inside)
    assert "can't be read: run as root, or as a member of the group" in done.stdout


def test_stores_are_found_below_a_state_directory(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match="holds no events"):
        stores(tmp_path)
    for folder in (tmp_path, tmp_path / "sb2", tmp_path / "sb1"):
        folder.mkdir(exist_ok=True)
        (folder / FILE).touch()
    assert stores(tmp_path) == [tmp_path / FILE, tmp_path / "sb1" / FILE, tmp_path / "sb2" / FILE]


async def test_file_that_is_no_store_is_an_error_and_stays_unchanged(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(b"no database" * 1000)
    with Archive(path) as archive, pytest.raises(SourceError, match="can't be read"):
        list(archive.newest())
    assert path.read_bytes() == b"no database" * 1000


def test_archive_holds_nothing_while_a_run_makes_its_file(tmp_path: Path) -> None:
    path = tmp_path / FILE
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        with Archive(path) as archive:
            assert list(archive.beyond(0)) == list(archive.newest()) == []
            assert archive.account("sb") == Account()
            assert archive.count_beyond(0) == 0


def test_archive_of_a_run_that_was_killed_while_it_created_the_file_is_empty(
    tmp_path: Path,
) -> None:
    made, killed = tmp_path / "made", tmp_path / FILE
    with contextlib.closing(sqlite3.connect(made, isolation_level=None)) as writer:
        writer.execute("CREATE TABLE large (text)")
        writer.execute("PRAGMA cache_size = 1")  # the journal is written before the commit
        writer.execute("BEGIN IMMEDIATE")
        for _ in range(1000):
            writer.execute("INSERT INTO large VALUES (?)", ("x" * 500,))
        for suffix in ("", "-journal"):
            copied = made.with_name(f"made{suffix}").read_bytes()
            killed.with_name(f"{FILE}{suffix}").write_bytes(copied)
    with Archive(killed) as archive:
        assert list(archive.beyond(0)) == []
        assert list(archive.newest()) == []
    assert killed.with_name(f"{FILE}-journal").exists()  # the next run rolls it back
