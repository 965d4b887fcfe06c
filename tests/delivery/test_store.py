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
from tests.delivery.stores import fill, held

if TYPE_CHECKING:
    from pathlib import Path


async def test_events_are_kept_in_their_order_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.put(events(range(3)))
        await store.put(events(range(3, 5)))
        assert store.end == 5
    async with Store(path) as store:
        assert store.end == 5
        assert await held(store) == uids(range(5))
        assert [row.line for row in await store.read(3, events=1, size=1)] == [event(3)]


async def test_an_event_that_is_put_again_is_no_other_one(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE) as store:
        await store.put(events([1, 2, 2]))
        await store.put(events([2, 1, 3]))
        assert await held(store) == uids([1, 2, 3])


async def test_an_event_is_known_by_its_own_uid_whatever_is_in_its_texts(tmp_path: Path) -> None:
    inner = orjson.dumps({"metadata": {"version": "1.8.0", "uid": "forged"}}).decode()
    told = [
        orjson.dumps({"metadata": {"version": "1.8.0", "uid": "true-1"}, "raw_data": inner}),
        orjson.dumps({"raw_data": inner, "metadata": {"version": "1.8.0", "uid": "true-2"}}),
        orjson.dumps({"unmapped": {"metadata": {"uid": "x"}}, "metadata": {"uid": 'a"b\\'}}),
    ]
    async with Store(tmp_path / FILE) as store:
        await store.put(told)
        assert await held(store) == ["true-1", "true-2", 'a"b\\']


async def test_a_batch_is_bounded_by_events_and_bytes_and_has_one_at_least(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE) as store:
        await store.put([event(number, 1000) for number in range(9)])
        assert len(await store.read(0, events=4, size=1 << 20)) == 4
        assert len(await store.read(0, events=9, size=3500)) == 3
        assert len(await store.read(0, events=9, size=1)) == 1


