from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import proc
from ocsf_nft.attribution import process_details
from ocsf_nft.attribution.program_hashes import ProgramHashes
from ocsf_nft.process import Container, Process
from tests.attribution.living import WAITING, descriptors, python, running, send, until
from tests.attribution.process_details_helpers import (
    NAMES,
    PYTHON,
    TICK_NS,
    called,
    found,
    state,
    ticks,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.kernel


def test_read_returns_all_details_of_a_process(tmp_path: Path) -> None:
    before_ns = time.time_ns()
    command = (sys.executable, "-c", WAITING, "a b", "")
    with running(*command, cwd=tmp_path) as process:
        result = found(process.pid, ProgramHashes(1 << 30))
        assert result.created_ns is not None
        assert before_ns - 2 * TICK_NS < result.created_ns < time.time_ns()
        assert result == Process(
            pid=process.pid,
            name=Path(sys.executable).name,
            path=str(PYTHON),
            is_deleted=False,
            sha256=hashlib.sha256(PYTHON.read_bytes()).hexdigest(),
            cmd_line=" ".join(command).rstrip(),
            working_directory=str(tmp_path),
            created_ns=result.created_ns,
            uid=0,
            user_name="root",
            gid=0,
            group_name="root",
            ancestors=result.ancestors,
        )


def test_process_before_an_exec_has_no_hash_of_the_new_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """/proc already shows the new program, but there is no event of the exec yet."""
    monkeypatch.setattr(proc, "is_same_program", lambda *_, **__: False)
    with running(sys.executable, "-c", WAITING) as process:
        result = found(process.pid, ProgramHashes(1 << 30))
    assert (result.path, result.sha256) == (str(PYTHON), None)


def test_process_that_started_at_another_time_is_another_one() -> None:
    with python(WAITING) as process:
        started_ns = ticks(process.pid) * TICK_NS
        assert process_details.read(process.pid, started_ns=started_ns) is not None
        assert process_details.read(process.pid, started_ns=started_ns + TICK_NS - 1) is not None
        assert process_details.read(process.pid, started_ns=started_ns + TICK_NS) is None
        assert process_details.read(process.pid, started_ns=started_ns - 1) is None


def test_start_time_is_the_same_in_all_reads() -> None:
    with python(WAITING) as process:
        assert len({found(process.pid).created_ns for _ in range(20)}) <= 2


def test_exited_process_is_not_found() -> None:
    with subprocess.Popen(["true"]) as process:
        until(lambda: state(process.pid) == "Z")
        started_ns = ticks(process.pid) * TICK_NS
        assert process_details.read(process.pid, started_ns=started_ns) is not None
    assert process_details.read(process.pid, started_ns=started_ns) is None


@pytest.mark.parametrize("pid", [0, -1, 1 << 22, 1 << 80])
def test_invalid_process_number_is_not_found(pid: int) -> None:
    assert process_details.read(pid, started_ns=0) is None


def test_process_that_exits_during_the_read_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = process_details._cgroups
    with python(WAITING) as process:
        started_ns = ticks(process.pid) * TICK_NS

        def reading(descriptor: int) -> str:
            text = real(descriptor)
            process.kill()
            process.wait()
            return text

        monkeypatch.setattr(process_details, "_cgroups", reading)
        assert process_details.read(process.pid, started_ns=started_ns) is None


def test_cgroups_are_unknown_on_a_kernel_without_cgroups(tmp_path: Path) -> None:
    with proc.opened(str(tmp_path)) as directory:
        assert process_details._cgroups(directory) == ""
        (tmp_path / "cgroup").write_text("0::/a\n")
        assert process_details._cgroups(directory) == "0::/a\n"


def test_process_with_only_dead_threads_has_no_living_one() -> None:
    with python(WAITING) as process, proc.opened(f"/proc/{process.pid}") as directory:
        with process_details._living_thread(directory) as thread:
            assert not proc.stat(thread).is_dead
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError):
            process_details._living_thread(directory).__enter__()


def test_read_closes_all_descriptors() -> None:
    before = descriptors()
    with python(WAITING) as process:
        found(process.pid, ProgramHashes(1 << 30))
    process_details.read(process.pid, started_ns=0)
    process_details.read(os.getpid(), started_ns=0)
    assert descriptors() == before


def test_kernel_thread_has_only_a_name() -> None:
    result = found(2)
    assert result.name == "kthreadd"
    assert (result.path, result.is_deleted, result.cmd_line) == (None, None, None)
    assert (result.uid, result.working_directory, result.ancestors) == (0, "/", ())


def test_zombie_has_only_a_name_and_a_user() -> None:
    with subprocess.Popen(["true"]) as process:
        until(lambda: state(process.pid) == "Z")
        result = found(process.pid, ProgramHashes(1 << 30))
    assert (result.name, result.uid) == ("true", 0)
    assert (result.path, result.sha256, result.cmd_line, result.working_directory) == (None,) * 4
    assert result.ancestors[0].pid == os.getpid()


