from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from hashlib import sha256
from typing import TYPE_CHECKING

import orjson
import pytest

from ocsf_nft.delivery import archive
from ocsf_nft.delivery.retention import Forgotten, FullError
from ocsf_nft.delivery.shelf import FILE, Refused
from ocsf_nft.delivery.store import Store
from ocsf_nft.errors import ClosedError, DeliveryError
from tests.delivery.receiver import event, events, uids

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


async def held(store: Store, beyond: int = 0) -> list[str]:
    return [row.uid for row in await store.read(beyond, events=1 << 20, size=1 << 40)]


async def swept(store: Store) -> tuple[Forgotten, ...]:
    await store.sweep()
    return await store.forgotten()


async def put_until(store: Store, error: type[DeliveryError], sentence: str, size: int) -> int:
    """Put event after event until that fails; how many were put."""
    first = store.end
    try:
        for number in range(first, first + 10_000):
            await store.put([event(number, size)])
    except error as raised:
        if re.search(sentence, str(raised)):
            return store.end - first
        raise
    pytest.fail("it never failed")


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
        waiting = asyncio.create_task(store.grown(1))
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
        assert await store.register(["c"]) == (Forgotten("b", 3),)


async def test_how_far_a_batch_reaches_is_kept_until_it_is_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with Store(path) as store:
        await store.register(["a"])
        await store.put(events(range(3)))
        await store.sending("a", 2)
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
        await store.acknowledge("a", 2, [Refused("uid-1", event(1), "too odd")])
        assert await store.dead("a", events=9) == []
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE dead SET is_again = 1")
    async with Store(path) as store:
        (letter,) = await store.dead("a", events=9)
        assert (letter.uid, letter.reason, letter.line) == ("uid-1", "too odd", event(1))
        await store.bury([], [(letter, "still odd")])
        assert await store.dead("a", events=9) == []
        assert await store.dead_number("a") == 1
        await store.bury([letter], [])
        assert await store.dead_number("a") == 0


async def test_room_is_made_of_what_every_sink_has(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE, most_bytes=1 << 20) as store:
        await store.register(["a", "b"])
        for number in range(0, 6000, 10):
            await store.put([event(each, 500) for each in range(number, number + 10)])
            await store.acknowledge("a", store.end)
            await store.acknowledge("b", store.end)
            assert store.used_bytes <= (1 << 20) + (1 << 16)
        left = await held(store)
        assert left[-1] == "uid-5999"
        assert 0 < len(left) < 3000
        assert await swept(store) == ()


