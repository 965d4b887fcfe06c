from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import proc
from ocsf_nft.fence import tamper_attribution
from ocsf_nft.process import Process
from tests.attribution.living import WAITING, cat, copied, now, python, send

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel


@pytest.fixture
def sleeper() -> Iterator[int]:
    """Start a process whose name differs from that of its program."""
    named = "open('/proc/self/comm', 'w').write('firewalld'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", named, "a b"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_running_process_is_attributed_with_its_program(sleeper: int) -> None:
    before_ns = time.time_ns()
    found = tamper_attribution.attribute_change(sleeper, "firewalld", now())
    assert found is not None
    assert (found.pid, found.name) == (sleeper, "firewalld")
    assert found.path == str(Path(sys.executable).resolve())
    assert found.cmd_line is not None
    assert found.cmd_line.endswith("a b")
    assert found.created_ns is not None
    assert before_ns - 60_000_000_000 < found.created_ns < time.time_ns()


def test_process_that_started_after_the_change_is_not_attributed(sleeper: int) -> None:
    found = tamper_attribution.attribute_change(sleeper, "firewalld", now() - 3_600_000_000_000)
    assert found == Process(pid=sleeper, name="firewalld")


def test_process_with_another_name_is_not_attributed(sleeper: int) -> None:
    assert tamper_attribution.attribute_change(sleeper, "nft", now()) == Process(
        pid=sleeper, name="nft"
    )


def test_exited_process_is_attributed_by_pid_and_name_alone() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert tamper_attribution.attribute_change(process.pid, "true", now()) == Process(
        pid=process.pid, name="true"
    )


def test_thread_is_attributed_to_its_process() -> None:
    comm = Path("/proc/self/task") / str(os.getpid()) / "comm"
    found = tamper_attribution.attribute_change(os.getpid(), comm.read_text().strip(), now())
    assert found is not None
    assert found.pid == os.getpid()


@pytest.mark.parametrize("pid", [None, 0, 0xFFFFFFFF])
def test_pid_without_a_process_has_no_program(pid: int | None) -> None:
    found = tamper_attribution.attribute_change(pid, "nft", now())
    assert found in {None, Process(pid=pid or 0, name="nft")}
    assert (found is None) == (not pid)


@pytest.mark.parametrize(
    "under",
    [("unshare", "-p", "-f"), ("unshare", "-p", "-f", "--mount-proc"), ("unshare", "-m")],
)
def test_pid_is_attributed_only_in_the_initial_pid_namespace(under: tuple[str, ...]) -> None:
    code = (
        "from ocsf_nft.fence.tamper_attribution import attribute_change; "
        "print(attribute_change(1, 'init', 0) is not None)"
    )
    done = subprocess.run(
        [*under, sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(under == ("unshare", "-m"))


def test_program_that_was_started_after_the_change_is_not_attributed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another program may have the same name."""
    code = "import os, sys; print(flush=True); input(); os.execv(sys.argv[1], sys.argv[1:])"
    real = proc.arguments
    with python(code, sys.executable, "-c", WAITING) as process:
        name = Path(sys.executable).name
        found = tamper_attribution.attribute_change(process.pid, name, now())
        assert found is not None
        assert found.path == str(Path(sys.executable).resolve())

        def reading(directory: int) -> str | None:
            send(process)
            return real(directory)

        monkeypatch.setattr(proc, "arguments", reading)
        assert tamper_attribution.attribute_change(process.pid, name, now()) == Process(
            pid=process.pid, name=name
        )


def test_deleted_program_is_attributed_with_its_former_path(tmp_path: Path) -> None:
    program = copied(tmp_path / "implant")
    with cat(program) as process:
        send(process)
        program.unlink()
        found = tamper_attribution.attribute_change(process.pid, "implant", now())
    assert found is not None
    assert (found.path, found.is_deleted) == (str(program), True)


def test_name_with_a_line_end_does_not_forge_another_pid() -> None:
    """The kernel escapes only the usual line end (fs/proc/array.c, proc_task_name)."""
    named = "open('/proc/self/comm', 'w').write('a\\rTgid:\\t1'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", named], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = tamper_attribution.attribute_change(process.pid, "a\rTgid:\t1", now())
        process.kill()
    assert found is not None
    assert (found.pid, found.path) == (process.pid, str(Path(sys.executable).resolve()))
