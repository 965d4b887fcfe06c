from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import orjson
import pytest

from ocsf_nft.errors import ClosedError, DeliveryError
from ocsf_nft.state import retry_until_writable
from ocsf_nft.state.change import (
    Account,
    AccountChange,
    Change,
    DroppedRecords,
    PartKey,
    Position,
)
from ocsf_nft.state.retry_until_writable import StorageRetrier
from ocsf_nft.state.state_db import FILE
from ocsf_nft.state.state_store import StateStore
from tests.delivery.receiver import event, events, uids
from tests.delivery.stores import Store, fill, stored_uids

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


async def test_store_has_its_events_in_order_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.put(events(range(3)))
        await store.put(events(range(3, 5)))
        assert store.end == 5
    async with Store(path) as store:
        assert store.end == 5
        assert await stored_uids(store) == uids(range(5))
        assert [row.line for row in await store.read(3, events=1, size=1)] == [event(3)]


async def test_event_with_a_stored_uid_is_not_stored_again(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE) as store:
        await store.put(events([1, 2, 2]))
        await store.put(events([2, 1, 3]))
        assert await stored_uids(store) == uids([1, 2, 3])


async def test_uid_of_an_event_is_not_taken_from_its_texts(tmp_path: Path) -> None:
    inner = orjson.dumps({"metadata": {"version": "1.8.0", "uid": "forged"}}).decode()
    lines = [
        orjson.dumps({"metadata": {"version": "1.8.0", "uid": "true-1"}, "raw_data": inner}),
        orjson.dumps({"raw_data": inner, "metadata": {"version": "1.8.0", "uid": "true-2"}}),
        orjson.dumps({"unmapped": {"metadata": {"uid": "x"}}, "metadata": {"uid": 'a"b\\'}}),
    ]
    async with Store(tmp_path / FILE) as store:
        await store.put(lines)
        assert await stored_uids(store) == ["true-1", "true-2", 'a"b\\']


async def test_batch_is_limited_by_events_and_bytes_but_has_one_event(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE) as store:
        await store.put([event(number, 1000) for number in range(9)])
        assert len(await store.read(0, events=4, size=1 << 20)) == 4
        assert len(await store.read(0, events=9, size=3500)) == 3
        assert len(await store.read(0, events=9, size=1)) == 1


async def test_batch_is_read_again_with_the_same_events_if_numbers_are_missing(
    tmp_path: Path,
) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.put(events(range(4)))
        await store.put(events(range(4, 9)))
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("DELETE FROM event WHERE number IN (2, 3)")
    async with Store(path) as store:
        assert [row.uid for row in store.stream.read(0, 5)] == uids([0, 3, 4])


def _change(number: int) -> Change:
    return Change(events=[event(number)])


async def test_concurrent_changes_are_all_stored_in_few_transactions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store(tmp_path / FILE) as store:
        commit, sizes = store.state.database.commit, []

        def counted(changes: Sequence[Change]) -> int:
            sizes.append(len(changes))
            return commit(changes)

        monkeypatch.setattr(store.state.database, "commit", counted)
        await asyncio.gather(*(store.state.commit(_change(number)) for number in range(200)))
        assert await stored_uids(store) == uids(range(200))
        assert sizes == [200]
        sizes.clear()
        large = Change(events=events(range(1000, 1500)))
        await asyncio.gather(store.state.commit(large), store.state.commit(large))
        assert sizes == [1, 1], "a transaction has a limited size"


