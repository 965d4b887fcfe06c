"""Run a command with a time limit, and end all its remaining processes.

`python -m tests.mutants.supervised SECONDS COMMAND...` exits with the command's exit code, or with
124 after a timeout.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
TIME_IS_OVER = 124


def main(seconds: float, command: list[str]) -> int:
    """Run the command; return its exit code, or 124 after a timeout."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    libc = ctypes.CDLL(None)
    # The processes end with the mutation run, also when that is killed.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # Orphaned processes become children of this process, not of init.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return TIME_IS_OVER
    finally:
        while children := _children():
            for child in children:
                os.kill(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, 0)


def _children() -> list[int]:
    return [int(pid) for pid in Path("/proc/self/task").joinpath(
        str(os.getpid()), "children").read_text().split()]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
