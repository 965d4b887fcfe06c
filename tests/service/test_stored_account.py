"""A sandbox whose account moves between the databases of several runs."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from ocsf_nft.errors import DeliveryError
from ocsf_nft.fence.state import AccountPlace, StateDirectory
from ocsf_nft.flows import codec
from ocsf_nft.service import stored_account
from ocsf_nft.service.ended_sandboxes import forget_account
from ocsf_nft.service.event_rendering import Reporter
from ocsf_nft.state import archive, state_db
from ocsf_nft.state.archive import Archive
from ocsf_nft.state.change import Change, DroppedRecords
from ocsf_nft.state.state_db import FILE
from tests.flows.reading import SECOND, key, tcp
from tests.service import keeping
from tests.service.keeping import MemoryStore
from tests.service.test_account_loop import Given
from tests.standing import INSTALLED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


async def _run(state: Path, database: Path, counters: Given) -> int:
    """Run once with a database; return the number of packets in events."""
    sink = MemoryStore()
    async with (
        keeping.opened_store(database) as store,
        keeping.running_account(counters, state, sink, store=store) as account,
    ):
        await account.close()
    assert sink.of_class(6002) == []
    return sum(event["count"] for event in sink.of_class(4001))


async def test_account_moves_to_the_database_of_each_run(tmp_path: Path) -> None:
    folders = [tmp_path, tmp_path / "sb", tmp_path / "elsewhere"]
    counters = Given({key(tcp()): 1})
    reported = [await _run(tmp_path, tmp_path, counters)]
    for number in range(2, 14):
        counters.at_ns += SECOND
        counters.counts = {key(tcp()): number * number}
        reported.append(await _run(tmp_path, folders[number % 3], counters))
    assert sum(reported) == 13 * 13
    assert reported == [2 * number - 1 for number in range(1, 14)]


async def test_account_is_restored_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def noting(call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **more: Any) -> Any:
            threads.append(threading.current_thread())
            return call(*arguments, **more)

        return noted

    counters = Given({key(tcp()): 4})
    assert await _run(tmp_path, tmp_path, counters) == 4
    for module, name in ((codec, "restore"), (archive, "read_account"), (state_db, "read_account")):
        monkeypatch.setattr(module, name, noting(getattr(module, name)))
    counters.counts = {key(tcp()): 9}
    assert await _run(tmp_path, tmp_path, counters) == 5
    async with keeping.opened_store(tmp_path) as store:
        reporter = Reporter(store.commit, None)
        await forget_account("sb", INSTALLED, StateDirectory(tmp_path), store, reporter)
    assert len(threads) == 4
    assert threading.main_thread() not in threads


async def test_account_is_restored_although_the_database_file_was_removed(tmp_path: Path) -> None:
    counters = Given({key(tcp()): 4})
    assert await _run(tmp_path, tmp_path, counters) == 4
    sink = MemoryStore()
    async with keeping.opened_store(tmp_path) as store:
        (tmp_path / FILE).unlink()
        counters.counts = {key(tcp()): 9}
        async with keeping.running_account(counters, tmp_path, sink, store=store) as account:
            await account.close()
    assert [event["count"] for event in sink.of_class(4001)] == [5]


async def test_clock_that_was_set_back_changes_nothing(tmp_path: Path) -> None:
    counters = Given({key(tcp()): 4})
    counters.at_ns += 3600 * SECOND
    assert await _run(tmp_path, tmp_path / "sb", counters) == 4
    counters.at_ns -= 3600 * SECOND
    counters.counts = {key(tcp()): 6}
    assert await _run(tmp_path, tmp_path, counters) == 2
    counters.counts = {key(tcp()): 9}
    counters.at_ns += SECOND
    assert await _run(tmp_path, tmp_path, counters) == 3
    assert await _run(tmp_path, tmp_path / "sb", counters) == 0


async def test_old_copy_is_not_used_after_the_fence_was_removed(tmp_path: Path) -> None:
    counters = Given({key(tcp()): 4})
    await _run(tmp_path, tmp_path / "sb", counters)
    async with (
        keeping.opened_store(tmp_path) as store,
        keeping.running_account(counters, tmp_path, MemoryStore(), store=store) as account,
    ):
        await account.close()
        await account.remove()
    assert stored_account.read(StateDirectory(tmp_path), "sb").parts == {}
    counters.counts = {key(tcp()): 1}
    assert await _run(tmp_path, tmp_path, counters) == 1


async def test_numbers_of_dropped_records_move_with_the_account(tmp_path: Path) -> None:
    counters = Given({key(tcp()): 4})
    dropped = DroppedRecords("nflog", 2, 7)
    async with (
        keeping.opened_store(tmp_path / "sb") as store,
        keeping.running_account(counters, tmp_path, MemoryStore(), store=store) as account,
    ):
        await store.commit(Change(dropped=[("sb", dropped)]))
        await account.close()
    await _run(tmp_path, tmp_path, counters)
    assert stored_account.read(StateDirectory(tmp_path), "sb").dropped == (dropped,)


async def test_run_that_was_killed_before_the_move_was_stored_moves_the_account_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = Given({key(tcp()): 4})
    await _run(tmp_path, tmp_path / "sb", counters)

    def kill(*_: object) -> None:
        raise EOFError

    monkeypatch.setattr(StateDirectory, "set_account_place", kill)
    with pytest.raises(EOFError):
        await _run(tmp_path, tmp_path, counters)
    monkeypatch.undo()
    counters.counts = {key(tcp()): 6}
    counters.at_ns += SECOND
    assert await _run(tmp_path, tmp_path / "sb", counters) == 2
    counters.counts = {key(tcp()): 7}
    counters.at_ns += SECOND
    assert await _run(tmp_path, tmp_path, counters) == 1


@pytest.mark.parametrize("fault", ["missing", "damaged", "unfinished"])
async def test_account_that_cannot_be_read_is_reported_and_counted_again(
    tmp_path: Path, fault: str
) -> None:
    counters = Given({key(tcp()): 4})
    await _run(tmp_path, tmp_path / "sb", counters)
    path = tmp_path / "sb" / FILE
    path.unlink()
    if fault == "damaged":
        path.write_bytes(b"no database" * 1000)
    elif fault == "unfinished":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE event (number INTEGER PRIMARY KEY)")
    sink = MemoryStore()
    async with (
        keeping.opened_store(tmp_path) as store,
        keeping.running_account(counters, tmp_path, sink, store=store) as account,
    ):
        await account.close()
    (gap,) = sink.of_class(6002)
    assert "its stored counts can't be read" in gap["status_detail"]
    assert sum(event["count"] for event in sink.of_class(4001)) == 4
    counters.counts = {key(tcp()): 5}
    counters.at_ns += SECOND
    assert await _run(tmp_path, tmp_path, counters) == 1


async def test_database_that_was_renamed_keeps_its_accounts(tmp_path: Path) -> None:
    counters = Given({key(tcp()): 4})
    await _run(tmp_path, tmp_path / "before", counters)
    (tmp_path / "before").rename(tmp_path / "after")
    counters.counts = {key(tcp()): 6}
    counters.at_ns += SECOND
    assert await _run(tmp_path, tmp_path / "after", counters) == 2
    place = StateDirectory(tmp_path).account_place("sb")
    assert place is not None
    assert place.path == tmp_path / "after" / FILE


async def test_other_database_at_the_same_path_is_not_the_account(tmp_path: Path) -> None:
    """A disk was not mounted at one start, for example."""
    counters = Given({key(tcp()): 4})
    await _run(tmp_path, tmp_path / "disk", counters)
    (tmp_path / "disk").rename(tmp_path / "absent")
    sink = MemoryStore()
    async with (
        keeping.opened_store(tmp_path / "disk") as store,
        keeping.running_account(counters, tmp_path, sink, store=store) as account,
    ):
        await account.close()
    assert "is not the database" in sink.of_class(6002)[0]["status_detail"]
    assert sum(event["count"] for event in sink.of_class(4001)) == 4


def test_path_in_the_state_directory_moves_with_it(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "before")
    assert state.account_place("sb") is None
    state.set_account_place("sb", AccountPlace(tmp_path / "before" / FILE, "A1"))
    (tmp_path / "before").rename(tmp_path / "after")
    moved = StateDirectory(tmp_path / "after")
    assert moved.account_place("sb") == (tmp_path / "after" / FILE, "A1")
    moved.set_account_place("sb", AccountPlace(tmp_path / "elsewhere", "A2"))
    assert moved.account_place("sb") == (tmp_path / "elsewhere", "A2")
    moved.delete_account_place("sb")
    assert moved.account_place("sb") is None
    assert not moved.directory("sb").exists()


async def test_account_is_read_after_its_last_counts_that_wait_for_the_disk_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox that could not be released is watched again, with the same store."""
    first, second = tcp(port=1), tcp(port=2)
    counters, sink = Given({key(first): 5, key(second): 3}), MemoryStore()
    async with keeping.opened_store(tmp_path) as store:
        commit = store.database.commit

        def fail(_: Sequence[Change]) -> int:
            raise DeliveryError("the disk is full")

        async with keeping.running_account(counters, tmp_path, sink, store=store) as account:
            monkeypatch.setattr(store.database, "commit", fail)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await account.close()
        counters.counts[key(first)] = 8

        async def watch_again() -> None:
            async with keeping.running_account(counters, tmp_path, sink, store=store) as again:
                await again.close()

        watching = asyncio.create_task(watch_again())
        await asyncio.sleep(0.1)
        monkeypatch.setattr(store.database, "commit", commit)
        await watching
    with Archive(tmp_path / FILE) as archive:
        events = [orjson.loads(each.line) for each in archive.read(0)]
    assert sum(event["count"] for event in events if event["class_uid"] == 4001) == 8 + 3
