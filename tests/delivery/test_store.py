from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import orjson
import pytest

from ocsf_nft.delivery import stored_events
from ocsf_nft.delivery.event_db import FILE, RefusedEvent
from ocsf_nft.delivery.retention import DroppedEvents
from ocsf_nft.delivery.store import Store
from ocsf_nft.errors import ClosedError, DeliveryError
from tests.delivery.receiver import event, events, uids
from tests.delivery.stores import fill, stored_uids

if TYPE_CHECKING:
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
        assert [row.uid for row in await store.read_until(0, 5)] == uids([0, 3, 4])


async def test_concurrent_puts_are_all_stored_and_all_return(
    tmp_path: Path,
) -> None:
    async with Store(tmp_path / FILE) as store:
        await asyncio.gather(*(store.put([event(number)]) for number in range(200)))
        assert sorted(await stored_uids(store)) == sorted(uids(range(200)))
        assert store._waiting == []


async def test_store_writes_all_waiting_events_in_one_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store(tmp_path / FILE) as store:
        put, sizes = store._database.put, []

        def counted(lines: list[bytes], positions: list[tuple[str, str]]) -> None:
            sizes.append(len(lines))
            put(lines, positions)

        monkeypatch.setattr(store._database, "put", counted)
        is_free = threading.Event()
        before = asyncio.create_task(store._work(is_free.wait))
        waiting = [asyncio.create_task(store.put([event(number)])) for number in range(20)]
        await asyncio.sleep(0)
        is_free.set()
        await asyncio.gather(before, *waiting)
        assert sizes == [20]


async def test_cancelled_put_leaves_no_waiting_events(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE) as store:
        tasks = [asyncio.create_task(store.put([event(number)])) for number in range(50)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert set(uids(range(1, 50, 2))) <= set(await stored_uids(store))
        assert store._waiting == []


async def test_wait_for_an_event_ends_when_it_is_stored(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE) as store:
        waiting = asyncio.create_task(store.wait_for_event(1))
        await store.put([event(1)])
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await store.put([event(2)])
        await asyncio.wait_for(waiting, 60)


async def test_new_sink_gets_only_later_events(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        assert await store.register(["a"]) == ()
        await store.put(events(range(3)))
        await store.acknowledge("a", 1)
    async with Store(path) as store:
        assert await store.register(["a", "b"]) == ()
        assert await store.checkpoint("a") == (1, None)
        assert await store.checkpoint("b") == (3, None)


async def test_undelivered_events_of_a_removed_sink_are_returned(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE) as store:
        await store.register(["a", "b"])
        await store.put(events(range(3)))
        await store.acknowledge("a", 3)
        assert await store.register(["c"]) == (DroppedEvents("b", 3),)


async def test_end_of_a_batch_is_stored_until_it_is_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.register(["a"])
        await store.put(events(range(3)))
        await store.begin_batch("a", 2)
    async with Store(path) as store:
        assert await store.checkpoint("a") == (0, 2)
        await store.acknowledge("a", 2)
        assert await store.checkpoint("a") == (2, None)


async def test_position_of_a_source_is_stored_with_its_events(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        assert await store.position("kmsg") is None
        await store.put([event(1)], source="kmsg", position="kmsg:7")
        await store.put([], source="kmsg", position="kmsg:8")
    async with Store(path) as store:
        assert await store.position("kmsg") == "kmsg:8"
        assert await store.position("journal") is None


async def test_dead_letters_are_stored_until_they_are_delivered(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.register(["a"])
        await store.put(events(range(2)))
        await store.acknowledge("a", 2, [RefusedEvent("uid-1", event(1), "too odd")])
        assert await store.dead_letters_to_retry("a", events=9) == []
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE dead SET is_again = 1")
    async with Store(path) as store:
        (letter,) = await store.dead_letters_to_retry("a", events=9)
        assert (letter.uid, letter.reason, letter.line) == ("uid-1", "too odd", event(1))
        await store.finish_retries([], [(letter, "still odd")])
        assert await store.dead_letters_to_retry("a", events=9) == []
        assert await store.count_dead_letters("a") == 1
        await store.finish_retries([letter], [])
        assert await store.count_dead_letters("a") == 0


@pytest.mark.parametrize("at", [0, 5000, 30_000])
async def test_damaged_file_is_quarantined_reported_and_replaced(tmp_path: Path, at: int) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.put([event(number, 300) for number in range(500)])
        assert store.fault() is None
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 4096)
    damaged = path.read_bytes()
    async with Store(path) as store:
        fault = store.fault()
        assert fault is not None
        assert "it was renamed to" in fault
        assert path.with_suffix(".damaged").read_bytes() == damaged
        await store.put([event(1)])
        assert await stored_uids(store) == ["uid-1"]


async def test_damaged_file_does_not_overwrite_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / FILE
    for number in range(3):
        path.write_bytes(b"damaged %d" % number + bytes(8192))
        async with Store(path) as store:
            assert "it was renamed to" in (store.fault() or "")
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
        assert await store.checkpoint("a") == (0, None)
        assert store.fault() is None, "no event is dropped"
    async with Store(path) as store:
        assert await stored_uids(store) == uids(range(5))
        assert store.fault() is None


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


async def test_dead_letter_removed_during_its_retry_removes_no_other(
    tmp_path: Path,
) -> None:
    path = tmp_path / FILE
    async with Store(path, max_seconds=60) as store:
        await store.register(["a", "b"])
        await store.put(events(range(2)))
        await store.acknowledge("a", 1, [RefusedEvent("uid-0", event(0), "no")])
        stored_events.retry_dead_letters(path, None, None)
        tried = await store.dead_letters_to_retry("a", events=9)
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("DELETE FROM dead")  # as retention does
        await store.acknowledge("b", 2, [RefusedEvent("uid-1", event(1), "no")])
        await store.finish_retries(tried, [])
        assert await store.count_dead_letters("b") == 1


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
        assert store.fault() is None


async def test_store_is_removed_when_no_sink_needs_its_events(tmp_path: Path) -> None:
    path = tmp_path / "sb" / FILE
    async with Store(path) as store:
        await store.register(["a"])
        await store.put([event(1)])
        assert not await store.remove()
        await store.acknowledge("a", 1, [RefusedEvent("uid-1", event(1), "bad")])
        assert not await store.remove()
        stored_events.retry_dead_letters(path, None, None)
        await store.finish_retries(await store.dead_letters_to_retry("a", events=1), [])
        assert await store.remove()
    assert not path.parent.exists()


_WRITER = """
import asyncio, sys
from pathlib import Path
from ocsf_nft.delivery.store import Store
from tests.delivery.receiver import event

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


async def test_store_that_cannot_be_opened_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    async with Store(tmp_path / FILE):
        other = Store(tmp_path / FILE)
        with pytest.raises(DeliveryError, match="another run"):
            await other.__aenter__()
    async with asyncio.timeout(60):
        while set(threading.enumerate()) - before:  # noqa: ASYNC110 - no event announces the end of a thread
            await asyncio.sleep(0.01)


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
        assert store.fault() is None
    assert len(found) in {reported * 4, reported * 4 + 4}
    assert found == uids(range(len(found)))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