async def test_a_batch_is_read_again_with_the_same_events_though_numbers_are_missing(
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


async def test_those_who_put_at_once_are_kept_together_and_each_learns_of_it(
    tmp_path: Path,
) -> None:
    async with Store(tmp_path / FILE) as store:
        await asyncio.gather(*(store.put([event(number)]) for number in range(200)))
        assert sorted(await held(store)) == sorted(uids(range(200)))
        assert store._waiting == []


async def test_store_keeps_all_events_that_wait_in_one_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store(tmp_path / FILE) as store:
        put, kept = store._database.put, []

        def counted(lines: list[bytes], positions: list[tuple[str, str]]) -> None:
            kept.append(len(lines))
            put(lines, positions)

        monkeypatch.setattr(store._database, "put", counted)
        is_free = threading.Event()
        before = asyncio.create_task(store._work(is_free.wait))
        waiting = [asyncio.create_task(store.put([event(number)])) for number in range(20)]
        await asyncio.sleep(0)
        is_free.set()
        await asyncio.gather(before, *waiting)
        assert kept == [20]


async def test_who_is_cancelled_leaves_nothing_that_waits(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE) as store:
        tasks = [asyncio.create_task(store.put([event(number)])) for number in range(50)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert set(uids(range(1, 50, 2))) <= set(await held(store))
        assert store._waiting == []


async def test_who_waits_for_growth_wakes_when_there_is_some(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE) as store:
        waiting = asyncio.create_task(store.wait_for_event(1))
        await store.put([event(1)])
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await store.put([event(2)])
        await asyncio.wait_for(waiting, 5)


async def test_a_new_sink_gets_what_comes_from_now_on(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        assert await store.register(["a"]) == ()
        await store.put(events(range(3)))
        await store.acknowledge("a", 1)
    async with Store(path) as store:
        assert await store.register(["a", "b"]) == ()
        assert await store.checkpoint("a") == (1, None)
        assert await store.checkpoint("b") == (3, None)


async def test_what_a_sink_that_is_gone_never_had_is_told(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE) as store:
        await store.register(["a", "b"])
        await store.put(events(range(3)))
        await store.acknowledge("a", 3)
        assert await store.register(["c"]) == (DroppedEvents("b", 3),)


async def test_how_far_a_batch_reaches_is_kept_until_it_is_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.register(["a"])
        await store.put(events(range(3)))
        await store.begin_batch("a", 2)
    async with Store(path) as store:
        assert await store.checkpoint("a") == (0, 2)
        await store.acknowledge("a", 2)
        assert await store.checkpoint("a") == (2, None)


async def test_a_source_goes_on_behind_what_was_kept_with_it(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        assert await store.position("kmsg") is None
        await store.put([event(1)], source="kmsg", position="kmsg:7")
        await store.put([], source="kmsg", position="kmsg:8")
    async with Store(path) as store:
        assert await store.position("kmsg") == "kmsg:8"
        assert await store.position("journal") is None


async def test_dead_letters_are_kept_until_they_are_delivered(tmp_path: Path) -> None:
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
async def test_a_damaged_file_is_set_aside_told_and_begun_anew(tmp_path: Path, at: int) -> None:
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
        assert await held(store) == ["uid-1"]


async def test_no_damaged_file_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / FILE
    for number in range(3):
        path.write_bytes(b"damaged %d" % number + bytes(8192))
        async with Store(path) as store:
            assert "it was renamed to" in (store.fault() or "")
        path.unlink()
    names = ("damaged", "damaged2", "damaged3")
    kept = [path.with_suffix(f".{name}").read_bytes()[:9] for name in names]
    assert kept == [b"damaged 0", b"damaged 1", b"damaged 2"]


@pytest.mark.parametrize("how", ["file", "folder", "replaced"])
async def test_a_file_that_is_removed_while_it_is_used_is_put_back(
    tmp_path: Path, how: str
) -> None:
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
        assert store.fault() is None, "nothing is lost"
    async with Store(path) as store:
        assert await held(store) == uids(range(5))
        assert store.fault() is None


async def test_a_store_has_one_run(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        with pytest.raises(DeliveryError, match=r"another run stores its events in .*store"):
            await Store(path).__aenter__()
        await store.put([event(1)])
    async with Store(path) as store:
        assert await held(store) == ["uid-1"]


async def test_a_store_whose_folder_was_removed_still_has_one_run(tmp_path: Path) -> None:
    path = tmp_path / "state" / FILE
    async with Store(path) as store:
        await store.put([event(1)])
        shutil.rmtree(path.parent)
        await store.put([event(2)])
        with pytest.raises(DeliveryError, match="another run stores its events in"):
            await Store(path).__aenter__()
    async with Store(path) as store:
        assert await held(store) == ["uid-1", "uid-2"]


async def test_a_run_whose_store_is_another_ones_by_now_ends(tmp_path: Path) -> None:
    path = tmp_path / "state" / FILE
    async with Store(path) as store:
        await store.put([event(1)])
        shutil.rmtree(path.parent)
        async with Store(path) as other:
            await other.put([event(2)])
            with pytest.raises(ClosedError, match="another run stores its events in"):
                await store.put([event(3)])
            assert await held(other) == ["uid-2"]


async def test_a_letter_that_made_room_while_it_was_tried_again_takes_no_other_along(
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


async def test_a_disk_that_others_have_filled_is_one_sentence_and_nothing_is_lost(
    disk: Path,
) -> None:
    async with Store(disk / FILE) as store:
        await store.put(events(range(9)))
        ballast = fill(disk)
        with pytest.raises(DeliveryError, match=r"can't be written .*make room"):
            await store.put([event(9, 20_000)])
        assert await held(store) == uids(range(9))
        ballast.unlink()
        await store.put([event(9, 20_000)])
    async with Store(disk / FILE) as store:
        assert await held(store) == uids(range(10))
        assert store.fault() is None


async def test_a_store_is_removed_when_nobody_needs_anything_of_it(tmp_path: Path) -> None:
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
    async with asyncio.timeout(10):
        while set(threading.enumerate()) - before:  # noqa: ASYNC110 - a thread says nothing
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("seconds", [0, 0.003, 0.011, 0.04])
async def test_what_was_put_is_there_after_a_kill(tmp_path: Path, seconds: float) -> None:
    path = tmp_path / FILE
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITER, str(path), stdout=subprocess.PIPE, env=_environment()
    )
    assert writer.stdout is not None
    first = await writer.stdout.readline()
    await asyncio.sleep(seconds)
    writer.kill()
    told = int(((await writer.stdout.read()).splitlines() or [first])[-1])
    await writer.wait()
    async with Store(path) as store:
        found = await held(store)
        assert store.fault() is None
    assert len(found) in {told * 4, told * 4 + 4}
    assert found == uids(range(len(found)))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