async def test_change_of_a_cancelled_caller_is_stored(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE) as store:
        tasks = [asyncio.create_task(store.state.commit(_change(number))) for number in range(50)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await store.state.commit(_change(50))
        assert await stored_uids(store) == uids(range(51))


async def test_change_waits_while_the_disk_is_full_and_nothing_is_lost(disk: Path) -> None:
    async with Store(disk / FILE) as store:
        ballast = fill(disk)
        waiting = [
            asyncio.create_task(store.state.commit(Change(events=[event(number, 20_000)])))
            for number in range(3)
        ]
        async with asyncio.timeout(20):
            while store.retrier.fault is None:  # noqa: ASYNC110 - no event announces it
                await asyncio.sleep(0.01)
        assert not any(task.done() for task in waiting)
        ballast.unlink()
        await asyncio.wait_for(asyncio.gather(*waiting), 20)
        assert await stored_uids(store) == uids(range(3))


async def test_change_fails_if_the_disk_is_still_full_when_the_service_has_stopped(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry_until_writable, "_SHUTDOWN_GRACE_SECONDS", 0.1)
    stop = asyncio.Event()
    async with StateStore(disk / FILE, StorageRetrier(stop)) as store:
        fill(disk)
        stop.set()
        with pytest.raises(DeliveryError, match="make room"):
            await store.commit(Change(events=[event(1, 20_000)]))
        with pytest.raises(DeliveryError, match="make room"):
            await store.commit(_change(2))


async def test_events_and_the_counts_that_they_report_are_stored_together(tmp_path: Path) -> None:
    path = tmp_path / FILE
    account = AccountChange("sb", parts={PartKey("egress", "totals", b""): b"7"})
    async with StateStore(path, StorageRetrier(asyncio.Event())) as store:
        await store.commit(
            Change(
                events=[event(1)],
                account=account,
                position=Position("sb", "kmsg", "7"),
                dropped=[("sb", DroppedRecords("kmsg", 1, 3))],
            )
        )
        await store.commit(Change(position=Position(None, "journal", "s=1")))
        assert store.database.account("other") == Account()
    async with StateStore(path, StorageRetrier(asyncio.Event())) as store:
        stored = store.database.account("sb")
        assert (stored.parts, stored.position) == (account.parts, ("sb", "kmsg", "7"))
        assert store.database.dropped_records("sb") == (("kmsg", 1, 3),)
        assert store.database.host_position("journal") == "s=1"
        assert store.database.host_position("kmsg") is None


async def test_open_findings_are_stored_with_their_events(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        for change in (
            Change(events=events([1]), findings={"a": b"1", "b": b"2"}),
            Change(events=events([2]), findings={"a": b"3", "b": None, "c": None}),
        ):
            await store.state.commit(change)
    async with Store(path) as store:
        assert store.state.database.open_findings() == {"a": b"3"}


async def test_wait_for_an_event_ends_when_it_is_stored(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE) as store:
        waiting = asyncio.create_task(store.stream.wait_for_event(1))
        await store.put([event(1)])
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await store.put([event(2)])
        await asyncio.wait_for(waiting, 60)


@pytest.mark.parametrize("at", [0, 5000, 30_000])
async def test_damaged_file_is_quarantined_reported_and_replaced(tmp_path: Path, at: int) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.put([event(number, 300) for number in range(500)])
        assert await store.state.faults() == ()
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 4096)
    damaged = path.read_bytes()
    async with Store(path) as store:
        (fault,) = await store.state.faults()
        assert "it was renamed to" in fault
        assert path.with_suffix(".damaged").read_bytes() == damaged
        await store.put([event(1)])
        assert await stored_uids(store) == ["uid-1"]


async def test_damaged_file_does_not_overwrite_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / FILE
    for number in range(3):
        path.write_bytes(b"damaged %d" % number + bytes(8192))
        async with Store(path) as store:
            assert "it was renamed to" in (await store.state.faults())[0]
        path.unlink()
    names = ("damaged", "damaged2", "damaged3")
    quarantined = [path.with_suffix(f".{name}").read_bytes()[:9] for name in names]
    assert quarantined == [b"damaged 0", b"damaged 1", b"damaged 2"]


@pytest.mark.parametrize("how", ["file", "folder", "replaced"])
async def test_file_that_is_removed_while_it_is_open_is_restored(tmp_path: Path, how: str) -> None:
    path = tmp_path / "state" / FILE
    async with Store(path) as store:
        await store.register(["a"])
        await store.put(events(range(3)))
        if how == "file":
            path.unlink()
        elif how == "folder":
            shutil.rmtree(path.parent)
        else:
            path.unlink()
            path.write_bytes(b"something else")
        await store.put(events(range(3, 5)))
        assert store.sinks.checkpoint("a") == (0, None)
        assert await store.state.faults() == ()
    async with Store(path) as store:
        assert await stored_uids(store) == uids(range(5))
        assert await store.state.faults() == ()


async def test_store_can_be_opened_by_one_run_only(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        with pytest.raises(DeliveryError, match=r"another run stores its events in .*store"):
            await Store(path).__aenter__()
        await store.put([event(1)])
    async with Store(path) as store:
        assert await stored_uids(store) == ["uid-1"]


async def test_store_whose_folder_was_removed_can_be_opened_by_one_run_only(tmp_path: Path) -> None:
    path = tmp_path / "state" / FILE
    async with Store(path) as store:
        await store.put([event(1)])
        shutil.rmtree(path.parent)
        await store.put([event(2)])
        with pytest.raises(DeliveryError, match="another run stores its events in"):
            await Store(path).__aenter__()
    async with Store(path) as store:
        assert await stored_uids(store) == ["uid-1", "uid-2"]


async def test_run_ends_if_another_run_has_taken_its_store(tmp_path: Path) -> None:
    path = tmp_path / "state" / FILE
    async with Store(path) as store:
        await store.put([event(1)])
        shutil.rmtree(path.parent)
        async with Store(path) as other:
            await other.put([event(2)])
            with pytest.raises(ClosedError, match="another run stores its events in"):
                await store.put([event(3)])
            assert await stored_uids(other) == ["uid-2"]


async def test_disk_filled_by_others_is_an_error_and_stored_events_remain(
    disk: Path,
) -> None:
    async with Store(disk / FILE) as store:
        await store.put(events(range(9)))
        ballast = fill(disk)
        with pytest.raises(DeliveryError, match=r"can't be written .*make room"):
            await store.put([event(9, 20_000)])
        assert await stored_uids(store) == uids(range(9))
        ballast.unlink()
        await store.put([event(9, 20_000)])
    async with Store(disk / FILE) as store:
        assert await stored_uids(store) == uids(range(10))
        assert await store.state.faults() == ()


_WRITER = """
import asyncio, sys
from pathlib import Path
from ocsf_nft.state.state_db import FILE
from tests.delivery.receiver import event
from tests.delivery.stores import Store

async def main() -> None:
    number = 0
    async with Store(Path(sys.argv[1]), max_bytes=1 << 30) as store:
        while True:
            await store.put([event(number * 4 + each, 200) for each in range(4)])
            number += 1
            sys.stdout.write(f"{number}\\n")
            sys.stdout.flush()

asyncio.run(main())
"""


@pytest.mark.parametrize("seconds", [0, 0.003, 0.011, 0.04])
async def test_events_of_a_finished_put_are_stored_after_a_kill(
    tmp_path: Path, seconds: float
) -> None:
    path = tmp_path / FILE
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITER, str(path), stdout=subprocess.PIPE, env=_environment()
    )
    assert writer.stdout is not None
    first = await writer.stdout.readline()
    await asyncio.sleep(seconds)
    writer.kill()
    reported = int(((await writer.stdout.read()).splitlines() or [first])[-1])
    await writer.wait()
    async with Store(path) as store:
        found = await stored_uids(store)
        assert await store.state.faults() == ()
    assert len(found) in {reported * 4, reported * 4 + 4}
    assert found == uids(range(len(found)))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


async def test_report_of_a_damaged_file_stays_until_it_is_confirmed(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(b"no database" * 1000)
    async with Store(path) as store:
        (report,) = await store.state.faults()
        assert f"{path} was damaged" in report
    async with Store(path) as store:
        assert await store.state.faults() == (report,)
        await store.state.confirm_fault(report)
        assert await store.state.faults() == ()
    async with Store(path) as store:
        assert await store.state.faults() == ()


async def test_damage_that_is_found_later_quarantines_the_file(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.put(events(range(500)))
        store.state.database.replace_account("sb", Account())
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("PRAGMA writable_schema = ON")
            other.execute("UPDATE sqlite_master SET rootpage = 9999 WHERE name = 'part'")
            other.execute("PRAGMA schema_version = 999")
        with pytest.raises(ClosedError, match=r"was damaged .* restart the service"):
            store.state.database.account("sb")
    async with Store(path) as store:
        assert len(await store.state.faults()) == 1
        await store.put(events(range(2)))
        assert await stored_uids(store) == uids(range(2))


async def test_text_that_is_no_utf8_is_read(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.put(events(range(2)))
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE event SET uid = CAST(X'75ff' AS TEXT) WHERE number = 1")
        assert await stored_uids(store) == ["u\ufffd", "uid-1"]


async def test_failed_opening_leaves_the_file_unlocked(disk: Path) -> None:
    ballast = fill(disk)
    with pytest.raises(DeliveryError):
        await Store(disk / FILE).__aenter__()
    ballast.unlink()
    async with Store(disk / FILE) as store:
        await store.put(events(range(1)))


async def test_unexpected_error_of_the_database_is_raised_by_all_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with StateStore(tmp_path / FILE, StorageRetrier(asyncio.Event())) as store:

        def fail(_: object) -> None:
            raise OverflowError("too large")

        monkeypatch.setattr(store.database, "commit", fail)
        async with asyncio.timeout(60):
            with pytest.raises(OverflowError):
                await store.commit(Change(events=[event(1)]))
            with pytest.raises(DeliveryError, match="nothing can be stored any more: too large"):
                await store.commit(Change(events=[event(2)]))


async def test_pending_changes_are_stored_at_the_end(tmp_path: Path) -> None:
    async with StateStore(tmp_path / FILE, StorageRetrier(asyncio.Event())) as store:
        committing = asyncio.create_task(store.commit(Change(events=[event(1)])))
        await asyncio.sleep(0)
        committing.cancel()
    async with Store(tmp_path / FILE) as store_again:
        assert await stored_uids(store_again) == ["uid-1"]


async def test_callers_of_a_closed_store_do_not_wait(tmp_path: Path) -> None:
    async with StateStore(tmp_path / FILE, StorageRetrier(asyncio.Event())) as store:
        committing = asyncio.create_task(store.commit(Change(events=[event(1)])))
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await committing
        with pytest.raises(DeliveryError, match="the state database is closed"):
            await store.commit(Change(events=[event(2)]))
    async with Store(tmp_path / FILE) as store_again:
        assert await stored_uids(store_again) == ["uid-1"]


async def test_callers_whose_changes_can_not_be_stored_at_the_end_get_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with StateStore(tmp_path / FILE, StorageRetrier(asyncio.Event())) as store:

        def fail(_: object) -> None:
            raise DeliveryError("the disk is full")

        monkeypatch.setattr(store.database, "commit", fail)
        committing = asyncio.create_task(store.commit(Change(events=[event(1)])))
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        with pytest.raises(DeliveryError, match="the disk is full"):
            await committing


async def test_counts_of_packets_remove_no_event(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with StateStore(path, StorageRetrier(asyncio.Event()), max_bytes=1 << 16) as store:
        store.database.retention.acknowledged = {"a": 0}
        await store.commit(Change(events=[event(1)]))
        parts = {PartKey("egress", "flows4", b"%d" % each): bytes(52) for each in range(5000)}
        await store.commit(Change(account=AccountChange("sb", parts={**parts})))
        await store.commit(Change(events=[event(2)]))
        assert path.stat().st_size + path.with_name(f"{path.name}-wal").stat().st_size > 1 << 16
        assert store.database.end == 2


@pytest.mark.parametrize("has_events", [False, True])
async def test_events_are_synced_to_the_disk_and_other_changes_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_events: bool
) -> None:
    async with StateStore(tmp_path / FILE, StorageRetrier(asyncio.Event())) as store:
        levels = []
        connection = store.database._connection
        assert connection is not None
        insert = store.database.retention.measure_free

        def measure(found: sqlite3.Connection) -> None:
            levels.append(found.execute("PRAGMA synchronous").fetchone()[0])
            insert(found)

        monkeypatch.setattr(store.database.retention, "measure_free", measure)
        account = AccountChange("sb", parts={PartKey("egress", "totals", b""): b"7"})
        lines = [event(1)] if has_events else []
        await store.commit(Change(events=lines, account=account))
        assert levels == [2 if has_events else 1]  # FULL, NORMAL
