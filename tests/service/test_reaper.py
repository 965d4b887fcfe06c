"""Removal of the records and counts of sandboxes whose namespaces are gone."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from ocsf_nft.errors import FenceError
from ocsf_nft.fence import installer
from ocsf_nft.fence.state import AccountPlace, StateDirectory
from ocsf_nft.netns import Namespace
from ocsf_nft.service import reaper
from ocsf_nft.state.change import AccountChange, Change, PartKey
from tests.service import keeping
from tests.standing import INSTALLED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

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


def _record(state: StateDirectory, name: str, path: Path) -> None:
    spec = replace(INSTALLED.spec, sandbox=name)
    state.write(replace(INSTALLED, spec=spec, namespace=Namespace(path)))


@contextlib.asynccontextmanager
async def _reaping(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[StateStore]:
    monkeypatch.setattr(reaper, "_SECONDS", 0.01)
    async with keeping.opened_store(state.path) as store, asyncio.TaskGroup() as group:
        for name in state.sandboxes():
            account = AccountChange(name, parts={PartKey("egress", "flows4", b"key"): b"value"})
            await store.commit(Change(account=account))
            state.set_account_place(name, AccountPlace(store.path, store.identity))
        task = group.create_task(reaper.reap(state, store))
        yield store
        task.cancel()


async def _until_gone(state: StateDirectory, name: str) -> None:
    async with asyncio.timeout(60):
        while name in state.sandboxes():  # noqa: ASYNC110 - a file is removed
            await asyncio.sleep(0.01)


async def test_record_and_counts_go_with_the_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDirectory(tmp_path / "state")
    there = tmp_path / "netns"
    there.touch()
    _record(state, "gone", tmp_path / "missing")
    _record(state, "there", there)
    async with _reaping(state, monkeypatch) as store:
        await _until_gone(state, "gone")
        there.unlink()
        await _until_gone(state, "there")
    for name in ("gone", "there"):
        assert not store.has_account(name)
        assert not state.directory(name).exists()


async def test_watched_sandbox_and_unreadable_record_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDirectory(tmp_path / "state")
    for name in ("watched", "damaged", "gone"):
        _record(state, name, tmp_path / "missing")
    (state.directory("damaged") / "fence.json").write_text("{")
    command = [sys.executable, "-c", _WATCH, str(state.path), "watched"]
    with subprocess.Popen(  # noqa: ASYNC220 - it is ready within a moment
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == "watched\n"
        async with _reaping(state, monkeypatch) as store:
            await _until_gone(state, "gone")
            await asyncio.to_thread(reaper._without_namespace, state)
            assert list(state.sandboxes()) == ["damaged", "watched"]
            assert store.has_account("watched")


async def test_failed_removal_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDirectory(tmp_path / "state")
    _record(state, "gone", tmp_path / "missing")
    calls = []

    def fail_once(name: str, given: StateDirectory) -> None:
        calls.append(name)
        if len(calls) == 1:
            raise FenceError("nft failed")
        given.delete(name)

    monkeypatch.setattr(installer, "remove", fail_once)
    async with _reaping(state, monkeypatch) as store:
        await _until_gone(state, "gone")
        async with asyncio.timeout(60):
            while store.has_account("gone"):  # noqa: ASYNC110 - a row is removed
                await asyncio.sleep(0.01)
    assert calls == ["gone", "gone"]


async def test_namespace_that_is_missing_for_a_moment_keeps_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDirectory(tmp_path / "state")
    answers = iter([frozenset({"sb"}), frozenset[str](), frozenset({"sb"}), frozenset[str]()])
    done = asyncio.Event()

    def without_namespace(_: StateDirectory) -> frozenset[str]:
        found = next(answers, None)
        if found is None:
            loop.call_soon_threadsafe(done.set)
        return found or frozenset()

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(reaper, "_without_namespace", without_namespace)
    _record(state, "sb", tmp_path / "missing")
    async with _reaping(state, monkeypatch):
        await asyncio.wait_for(done.wait(), 60)
    assert list(state.sandboxes()) == ["sb"]
