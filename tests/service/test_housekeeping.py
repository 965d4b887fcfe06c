"""Housekeeping of a run: removal of old events and old records, and reports of dropped events."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import orjson
import pytest

from ocsf_nft import malloc_trim, netns
from ocsf_nft.delivery import sink_db
from ocsf_nft.errors import FenceError
from ocsf_nft.fence import ended_namespaces
from ocsf_nft.fence.state import AccountPlace, StateDirectory
from ocsf_nft.netns import Namespace
from ocsf_nft.service import housekeeping
from ocsf_nft.service.event_rendering import Reporter
from ocsf_nft.service.outlet import Outlet
from ocsf_nft.state import dropped_events
from ocsf_nft.state.archive import Archive
from ocsf_nft.state.change import AccountChange, Change, PartKey
from ocsf_nft.state.dropped_events import DroppedEvents
from ocsf_nft.state.retention import FullError
from ocsf_nft.state.state_db import FILE
from tests.delivery.receiver import Receiver, event
from tests.service import keeping
from tests.service.delivering import Delivering
from tests.service.keeping import MemoryStore
from tests.standing import INSTALLED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ocsf_nft.fence.state import InstalledFence
    from ocsf_nft.service.delivery_process import DeliveryProcess
    from ocsf_nft.service.health import Fault
    from ocsf_nft.state.state_store import StateStore

#: Watches a sandbox until its standard input ends.
_WATCH = """
import sys
from pathlib import Path
from ocsf_nft.fence.state import StateDirectory
with StateDirectory(Path(sys.argv[1])).run_lock(sys.argv[2]):
    print("watched", flush=True)
    sys.stdin.read()