def test_unreadable_details_are_unknown() -> None:
    code = """
import sys
from ocsf_nft.attribution import process_details
print(process_details.read(int(sys.argv[1]), started_ns=int(sys.argv[2])))
"""
    with python(WAITING) as process:
        command = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", code]
        command += [str(process.pid), str(ticks(process.pid) * TICK_NS)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result = found(process.pid)
    seen = dataclasses.replace(
        result, path=None, is_deleted=None, working_directory=None, ancestors=()
    )
    assert done.stdout.startswith(repr(seen).removesuffix("ancestors=())"))


def test_process_in_a_user_namespace_has_the_ids_of_ours() -> None:
    with running(
        *("setpriv", "--reuid=1234", "--regid=4321", "--clear-groups"),
        *("unshare", "-Ur", "/bin/sh", "-c", "echo; read line"),
    ) as process:
        result = found(process.pid)
    assert (result.uid, result.gid, result.user_name, result.group_name) == (1234, 4321, None, None)


# Details that the process itself chooses.


def test_long_arguments_are_read_only_in_part() -> None:
    arguments = ["x" * 100_000] * 10
    with python(WAITING, *arguments) as process:
        result = found(process.pid)
        seconds = min(measured(lambda: found(process.pid)) for _ in range(5))
    assert result.cmd_line is not None
    assert len(result.cmd_line) == 4096 + len("…")
    assert result.cmd_line.startswith(sys.executable)
    assert seconds < 0.05


def measured(work: Callable[[], object]) -> float:
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


@pytest.mark.parametrize("name", NAMES)
def test_name_may_contain_any_bytes(name: bytes) -> None:
    with python(called(name)) as process:
        result = found(process.pid)
    assert result.name == name.decode("utf-8", "surrogateescape")
    assert (result.pid, result.tid, result.uid, result.path) == (process.pid, None, 0, str(PYTHON))
    assert result.ancestors[0].pid == os.getpid()


def test_arguments_are_those_that_the_process_wrote() -> None:
    text = b'{"uid": 0}\n\x1b[2J\0\0\xff\0nginx: worker'
    code = f"""
import pathlib
fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
start, end = int(fields[45]), int(fields[46])
with open("/proc/self/mem", "r+b", buffering=0) as memory:
    memory.seek(start)
    memory.write({text!r}.ljust(end - start, b"\\0"))
{WAITING}
"""
    with python(code, "x" * 100) as process:
        result = found(process.pid)
    assert result.cmd_line == text.replace(b"\0", b" ").decode("utf-8", "surrogateescape")
    assert result.path == str(PYTHON)


def test_process_that_renames_itself_all_the_time_hides_no_detail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = process_details._cgroups
    code = """
import itertools
for count in itertools.count():
    open("/proc/self/comm", "w").write(f"name {count}")
    print(flush=True)
    input()
"""
    with python(code, "argument") as process:

        def reading(descriptor: int) -> str:
            send(process)
            return real(descriptor)

        monkeypatch.setattr(process_details, "_cgroups", reading)
        result = found(process.pid)
    assert (result.name, result.path) == ("name 1", str(PYTHON))
    assert result.cmd_line is not None
    assert result.cmd_line.endswith(" argument")


def test_process_in_very_many_groups_hides_no_detail() -> None:
    code = f"import os; os.setgroups(range(4_000_000_000, 4_000_030_000)); {WAITING}"
    with python(code) as process:
        result = found(process.pid)
    assert (result.pid, result.uid, result.path) == (process.pid, 0, str(PYTHON))
    assert result.ancestors[0].pid == os.getpid()


# Container, unit and directory.


@pytest.fixture
def hierarchy() -> Iterator[Path]:
    """Make a cgroup (version 2) for a test."""
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    (mounted, *_) = (Path(words[1]) for words in lines if words[2] == "cgroup2")
    top = mounted / f"docker-{os.getpid():064x}.scope"
    top.mkdir()
    yield top
    for path in sorted(top.rglob("*/"), reverse=True):
        path.rmdir()
    if top.exists():
        top.rmdir()


def test_process_is_in_the_container_of_the_host(hierarchy: Path) -> None:
    below = hierarchy / f"docker-{'0' * 64}.scope/payload (deleted)"
    below.mkdir(parents=True)
    with python(WAITING) as process:
        for cgroup in (hierarchy, below):
            (cgroup / "cgroup.procs").write_text(str(process.pid))
            result = found(process.pid)
            assert result.container == Container(uid=f"{os.getpid():064x}", runtime="docker")
            assert result.unit is None


def test_zombie_keeps_the_container_of_its_removed_cgroup(hierarchy: Path) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        (hierarchy / "cgroup.procs").write_text(str(process.pid))
        send(process)
        process.kill()
        until(lambda: state(process.pid) == "Z")
        hierarchy.rmdir()
        assert " (deleted)\n" in Path(f"/proc/{process.pid}/cgroup").read_text()
        result = found(process.pid)
    assert result.container == Container(uid=f"{os.getpid():064x}", runtime="docker")


def test_removed_working_directory_is_marked(tmp_path: Path) -> None:
    removed = tmp_path / "removed"
    removed.mkdir()
    with running(sys.executable, "-c", WAITING, cwd=removed) as process:
        removed.rmdir()
        assert found(process.pid).working_directory == f"{removed} (deleted)"