async def test_a_store_that_a_sink_still_needs_is_full_until_the_sink_has_it(
    tmp_path: Path,
) -> None:
    async with Store(tmp_path / FILE, most_bytes=1 << 20) as store:
        await store.register(["a", "b"])
        number = await put_until(store, FullError, "sinks have not had yet", 5000)
        assert number > 150
        assert len(await held(store)) == number
        await store.acknowledge("a", store.end)
        with pytest.raises(FullError):
            await store.put([event(number)])
        await store.acknowledge("b", number // 2)
        await store.put([event(number)])
        assert (await held(store))[-1] == f"uid-{number}"
        assert (await held(store, number // 2))[0] == f"uid-{number // 2}"


async def test_with_drops_the_oldest_goes_and_is_told_for_each_sink(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE, most_bytes=1 << 20, drops=True) as store:
        await store.register(["a", "b"])
        for number in range(800):
            await store.put([event(number, 5000)])
        left = await held(store)
        assert left == uids(range(800 - len(left), 800))
        assert 100 < len(left) < 250, "and no more of it than makes room"
        forgotten = await swept(store)
        assert dict(forgotten) == {"a": 800 - len(left), "b": 800 - len(left)}
    async with Store(tmp_path / FILE) as store:
        assert await swept(store) == forgotten, "until it is told"
        await store.told(forgotten)
        assert await swept(store) == ()


async def test_dead_letters_go_before_what_a_sink_still_needs(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE, most_bytes=1 << 20, drops=True) as store:
        await store.register(["a", "b"])
        for number in range(50):
            line = event(number, 5000)
            await store.put([line])
            await store.acknowledge("a", store.end, [Refused(f"uid-{number}", line, "no")])
        while await store.dead_number("a"):
            number += 1
            await store.put([event(number, 5000)])
            await store.acknowledge("a", store.end)
        assert await held(store) == uids(range(number + 1))
        assert await swept(store) == (Forgotten("a", 50),)


async def test_a_sink_that_refuses_everything_does_not_fill_the_store(tmp_path: Path) -> None:
    async with Store(tmp_path / FILE, most_bytes=1 << 20) as store:
        await store.register(["a"])
        for number in range(600):
            line = event(number, 5000)
            await store.put([line])
            await store.acknowledge("a", store.end, [Refused(f"uid-{number}", line, "no")])
        kept = await store.dead_number("a")
        assert 0 < kept < 600
        assert await swept(store) == (Forgotten("a", 600 - kept),)


async def test_what_is_too_old_goes_and_is_told_where_a_sink_needed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store(tmp_path / FILE, most_seconds=60) as store:
        await store.register(["a", "b"])
        await store.put(events(range(3)))
        await store.acknowledge("a", 3, [Refused("uid-0", event(0), "no")])
        await store.acknowledge("b", 1)
        assert await swept(store) == ()
        later_ns = time.monotonic_ns() + 61 * 10**9
        monkeypatch.setattr(time, "monotonic_ns", lambda: later_ns)
        await store.put([event(3)])
        assert await swept(store) == (Forgotten("a", 1), Forgotten("b", 2))
        assert await store.dead_number("a") == 0
        assert await held(store) == ["uid-3"]


async def test_a_clock_that_jumps_makes_nothing_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store(tmp_path / FILE, most_seconds=60) as store:
        await store.put(events(range(3)))
        century_ns = 100 * 366 * 86_400 * 10**9
        for jump in (century_ns, -century_ns):
            now_ns = time.time_ns() + jump
            monkeypatch.setattr(time, "time_ns", lambda now_ns=now_ns: now_ns)
            assert await swept(store) == ()
            await store.put(events(range(3, 5)))
        assert await held(store) == uids(range(5))


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
        assert "it is set aside as" in fault
        assert path.with_suffix(".damaged").read_bytes() == damaged
        await store.put([event(1)])
        assert await held(store) == ["uid-1"]


async def test_no_damaged_file_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / FILE
    for number in range(3):
        path.write_bytes(b"damaged %d" % number + bytes(8192))
        async with Store(path) as store:
            assert "it is set aside as" in (store.fault() or "")
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
        with pytest.raises(DeliveryError, match=r"another run keeps its events in .*store"):
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
        with pytest.raises(DeliveryError, match="another run keeps its events in"):
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
            with pytest.raises(ClosedError, match="another run keeps its events in"):
                await store.put([event(3)])
            assert await held(other) == ["uid-2"]


async def test_a_letter_that_made_room_while_it_was_tried_again_takes_no_other_along(
    tmp_path: Path,
) -> None:
    path = tmp_path / FILE
    async with Store(path, most_seconds=60) as store:
        await store.register(["a", "b"])
        await store.put(events(range(2)))
        await store.acknowledge("a", 1, [Refused("uid-0", event(0), "no")])
        archive.retry(path, None, None)
        tried = await store.dead("a", events=9)
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("DELETE FROM dead")  # as retention does
        await store.acknowledge("b", 2, [Refused("uid-1", event(1), "no")])
        await store.bury(tried, [])
        assert await store.dead_number("b") == 1


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


def fill(folder: Path, left: int = 0) -> Path:
    """Leave so many bytes free."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while shutil.disk_usage(folder).free > left:
            file.write(b"\0" * 4096)
    return path


async def test_on_a_small_disk_room_is_made_of_what_every_sink_has(disk: Path) -> None:
    async with Store(disk / FILE) as store:
        await store.register(["a"])
        for number in range(0, 6000, 20):
            await store.put([event(each, 5000) for each in range(number, number + 20)])
            await store.acknowledge("a", store.end)
        assert (await held(store))[-1] == "uid-5999"
        assert await swept(store) == ()


async def test_on_a_small_disk_nothing_is_removed_that_a_sink_needs(disk: Path) -> None:
    async with Store(disk / FILE) as store:
        await store.register(["a"])
        number = await put_until(store, FullError, "the disk is nearly full", 20_000)
        assert await held(store) == uids(range(number))
        await store.acknowledge("a", number)
        await store.put([event(number, 20_000)])
        assert await swept(store) == ()


async def test_on_a_small_disk_with_drops_the_oldest_goes_and_is_told(disk: Path) -> None:
    async with Store(disk / FILE, drops=True) as store:
        await store.register(["a"])
        for number in range(3000):
            await store.put([event(number, 20_000)])
        left = await held(store)
        assert left == uids(range(3000 - len(left), 3000))
        assert await swept(store) == (Forgotten("a", 3000 - len(left)),)


def real(numbers: Iterable[int]) -> list[bytes]:
    """As large as ours, and their uids are in no order: SQLite keeps them all over its index."""
    return [
        orjson.dumps({"metadata": {"uid": sha256(b"%d" % number).hexdigest()}, "pad": "x" * 1000})
        for number in numbers
    ]


async def _stored(store: Store, most: int) -> None:
    for number in range(0, most, 500):
        await store.put(real(range(number, number + 500)))


@pytest.mark.parametrize("drops", [False, True])
async def test_on_a_disk_that_others_fill_nothing_is_given_up_to_no_avail(
    large_disk: Path, drops: bool
) -> None:
    async with Store(large_disk / FILE, drops=drops) as store:
        await store.register(["a", "b"])
        await store.put(events(range(20)))
        await store.acknowledge("a", 20, [Refused("uid-0", event(0), "no")])
        fill(large_disk, left=10 << 20)
        with pytest.raises(FullError, match="the disk is nearly full"):
            await store.put(events(range(20, 30)))
        assert await held(store) == uids(range(20))
        assert await store.dead_number("a") == 1
        assert await swept(store) == ()


async def test_a_large_store_makes_room_on_a_disk_that_is_nearly_full(large_disk: Path) -> None:
    """What SQLite keeps of a change on the disk besides must be had there."""
    async with Store(large_disk / FILE) as store:
        await store.register(["a"])
        await _stored(store, 80_000)
        await store.acknowledge("a", store.end)
    fill(large_disk, left=6 << 20)
    async with Store(large_disk / FILE) as store:
        for number in range(80_000, 83_000, 20):
            await store.put(real(range(number, number + 20)))
            await store.acknowledge("a", store.end)
        assert await swept(store) == ()


async def test_what_is_too_old_goes_on_a_disk_that_is_nearly_full(
    large_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store(large_disk / FILE, most_seconds=60) as store:
        await store.register(["a"])
        await _stored(store, 80_000)
    fill(large_disk, left=6 << 20)
    async with Store(large_disk / FILE, most_seconds=60) as store:
        later_ns = time.monotonic_ns() + 61 * 10**9
        monkeypatch.setattr(time, "monotonic_ns", lambda: later_ns)
        assert await swept(store) == (Forgotten("a", 80_000),)
        assert await held(store) == []


async def test_a_store_is_removed_when_nobody_needs_anything_of_it(tmp_path: Path) -> None:
    path = tmp_path / "sb" / FILE
    async with Store(path) as store:
        await store.register(["a"])
        await store.put([event(1)])
        assert not await store.remove()
        await store.acknowledge("a", 1, [Refused("uid-1", event(1), "bad")])
        assert not await store.remove()
        archive.retry(path, None, None)
        await store.bury(await store.dead("a", events=1), [])
        assert await store.remove()
    assert not path.parent.exists()


_WRITER = """
import asyncio, sys
from pathlib import Path
from ocsf_nft.delivery.store import Store
from tests.delivery.receiver import event

async def main() -> None:
    number = 0
    async with Store(Path(sys.argv[1]), most_bytes=1 << 20) as store:
        while True:
            await store.put([event(number * 4 + each, 200) for each in range(4)])
            number += 1
            sys.stdout.write(f"{number}\\n")
            sys.stdout.flush()

asyncio.run(main())
"""


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