"""


def _process(delivery: Delivering) -> DeliveryProcess:
    """Return the delivery in place of a process that has it."""
    return cast("DeliveryProcess", delivery)


def _no_faults() -> tuple[Fault, ...]:
    return ()


async def test_full_store_is_swept_while_no_event_can_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "_SECONDS", 0.05)
    now_ns = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: now_ns)
    stop = asyncio.Event()
    down = Outlet(name="down", sink=Receiver(down=True))
    limits = {"max_bytes": 1 << 20, "max_seconds": 60}
    async with Delivering([down], tmp_path, stop, **limits) as delivery:
        store = delivery.store
        delivery.is_abandoned = True  # the end waits for no sink
        number = 0
        with contextlib.suppress(FullError):
            while True:
                store.database.retention.make_room()
                store.database.commit([Change(events=[event(number, 500 if number else 0)])])
                number += 1
                now_ns += 10**6
        reporter = Reporter(store.commit, host=None)
        housekeeping_task = asyncio.create_task(
            housekeeping.run_housekeeping(store, _process(delivery), reporter, _no_faults)
        )
        now_ns += (
            60 * 10**9 - number * 10**6 + 10**6
        )  # one event is too old; its removal makes no room
        await _until(lambda: delivery.retrier.fault is not None)
        now_ns += 60 * 10**9
        await _until(lambda: reporter.events == 1)
        with Archive(store.database.path) as archive:
            left = archive.read(0)
        assert [row.number for row in left] == [number + 1], "the event that reports the others"
        async with asyncio.timeout(60):
            while await store.dropped_events():  # noqa: ASYNC110 - no other task waits
                await asyncio.sleep(0.01)
        housekeeping_task.cancel()
        stop.set()


async def test_housekeeping_sweeps_and_reports_every_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    many = asyncio.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 5:
            many.set()
        await asyncio.Event().wait() if many.is_set() else await _sleep(0)

    _sleep = asyncio.sleep
    async with Delivering([], tmp_path) as delivery:
        store = delivery.store
        monkeypatch.setattr(asyncio, "sleep", sleep)
        housekeeping_task = asyncio.create_task(
            housekeeping.run_housekeeping(
                store, _process(delivery), Reporter(store.commit, host=None), _no_faults
            )
        )
        async with asyncio.timeout(60):
            await many.wait()
        monkeypatch.undo()
        housekeeping_task.cancel()
    assert set(pauses) - {0} == {10.0, housekeeping._TRIM_SECONDS}


@pytest.mark.parametrize("file", [Path(FILE), sink_db.path_of(Path(FILE))], ids=str)
async def test_damaged_file_is_reported_once_as_dropped_events(tmp_path: Path, file: Path) -> None:
    file = tmp_path / file
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"no database" * 1000)
    sink = MemoryStore()
    reporter = Reporter(sink.commit, host=None)
    async with Delivering([], tmp_path) as delivery:
        housekeeping_task = asyncio.create_task(
            housekeeping.run_housekeeping(delivery.store, _process(delivery), reporter, _no_faults)
        )
        await _until(lambda: bool(sink.events))
        await housekeeping.report_dropped_events(
            delivery.store, _process(delivery), reporter, 1_000_000
        )
        housekeeping_task.cancel()
    (event_of_drop,) = sink.events
    assert f"{file} was damaged" in event_of_drop["status_detail"]
    assert "a new file was created" in event_of_drop["status_detail"]
    assert event_of_drop.get("count") is None


async def test_killed_run_has_reported_dropped_events_or_reports_them_later(tmp_path: Path) -> None:
    numbers: list[int] = []

    async with Delivering([], tmp_path) as delivery:
        store = delivery.store
        with store.database.transaction() as connection:
            for sink in ("a", "b"):
                dropped_events.add(connection, DroppedEvents(sink, 5))

        async def commit(change: Change) -> None:
            await store.commit(change)
            numbers.append(len(change.events))
            raise asyncio.CancelledError  # as after a kill

        for _ in range(3):
            with contextlib.suppress(asyncio.CancelledError):
                reporter = Reporter(commit, host=None)
                await housekeeping.report_dropped_events(store, _process(delivery), reporter, 1)
        with Archive(store.database.path) as archive:
            found = [orjson.loads(each.line)["count"] for each in archive.read(0)]
    assert (numbers, found) == ([1, 1], [5, 5])


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110 - no other task waits
            await asyncio.sleep(0.01)


def _record(
    state: StateDirectory, name: str, path: Path, *, identity: str = INSTALLED.identity
) -> None:
    spec = replace(INSTALLED.spec, sandbox=name)
    state.write(replace(INSTALLED, spec=spec, namespace=Namespace(path), identity=identity))


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory with the names of namespaces."""
    made = tmp_path / "netns"
    made.mkdir()
    monkeypatch.setattr(netns, "NAMED", made)
    return made


@contextlib.asynccontextmanager
async def _reaping(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[StateStore]:
    monkeypatch.setattr(housekeeping, "_REAP_SECONDS", 0.01)
    async with keeping.opened_store(state.path) as store, asyncio.TaskGroup() as group:
        for name in state.sandboxes():
            account = AccountChange(name, parts={PartKey("egress", "flows4", b"key"): b"value"})
            await store.commit(Change(account=account))
            state.set_account_place(
                name, AccountPlace(store.database.path, store.database.identity)
            )
        task = group.create_task(housekeeping.reap(state, store, Reporter(store.commit, None)))
        yield store
        task.cancel()


async def _until_gone(state: StateDirectory, name: str) -> None:
    async with asyncio.timeout(60):
        while name in state.sandboxes():  # noqa: ASYNC110 - a file is removed
            await asyncio.sleep(0.01)


async def test_record_and_counts_go_with_the_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Path
) -> None:
    state = StateDirectory(tmp_path / "state")
    there = names / "there"
    there.touch()
    _record(state, "gone", names / "missing")
    _record(state, "there", there)
    _record(state, "unknown", tmp_path / "missing")  # as the namespace of an invisible process
    async with _reaping(state, monkeypatch) as store:
        await _until_gone(state, "gone")
        there.unlink()
        await _until_gone(state, "there")
    for name in ("gone", "there"):
        assert not store.database.has_account(name)
        assert not state.directory(name).exists()
    assert list(state.sandboxes()) == ["unknown"]


