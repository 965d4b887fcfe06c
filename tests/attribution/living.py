"""Processes that run as long as a test does."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Program that writes a line, and ends with its standard input.
WAITING = "print(flush=True); input()"


@contextlib.contextmanager
def running(
    *command: str | Path,
    executable: str | Path | None = None,
    pass_fds: tuple[int, ...] = (),
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process, and wait until it has written a line."""
    with subprocess.Popen(
        command,
        executable=executable,
        pass_fds=pass_fds,
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def python(code: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python program, and wait until it has written a line."""
    with running(sys.executable, "-c", code, *arguments) as process:
        yield process


@contextlib.contextmanager
def cat(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a copy of ``cat``."""
    with contextlib.ExitStack() as opened:
        process = opened.enter_context(
            subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        opened.callback(process.kill)
        send(process)
        yield process


def copied(to: Path) -> Path:
    """Copy a program to a path."""
    shutil.copy(Path("/bin/cat").resolve(), to)
    return to


def send(process: subprocess.Popen[bytes]) -> None:
    """Make the process write another line."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"\n"


def until(what: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    """Return the processes that a process's first thread started."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def now() -> int:
    """Return the time of CLOCK_BOOTTIME."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def descriptors() -> int:
    """Return the number of open descriptors."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a descriptor more or less counts
