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
from ocsf_nft.attribution import process_details
from ocsf_nft.attribution.program_hashes import ProgramHashes
from tests.attribution.living import now, python, until
from tests.attribution.process_details_helpers import (
    EXITED,
    PYTHON,
    TICK_NS,
    directory,
    found,
    state,
    ticks,
)
from tests.kernel.users import as_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.kernel

_EXIT = {"x86_64": 60, "aarch64": 93}[platform.machine()]


@contextlib.contextmanager
def threads(work: Callable[[], object] = lambda: None) -> Iterator[int]:
    """Run a thread that has done ``work``; yield its number."""
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
        # Python joins the thread before the kernel has removed it.
        until(lambda: not any(Path(f"/proc/self/task/{tid}").exists() for tid in ids))


def test_thread_has_the_details_of_its_process() -> None:
    with threads() as tid:
        Path(f"/proc/self/task/{tid}/comm").write_text("thread")
        result = found(tid, started_by_ns=now(), started_ns=ticks(tid) * TICK_NS)
        whole = found(os.getpid())
    assert result == dataclasses.replace(whole, tid=tid)
    assert whole.tid is None


def test_thread_with_another_user_has_that_user() -> None:
    with threads(as_user(1234, lambda: None, capabilities=frozenset())) as tid:
        assert (found(tid).uid, found(tid).tid) == (1234, tid)
        assert found(os.getpid()).uid == 0


def test_ended_thread_is_not_found() -> None:
    with threads() as tid, directory(tid) as thread, directory(os.getpid()) as leader:
        seen = process_details._observe(thread, proc.stat(thread))
        assert process_details._with_leader(seen, thread, leader).name == found(os.getpid()).name
        own = os.open(f"/proc/self/task/{tid}", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with directory(os.getpid()) as leader, pytest.raises(EXITED):
            process_details._with_leader(seen, own, leader)
    finally:
        os.close(own)
    assert process_details.read(tid) is None


def test_process_with_an_ended_first_thread_is_read_by_another_one() -> None:
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
        result = process_details.read(process.pid, hashes=ProgramHashes())
    assert result is not None
    assert (result.pid, result.tid, result.path) == (process.pid, None, str(PYTHON))
    assert result.cmd_line is not None
    assert result.cmd_line.endswith(" argument")
    assert result.name == Path(sys.executable).name
    assert result.sha256 is not None
    assert result.working_directory == str(Path.cwd())
