"""Records of installed fences, and their locks."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from ocsf_nft.errors import DeliveryError, FenceError, SourceError, UsageError
from ocsf_nft.fence import kernel_log_sysctl
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.netns import named
from ocsf_nft.state.database_lock import FileLock
from tests.standing import INSTALLED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.fence.spec import LogTransport

_SANDBOX = INSTALLED.spec.sandbox


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path / "state")


def _until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def _is_waited_for(directory: Path) -> bool:
    """Return whether a thread or process waits for a lock on a file in a directory."""
    inodes = {str(each.stat().st_ino) for each in directory.iterdir()}
    waiting = (line for line in Path("/proc/locks").read_text().splitlines() if "->" in line)
    return any(line.split()[-3].rpartition(":")[2] in inodes for line in waiting)


def test_state_lock_has_one_holder_at_a_time(state: StateDirectory) -> None:
    entered = threading.Event()

    def enter() -> None:
        with state.locked():
            entered.set()

    other = threading.Thread(target=enter)
    with state.locked():
        other.start()
        _until(lambda: entered.is_set() or _is_waited_for(state.path))
        assert not entered.is_set()
    other.join(10)
    assert entered.is_set()


@pytest.mark.parametrize(("changed", "waits"), [(_SANDBOX, True), ("another", False)])
def test_restore_waits_only_for_changes_of_its_own_fence(
    state: StateDirectory, changed: str, waits: bool
) -> None:
    entered = threading.Event()

    def enter() -> None:
        with state.fence_locked(_SANDBOX):
            entered.set()

    other = threading.Thread(target=enter)
    with state.locked(changed):
        other.start()
        _until(lambda: entered.is_set() or _is_waited_for(state.path))
        assert entered.is_set() is not waits
    other.join(10)
    assert entered.is_set()


def test_a_name_with_a_path_is_watched_by_no_run(state: StateDirectory) -> None:
    with pytest.raises(UsageError, match="sandbox"):
        state.is_watched("../../etc")


def test_state_permits_one_run_per_sandbox(state: StateDirectory) -> None:
    assert not state.is_watched(_SANDBOX)
    with state.run_lock(_SANDBOX), state.run_lock("another"):
        assert state.is_watched(_SANDBOX)
        with pytest.raises(SourceError, match="another run watches sandbox"):
            state.run_lock(_SANDBOX).__enter__()
        assert state.is_watched(_SANDBOX)
    assert not state.is_watched(_SANDBOX)
    with state.run_lock(_SANDBOX):
        pass


def test_state_returns_a_record_that_only_its_owner_may_read(state: StateDirectory) -> None:
    assert state.read(_SANDBOX) is None
    assert state.written_ns(_SANDBOX) is None
    before = time.time_ns() - 1_000_000_000
    with state.locked():
        state.write(INSTALLED)
    assert state.read(_SANDBOX) == INSTALLED
    assert before <= (state.written_ns(_SANDBOX) or 0) <= time.time_ns()
    assert list(state.sandboxes()) == [_SANDBOX]
    assert [each.name for each in state.directory(_SANDBOX).iterdir()] == ["fence.json"]
    assert state.path.stat().st_mode & 0o777 == 0o700
    assert state.directory(_SANDBOX).stat().st_mode & 0o777 == 0o700


def test_state_record_has_the_path_of_its_namespace_and_no_pin(state: StateDirectory) -> None:
    state.write(dataclasses.replace(INSTALLED, namespace=named("sb1").pinned("4:7")))
    record = state.directory(_SANDBOX) / "fence.json"
    assert json.loads(record.read_bytes())["namespace"] == {"path": "/run/netns/sb1"}
    found = state.read(_SANDBOX)
    assert found is not None
    assert (found.namespace, found.namespace.pin) == (named("sb1"), None)


def test_state_record_is_on_the_disk_before_it_replaces_the_last_one(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []

    def sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}")
        synced.append(b"the folder" if path.is_dir() else path.read_bytes())

    monkeypatch.setattr(os, "fsync", sync)
    state.write(INSTALLED)
    assert synced == [next(state.path.glob("*/fence.json")).read_bytes(), b"the folder"]


def test_state_keeps_the_last_record_when_the_disk_refuses_the_next(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    state.write(INSTALLED)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DeliveryError, match=r"can't be written \(No space left on device\)"):
        state.write(dataclasses.replace(INSTALLED, transport="kmsg"))
    assert state.read(_SANDBOX) == INSTALLED
    assert [each.name for each in state.directory(_SANDBOX).iterdir()] == ["fence.json"]


def test_state_names_a_record_that_cannot_be_read(state: StateDirectory) -> None:
    (state.directory(_SANDBOX) / "fence.json").mkdir(parents=True)
    with pytest.raises(FenceError, match=r"fence\.json can't be read: Is a directory"):
        state.read(_SANDBOX)


def test_state_version_differs_after_each_write(state: StateDirectory) -> None:
    versions = [state.version(_SANDBOX)]
    transports: tuple[LogTransport, ...] = ("nflog", "kmsg")
    for transport in transports:
        state.write(dataclasses.replace(INSTALLED, transport=transport))
        assert state.version(_SANDBOX) == state.version(_SANDBOX)
        versions.append(state.version(_SANDBOX))
    assert versions[0] is None
    assert len(set(versions)) == 3


def test_state_deletes_a_record_and_nothing_else(state: StateDirectory) -> None:
    state.delete(_SANDBOX)
    state.write(INSTALLED)
    (state.directory(_SANDBOX) / "account").write_text("content")
    state.delete(_SANDBOX)
    assert state.read(_SANDBOX) is None
    assert list(state.sandboxes()) == []
    assert (state.directory(_SANDBOX) / "account").read_text() == "content"
    (state.directory(_SANDBOX) / "account").unlink()
    state.delete(_SANDBOX)
    assert not state.directory(_SANDBOX).exists()


def test_state_names_a_damaged_record_and_the_remedy(state: StateDirectory) -> None:
    state.write(INSTALLED)
    file = state.directory(_SANDBOX) / "fence.json"
    for damaged in ("{}", file.read_text().replace('"sandbox": "sb1"', '"sandbox": "../sb1"')):
        file.write_text(damaged)
        with pytest.raises(FenceError, match="is damaged: remove it and install the fence again"):
            state.read(_SANDBOX)


def test_state_names_a_directory_that_cannot_be_written_or_read(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no directory")
    state = StateDirectory(tmp_path / "state")
    with pytest.raises(DeliveryError, match="make room or name another --state-dir"):
        state.write(INSTALLED)
    with pytest.raises(DeliveryError, match="make room or name another --state-dir"):
        state.locked().__enter__()
    with pytest.raises(FenceError, match="can't be read"):
        list(state.sandboxes())


def test_state_that_this_user_may_not_write_needs_root(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_more: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DeliveryError, match=r"\(Permission denied\): run as root or name another"):
        state.locked().__enter__()


def test_state_reads_no_record_that_is_damaged_or_missing(state: StateDirectory) -> None:
    assert state.read_or_none(_SANDBOX) is None
    state.write(INSTALLED)
    assert state.read_or_none(_SANDBOX) == INSTALLED
    (state.directory(_SANDBOX) / "fence.json").write_text("{}")
    assert state.read_or_none(_SANDBOX) is None


def test_state_stores_sysctls_until_they_are_restored(state: StateDirectory) -> None:
    assert state.stored_sysctls("a") is None
    state.store_sysctls("a", b"1\n")
    state.store_sysctls("forwarding-4:1", b"0")
    assert state.stored_sysctls("a") == b"1\n"
    assert state.stored_sysctls("forwarding-4:1") == b"0"
    assert state.stored_sysctls("forwarding-4:2") is None
    assert list(state.sandboxes()) == []
    for _ in range(2):
        state.delete_sysctls("a")
        state.delete_sysctls("forwarding-4:1")
    assert state.stored_sysctls("a") is None
    assert state.stored_sysctls("forwarding-4:1") is None


def test_state_names_sysctls_that_cannot_be_read(state: StateDirectory) -> None:
    (state.path / "forwarding-4:1.before").mkdir(parents=True)
    with pytest.raises(FenceError, match=r"forwarding-4:1\.before can't be read: Is a directory"):
        state.stored_sysctls("forwarding-4:1")


def test_stored_kernel_log_sysctl_that_is_not_ascii_is_an_error(state: StateDirectory) -> None:
    state.store_sysctls("nf_log_all_netns", b"\xff")
    with pytest.raises(
        FenceError, match=r"nf_log_all_netns\.before can't be read: it is not ASCII"
    ):
        kernel_log_sysctl.release(_SANDBOX, state)


@contextlib.contextmanager
def _child_before_its_program() -> Iterator[None]:
    """Hold a child between fork and exec, where it has a copy of each descriptor."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        yield
    finally:
        os.close(writer)
        os.waitpid(child, 0)


