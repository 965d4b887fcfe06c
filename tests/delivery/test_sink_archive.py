from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.delivery.sink_archive import SinkArchive, SinkBacklog, retry_dead_letters
from ocsf_nft.delivery.sink_db import RefusedEvent, path_of
from ocsf_nft.errors import DeliveryError, SourceError
from ocsf_nft.state.archive import Archive
from ocsf_nft.state.state_db import FILE
from tests.delivery.receiver import event, events, uids
from tests.delivery.stores import Store

if TYPE_CHECKING:
    from pathlib import Path


async def test_backlog_of_each_sink_is_counted(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE) as store:
        await store.register(["a", "b"])
        await store.put(events(range(5)))
        await store.acknowledge("a", 2, [RefusedEvent("uid-1", event(1), "odd")])
        with Archive(tmp_path / FILE) as archive, SinkArchive(tmp_path / FILE) as sinks:
            assert sinks.backlogs(archive) == [SinkBacklog("a", 3, 1), SinkBacklog("b", 5, 0)]


async def test_dead_letters_are_listed_and_their_retry_is_requested(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.register(["a", "b"])
        await store.put(events(range(3)))
        for sink in ("a", "b"):
            refused = [RefusedEvent(f"uid-{number}", event(number), "odd") for number in range(3)]
            await store.acknowledge(sink, 3, refused)
        with SinkArchive(path) as archive:
            assert [each.sink for each in archive.dead_letters()] == ["a"] * 3 + ["b"] * 3
            assert [each.uid for each in archive.dead_letters("b")] == uids(range(3))
        assert retry_dead_letters(path, "b", None) == 3
        assert retry_dead_letters(path, "a", "uid-1") == 1
        assert retry_dead_letters(path, "c", None) == 0
        assert [each.uid for each in store.sinks.dead_letters_to_retry("a", 9)] == ["uid-1"]
        assert [each.uid for each in store.sinks.dead_letters_to_retry("b", 9)] == uids(range(3))


async def test_dead_letters_are_listed_beyond_the_first_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocsf_nft.delivery.sink_archive._ROWS", 2)
    async with Store(tmp_path / FILE) as store:
        await store.register(["a"])
        refused = [
            RefusedEvent(uid, event(number), "no") for number, uid in enumerate(uids(range(5)))
        ]
        await store.acknowledge("a", 5, refused)
        with SinkArchive(tmp_path / FILE) as archive:
            assert [each.uid for each in archive.dead_letters()] == uids(range(5))


async def test_file_that_is_no_database_is_an_error_and_stays_unchanged(tmp_path: Path) -> None:
    path = path_of(tmp_path / FILE)
    path.write_bytes(b"no database" * 1000)
    with SinkArchive(tmp_path / FILE) as archive, pytest.raises(SourceError, match="can't be read"):
        list(archive.dead_letters())
    with pytest.raises(DeliveryError, match="can't be written"):
        retry_dead_letters(tmp_path / FILE, None, None)
    assert path.read_bytes() == b"no database" * 1000


def test_archive_holds_nothing_while_a_run_makes_its_file(tmp_path: Path) -> None:
    with SinkArchive(tmp_path / FILE) as archive:
        assert list(archive.dead_letters()) == []
    with contextlib.closing(sqlite3.connect(path_of(tmp_path / FILE))) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        with SinkArchive(tmp_path / FILE) as archive:
            assert list(archive.dead_letters()) == []


def test_retry_of_a_store_without_dead_letters_changes_nothing(tmp_path: Path) -> None:
    assert retry_dead_letters(tmp_path / FILE, None, None) == 0
    assert list(tmp_path.iterdir()) == []
