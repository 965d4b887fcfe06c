"""Removal of the records and counts of sandboxes whose namespaces are gone."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import netns
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

    from ocsf_nft.fence.state import InstalledFence
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
    monkeypatch.setattr(reaper, "_SECONDS", 0.01)
    async with keeping.opened_store(state.path) as store, asyncio.TaskGroup() as group:
        for name in state.sandboxes():
            account = AccountChange(name, parts={PartKey("egress", "flows4", b"key"): b"value"})
            await store.commit(Change(account=account))
            state.set_account_place(
                name, AccountPlace(store.database.path, store.database.identity)
            )
        task = group.create_task(reaper.reap(state, store))
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
            await asyncio.to_thread(reaper._without_namespace, state)
            assert list(state.sandboxes()) == ["damaged", "watched"]
            assert store.database.has_account("watched")


@pytest.mark.parametrize("error", [FenceError("nft failed"), OSError("read-only")])
async def test_failed_removal_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Path, error: Exception
) -> None:
    state = StateDirectory(tmp_path / "state")
    _record(state, "gone", names / "missing")
    remove, calls = installer.remove_record, []

    def fail_once(name: str, given: StateDirectory, seen: InstalledFence) -> bool:
        calls.append(name)
        if len(calls) == 1:
            raise error
        return remove(name, given, seen)

    monkeypatch.setattr(installer, "remove_record", fail_once)
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
    monkeypatch.setattr(reaper, "_without_namespace", without_namespace)
    _record(state, "sb", names / "missing")
    async with _reaping(state, monkeypatch):
        await asyncio.wait_for(done.wait(), 60)
    assert list(state.sandboxes()) == ["sb"]


def test_nothing_is_removed_of_another_record_or_of_a_namespace_that_is_there(
    tmp_path: Path, names: Path
) -> None:
    state = StateDirectory(tmp_path / "state")
    _record(state, "sb", names / "sb")
    seen = state.read("sb")
    assert seen is not None
    assert not installer.remove_record("sb", state, replace(seen, policy="another"))
    (names / "sb").touch()
    assert not installer.remove_record("sb", state, seen)
    assert state.read("sb") == seen
    (names / "sb").unlink()
    names.rename(tmp_path / "elsewhere")
    assert not installer.remove_record("sb", state, seen), "the names can't be read"
    (tmp_path / "elsewhere").rename(names)
    assert installer.remove_record("sb", state, seen)
    assert not installer.remove_record("sb", state, seen)
    assert state.read("sb") is None
