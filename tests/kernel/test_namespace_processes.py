"""Processes of real network namespaces."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import namespace_processes, netns
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.namespace_processes import processes_in, scan
from ocsf_nft.netns import Namespace
from tests.kernel.processes import isolated

if TYPE_CHECKING:
    from subprocess import Popen

pytestmark = pytest.mark.kernel

#: Starts a thread in another new network namespace, and prints the thread's id.
_THREAD = """
import ctypes, sys, threading
def enter():
    assert ctypes.CDLL(None).unshare(0x40000000) == 0
    print(threading.get_native_id(), flush=True)
    sys.stdin.read()
threading.Thread(target=enter).start()
"""
#: Ends its first thread when the other thread is in the namespace.
_HEADLESS = f"{_THREAD}\nctypes.CDLL(None).syscall(60, 0)"  # exit(2), on x86-64
_CHILDREN = """
import os, sys
for _ in range(4):
    if os.fork() == 0:
        break
else:
    print(flush=True)
sys.stdin.read()
"""


def _identity(process: Popen[bytes]) -> str:
    return netns.of_process(process.pid).identity()


def _second_thread(process: Popen[bytes]) -> int:
    threads = {int(each.name) for each in Path(f"/proc/{process.pid}/task").iterdir()}
    (thread,) = threads - {process.pid}
    return thread


def test_processes_of_a_namespace_are_found() -> None:
    with isolated() as one, isolated() as other:
        identity = _identity(one)
        assert processes_in(identity).pids == (one.pid,)
        assert processes_in(identity).count == 1
        assert processes_in(_identity(other)).pids == (other.pid,)
        assert os.getpid() in scan().of(netns.HOST.identity())
    found = processes_in(identity)
    assert (found.pids, found.count) == ((), 0)


def test_pids_up_to_the_limit_are_returned_and_all_are_counted() -> None:
    with isolated(sys.executable, "-I", "-c", _CHILDREN) as process:
        identity = _identity(process)
        everything = processes_in(identity)
        assert len(everything.pids) == everything.count == 5
        assert process.pid in everything.pids
        assert list(everything.pids) == sorted(everything.pids)
        some = processes_in(identity, 2)
        assert (some.pids, some.count) == (everything.pids[:2], 5)


def test_process_with_a_thread_in_the_namespace_is_found() -> None:
    with isolated(sys.executable, "-I", "-c", _THREAD) as process:
        first = scan().of(_identity(process))
        assert first == {process.pid: process.pid}
        thread = _second_thread(process)
        path = namespace_processes.thread_file(process.pid, thread)
        identity = Namespace(path).identity()
        assert identity != _identity(process)
        assert scan().of(identity) == {process.pid: thread}
        assert processes_in(identity).pids == (process.pid,)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="has a number of a system call")
def test_process_without_a_first_thread_is_found() -> None:
    with isolated(sys.executable, "-I", "-c", _HEADLESS) as process:
        thread = _second_thread(process)
        identity = Namespace(namespace_processes.thread_file(process.pid, thread)).identity()
        assert processes_in(identity).pids == (process.pid,)


def test_search_without_time_says_so() -> None:
    found = processes_in(netns.HOST.identity(), timeout_s=0)
    assert found.count == 0
    assert "not all threads were checked in 0 seconds" in found.gaps


def test_processes_of_other_users_are_unknown_without_permission(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with isolated() as process:
        identity = _identity(process)
        stat = Path.stat

        def refuse(path: Path, **options: bool) -> os.stat_result:
            if path == namespace_processes.thread_file(process.pid, process.pid):
                raise PermissionError
            return stat(path, **options)

        before = scan()
        monkeypatch.setattr(Path, "stat", refuse)
        found = scan()
    assert found.of(identity) == {}
    assert before.of(identity) == {process.pid: process.pid}
    (gap,) = set(found.gaps) - set(before.gaps)
    assert "can't be read: run as root or with CAP_SYS_PTRACE" in gap


def test_invisible_processes_are_a_gap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(namespace_processes, "_PROC", tmp_path)
    assert scan().gaps == ("not every process is visible in /proc",)
    (tmp_path / "77").mkdir()  # a process that has exited since the listing
    assert scan().threads == {}
    monkeypatch.setattr(namespace_processes, "_thread_count", lambda _: 2)  # or since the count
    assert scan().threads == {}
    monkeypatch.setattr(namespace_processes, "_PROC", tmp_path / "missing")
    with pytest.raises(UnsupportedError, match="/proc can't be read: No such file"):
        scan()
