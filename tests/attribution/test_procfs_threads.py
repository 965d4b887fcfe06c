from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import proc
from ocsf_nft.attribution import procfs
from ocsf_nft.attribution.program_hashes import Hashes
from tests.attribution.living import now, python, until
from tests.attribution.told import GONE, PYTHON, TICK_NS, directory, found, state, ticks
from tests.kernel.users import as_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.kernel

_EXIT = {"x86_64": 60, "aarch64": 93}[platform.machine()]


@contextlib.contextmanager
def threads(work: Callable[[], object] = lambda: None) -> Iterator[int]:
    """A thread of ours, which has done something."""
    ready, done = threading.Event(), threading.Event()
    ids: list[int] = []

    def inside() -> None:
        work()
        ids.append(threading.get_native_id())
        ready.set()
        done.wait()

    thread = threading.Thread(target=inside)
    thread.start()
    try:
        assert ready.wait(20)
        yield ids[0]
    finally:
        done.set()
        thread.join()
        # Python has done with it before the kernel has.
        until(lambda: not any(Path(f"/proc/self/task/{tid}").exists() for tid in ids))


def test_a_thread_is_told_by_its_process() -> None:
    with threads() as tid:
        Path(f"/proc/self/task/{tid}/comm").write_text("thread")
        told = found(tid, started_by_ns=now(), started_ns=ticks(tid) * TICK_NS)
        whole = found(os.getpid())
    assert told == dataclasses.replace(whole, tid=tid)
    assert whole.tid is None


def test_a_thread_that_is_another_user_is_that_user() -> None:
    with threads(as_user(1234, lambda: None, capabilities=frozenset())) as tid:
        assert (found(tid).uid, found(tid).tid) == (1234, tid)
        assert found(os.getpid()).uid == 0


def test_a_thread_that_is_gone_is_nobodys() -> None:
    with threads() as tid, directory(tid) as thread, directory(os.getpid()) as leader:
        look = procfs._look(thread, proc.stat(thread))
        assert procfs._of_its_process(look, thread, leader).name == found(os.getpid()).name
        own = os.open(f"/proc/self/task/{tid}", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with directory(os.getpid()) as leader, pytest.raises(GONE):
            procfs._of_its_process(look, own, leader)
    finally:
        os.close(own)
    assert procfs.read(tid) is None


def test_a_process_whose_first_thread_has_ended_is_told_by_another_one() -> None:
    code = f"""
import ctypes, threading
def inside():
    print(flush=True)
    input()
threading.Thread(target=inside).start()
ctypes.CDLL(None).syscall({_EXIT}, 0)
"""
    with python(code, "argument") as process:
        until(lambda: state(process.pid) == "Z")
        told = procfs.read(process.pid, hashes=Hashes())
    assert told is not None
    assert (told.pid, told.tid, told.path) == (process.pid, None, str(PYTHON))
    assert told.cmd_line is not None
    assert told.cmd_line.endswith(" argument")
    assert told.name == Path(sys.executable).name
    assert told.sha256 is not None
    assert told.working_directory == str(Path.cwd())
