from __future__ import annotations

import contextlib
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.attribution import process_details
from ocsf_nft.attribution.program_hashes import ProgramHashes
from tests.attribution.living import python, until
from tests.attribution.process_details_helpers import PYTHON, TICK_NS, found, state, ticks

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

_EXIT = {"x86_64": 60, "aarch64": 93}[platform.machine()]


@contextlib.contextmanager
def without_first_thread() -> Iterator[subprocess.Popen[bytes]]:
    """Run a process whose first thread has ended."""
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
        yield process


def test_process_with_an_ended_first_thread_is_read_by_another_one() -> None:
    with without_first_thread() as process:
        result = found(process.pid, ProgramHashes(1 << 30))
    assert (result.pid, result.tid, result.path) == (process.pid, None, str(PYTHON))
    assert result.cmd_line is not None
    assert result.cmd_line.endswith(" argument")
    assert result.name == Path(sys.executable).name
    assert result.sha256 is not None
    assert result.working_directory == str(Path.cwd())


def test_process_whose_last_thread_ends_during_the_read_is_not_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = process_details._read_consistent
    with without_first_thread() as process:
        started_ns = ticks(process.pid) * TICK_NS
        tasks = f"/proc/{process.pid}/task"

        def then_end(*arguments: Any) -> Any:
            seen = real(*arguments)
            process.kill()
            until(lambda: len(os.listdir(tasks)) == 1)  # noqa: PTH208 - only the number counts
            return seen

        assert process_details.read(process.pid, started_ns=started_ns) is not None
        monkeypatch.setattr(process_details, "_read_consistent", then_end)
        assert process_details.read(process.pid, started_ns=started_ns) is None