async def test_watched_sandbox_and_unreadable_record_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Path
) -> None:
    state = StateDirectory(tmp_path / "state")
    for name in ("watched", "damaged", "gone"):
        _record(state, name, names / "missing")
    (state.directory("damaged") / "fence.json").write_text("{")
    command = [sys.executable, "-c", _WATCH, str(state.path), "watched"]
    with subprocess.Popen(  # noqa: ASYNC220 - it is ready within a moment
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == "watched\n"
        async with _reaping(state, monkeypatch) as store:
            await _until_gone(state, "gone")
            await asyncio.to_thread(housekeeping._without_namespace, state)
            assert list(state.sandboxes()) == ["damaged", "watched"]
            assert store.database.has_account("watched")


@pytest.mark.parametrize("error", [FenceError("nft failed"), OSError("read-only")])
async def test_failed_removal_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Path, error: Exception
) -> None:
    state = StateDirectory(tmp_path / "state")
    _record(state, "gone", names / "missing")
    remove, calls = ended_namespaces.remove_record, []

    def fail_once(
        name: str, given: StateDirectory, identity: str, *, abandons: bool = False
    ) -> bool:
        calls.append(name)
        if len(calls) == 1:
            raise error
        return remove(name, given, identity, abandons=abandons)

    monkeypatch.setattr(ended_namespaces, "remove_record", fail_once)
    async with _reaping(state, monkeypatch) as store:
        await _until_gone(state, "gone")
        async with asyncio.timeout(60):
            while store.database.has_account("gone"):  # noqa: ASYNC110 - a row is removed
                await asyncio.sleep(0.01)
    assert calls == ["gone", "gone"]


async def test_sandbox_that_was_missing_for_a_moment_or_installed_again_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Path
) -> None:
    state = StateDirectory(tmp_path / "state")
    other = replace(INSTALLED, policy="another")
    answers = iter([{"sb": INSTALLED}, {}, {"sb": INSTALLED}, {"sb": other}, {"sb": INSTALLED}, {}])
    done = asyncio.Event()

    def without_namespace(_: StateDirectory) -> dict[str, InstalledFence]:
        found: dict[str, InstalledFence] | None = next(answers, None)
        if found is None:
            loop.call_soon_threadsafe(done.set)
        return found or {}

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(housekeeping, "_without_namespace", without_namespace)
    _record(state, "sb", names / "missing")
    async with _reaping(state, monkeypatch):
        await asyncio.wait_for(done.wait(), 60)
    assert list(state.sandboxes()) == ["sb"]


def test_nothing_is_removed_of_another_record_or_of_a_namespace_that_is_there(
    tmp_path: Path, names: Path
) -> None:
    state = StateDirectory(tmp_path / "state")
    (names / "sb").touch()
    identity = Namespace(names / "sb").identity()
    _record(state, "sb", names / "sb", identity=identity)
    seen = state.read("sb")
    assert seen is not None
    assert not ended_namespaces.remove_record("sb", state, "4:2")
    assert not ended_namespaces.remove_record("sb", state, identity)
    assert state.read("sb") == seen
    (names / "sb").unlink()
    assert not ended_namespaces.remove_record("sb", state, "4:2")
    assert ended_namespaces.remove_record("sb", state, identity)
    assert not ended_namespaces.remove_record("sb", state, identity)
    assert state.read("sb") is None


async def test_free_memory_is_returned_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed = asyncio.Event()
    monkeypatch.setattr(housekeeping, "_TRIM_SECONDS", 0.0)
    monkeypatch.setattr(malloc_trim, "trim", trimmed.set)
    trimming = asyncio.create_task(housekeeping._trim_memory())
    async with asyncio.timeout(60):
        await trimmed.wait()
    trimming.cancel()
    await asyncio.wait({trimming})