def test_locks_end_with_their_holder_while_a_child_is_starting(state: StateDirectory) -> None:
    events = FileLock(state.path / "events")
    with contextlib.ExitStack() as stack:
        stack.enter_context(state.run_lock(_SANDBOX))
        stack.enter_context(state.locked())
        events.acquire()
        stack.callback(events.release)
        child = contextlib.ExitStack()
        child.enter_context(_child_before_its_program())
    with child, state.run_lock(_SANDBOX), state.locked():
        assert state.is_watched(_SANDBOX)
        next_one = FileLock(state.path / "events")
        next_one.acquire()
        next_one.release()


def test_state_directory_is_closed_to_others(state: StateDirectory) -> None:
    with state.locked():
        (lock,) = state.path.iterdir()
        assert [each.stat().st_mode & 0o777 for each in (state.path, lock)] == [0o700, 0o600]
    state.write(INSTALLED)
    folders = (state.path, state.directory(_SANDBOX))
    assert [each.stat().st_mode & 0o777 for each in folders] == [0o700, 0o700]


def test_leftovers_of_a_killed_process_are_removed(state: StateDirectory) -> None:
    state.write(INSTALLED)
    state.store_added("added", b"{}")
    empty = state.path / "empty"
    empty.mkdir()
    half = state.path / "half"
    half.mkdir()
    (half / ".sandbox.json.4194304").touch()  # above the highest pid
    (state.path / "added" / ".database.4194304").touch()
    in_progress = state.path / "other" / f".fence.json.{os.getpid()}"
    in_progress.parent.mkdir()
    in_progress.touch()
    state.remove_leftovers()
    assert not empty.exists()
    assert not half.exists()
    assert in_progress.exists()
    assert state.added() == {"added": b"{}"}
    assert [each.name for each in (state.path / "added").iterdir()] == ["sandbox.json"]
    assert state.read(_SANDBOX) == INSTALLED
    state.delete_added("added")
    assert state.added() == {}
