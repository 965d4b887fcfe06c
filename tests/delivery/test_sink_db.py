from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.delivery.sink_db import (
    RefusedEvent,
    SinkArchive,
    SinkBacklog,
    path_of,
    retry_dead_letters,
)
from ocsf_nft.errors import DeliveryError, SourceError
from ocsf_nft.state.archive import Archive
from ocsf_nft.state.state_db import FILE
from tests.delivery.receiver import event, events, uids
from tests.delivery.stores import Store

if TYPE_CHECKING:
    from pathlib import Path


async def test_new_sink_gets_only_later_events(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        assert await store.register(["a"]) == {}
        await store.put(events(range(3)))
        await store.acknowledge("a", 1)
    async with Store(path) as store:
        assert await store.register(["a", "b"]) == {}
        assert store.sinks.checkpoint("a") == (1, None)
        assert store.sinks.checkpoint("b") == (3, None)


async def test_checkpoints_of_removed_sinks_are_returned(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE) as store:
        await store.register(["a", "b"])
        await store.put(events(range(3)))
        await store.acknowledge("a", 3)
        assert await store.register(["c"]) == {"a": 3, "b": 0}


async def test_end_of_a_batch_is_stored_until_it_is_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.register(["a"])
        await store.put(events(range(3)))
        store.sinks.begin_batch("a", 2)
    async with Store(path) as store:
        assert store.sinks.checkpoint("a") == (0, 2)
        await store.acknowledge("a", 2)
        assert store.sinks.checkpoint("a") == (2, None)


async def test_batch_beyond_the_last_event_is_forgotten(tmp_path: Path) -> None:
    """After a damage of its log, the state database may lack the latest events."""
    async with Store(tmp_path / FILE) as store:
        await store.register(["a", "b"])
        await store.put(events(range(3)))
        store.sinks.begin_batch("a", 3)
        store.sinks.begin_batch("b", 2)
        store.sinks.register(["a", "b"], store.state.database.identity, 2)
        assert store.sinks.checkpoint("a") == (0, None)
        assert store.sinks.checkpoint("b") == (0, 2)


async def test_dead_letters_are_stored_until_they_are_delivered(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.register(["a"])
        await store.put(events(range(2)))
        await store.acknowledge("a", 2, [RefusedEvent("uid-1", event(1), "too odd")])
        assert store.sinks.dead_letters_to_retry("a", 9) == []
    with closing(sqlite3.connect(path_of(path))) as other, other:
        other.execute("UPDATE dead SET is_again = 1")
    async with Store(path) as store:
        (letter,) = store.sinks.dead_letters_to_retry("a", 9)
        assert (letter.uid, letter.reason, letter.line) == ("uid-1", "too odd", event(1))
        store.sinks.finish_retries([letter], {letter.uid: "still odd"})
        assert store.sinks.dead_letters_to_retry("a", 9) == []
        assert store.sinks.count_dead_letters("a") == 1
        store.sinks.finish_retries([letter], {})
        assert store.sinks.count_dead_letters("a") == 0


async def test_dead_letter_removed_during_its_retry_removes_no_other(
    tmp_path: Path,
) -> None:
    path = tmp_path / FILE
    async with Store(path, max_seconds=60) as store:
        await store.register(["a", "b"])
        await store.put(events(range(2)))
        await store.acknowledge("a", 1, [RefusedEvent("uid-0", event(0), "no")])
        retry_dead_letters(path, None, None)
        tried = store.sinks.dead_letters_to_retry("a", 9)
        with closing(sqlite3.connect(path_of(path))) as other, other:
            other.execute("DELETE FROM dead")  # as retention does
        await store.acknowledge("b", 2, [RefusedEvent("uid-1", event(1), "no")])
        store.sinks.finish_retries(tried, {})
        assert store.sinks.count_dead_letters("b") == 1


async def test_checkpoints_for_another_state_database_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.register(["a"])
        await store.put(events(range(5)))
        store.sinks.begin_batch("a", 5)
        await store.acknowledge("a", 4)
    path.unlink()
    async with Store(path) as store:
        await store.put(events(range(5, 7)))
        await store.register(["a", "b"])
        assert store.sinks.checkpoint("a") == store.sinks.checkpoint("b") == (0, None)


async def test_checkpoint_beyond_the_last_event_is_set_back_to_it(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.register(["a", "b"])
        await store.put(events(range(3)))
        await store.acknowledge("a", 2)
        store.sinks.acknowledge("b", 9)  # of events that a damaged log has lost
        store.sinks.begin_batch("b", 12)
        await store.register(["a", "b"])
        assert store.sinks.checkpoint("a") == (2, None)
        assert store.sinks.checkpoint("b") == (3, None)


async def test_all_events_are_delivered_if_the_checkpoints_are_lost(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.register(["a"])
        await store.put(events(range(3)))
        await store.acknowledge("a", 3)
    path_of(path).unlink()
    async with Store(path) as store:
        await store.register(["a"])
        assert store.sinks.checkpoint("a") == (0, None)
        await store.register(["a", "b"])  # a reload adds a sink
        assert store.sinks.checkpoint("b") == (3, None)


async def test_stores_in_one_folder_have_checkpoints_of_their_own(tmp_path: Path) -> None:
    async with Store(tmp_path / "a.sqlite3") as one, Store(tmp_path / "b.sqlite3") as other:
        await one.register(["a"])
        await other.register(["a"])
        await one.put(events(range(3)))
        await one.acknowledge("a", 3)
        assert other.sinks.checkpoint("a") == (0, None)


async def test_report_of_a_damaged_file_stays_until_it_is_confirmed(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path_of(path).parent.mkdir()
    path_of(path).write_bytes(b"no database" * 1000)
    async with Store(path) as store:
        (report,) = store.sinks.faults()
        assert f"{path_of(path)} was damaged" in report
    async with Store(path) as store:
        assert store.sinks.faults() == (report,)
        store.sinks.confirm_fault(report)
        assert store.sinks.faults() == ()
    async with Store(path) as store:
        assert store.sinks.faults() == ()


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
    monkeypatch.setattr("ocsf_nft.delivery.sink_db._ROWS", 2)
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
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    with SinkArchive(tmp_path / FILE) as archive, pytest.raises(SourceError, match="can't be read"):
        list(archive.dead_letters())
    with pytest.raises(DeliveryError, match="can't be written"):
        retry_dead_letters(tmp_path / FILE, None, None)
    assert path.read_bytes() == b"no database" * 1000


def test_archive_holds_nothing_while_a_run_makes_its_file(tmp_path: Path) -> None:
    with SinkArchive(tmp_path / FILE) as archive:
        assert list(archive.dead_letters()) == []
    path_of(tmp_path / FILE).parent.mkdir()
    with closing(sqlite3.connect(path_of(tmp_path / FILE))) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        with SinkArchive(tmp_path / FILE) as archive:
            assert list(archive.dead_letters()) == []


def test_retry_of_a_store_without_dead_letters_changes_nothing(tmp_path: Path) -> None:
    assert retry_dead_letters(tmp_path / FILE, None, None) == 0
    assert list(tmp_path.iterdir()) == []
