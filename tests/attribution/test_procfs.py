from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import proc
from ocsf_nft.attribution import procfs
from ocsf_nft.attribution.program_hashes import Hashes
from ocsf_nft.process import Container, Process
from tests.attribution.living import WAITING, descriptors, now, python, running, send, until
from tests.attribution.told import NAMES, PYTHON, TICK_NS, called, found, state, ticks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.kernel


def test_a_process_is_told_with_all_that_there_is_to_know(tmp_path: Path) -> None:
    before_ns = time.time_ns()
    command = (sys.executable, "-c", WAITING, "a b", "")
    with running(*command, cwd=tmp_path) as process:
        told = procfs.read(process.pid, hashes=Hashes())
        assert told is not None
        assert told.created_ns is not None
        assert before_ns - 2 * TICK_NS < told.created_ns < time.time_ns()
        assert told == Process(
            pid=process.pid,
            name=Path(sys.executable).name,
            path=str(PYTHON),
            is_deleted=False,
            sha256=hashlib.sha256(PYTHON.read_bytes()).hexdigest(),
            cmd_line=" ".join(command).rstrip(),
            working_directory=str(tmp_path),
            created_ns=told.created_ns,
            uid=0,
            user_name="root",
            gid=0,
            group_name="root",
            ancestors=told.ancestors,
        )


def test_who_is_about_to_run_another_program_has_no_hash_of_it_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It runs it as far as /proc says, and nobody was told of that."""
    monkeypatch.setattr(proc, "is_same_program", lambda *_, **__: False)
    with running(sys.executable, "-c", WAITING) as process:
        told = procfs.read(process.pid, hashes=Hashes())
    assert told is not None
    assert (told.path, told.sha256) == (str(PYTHON), None)


def test_who_started_later_is_another_one() -> None:
    with python(WAITING) as process:
        started_ns = ticks(process.pid) * TICK_NS
        assert procfs.read(process.pid, started_by_ns=now()) is not None
        assert procfs.read(process.pid, started_by_ns=started_ns) is not None
        assert procfs.read(process.pid, started_by_ns=started_ns - 1) is None
        assert procfs.read(process.pid, started_by_ns=0) is None


def test_who_started_at_another_time_is_another_one() -> None:
    with python(WAITING) as process:
        started_ns = ticks(process.pid) * TICK_NS
        assert procfs.read(process.pid, started_ns=started_ns) is not None
        assert procfs.read(process.pid, started_ns=started_ns + TICK_NS - 1) is not None
        assert procfs.read(process.pid, started_ns=started_ns + TICK_NS) is None
        assert procfs.read(process.pid, started_ns=started_ns - 1) is None


def test_when_it_started_is_always_the_same_time() -> None:
    with python(WAITING) as process:
        assert len({found(process.pid).created_ns for _ in range(20)}) <= 2


def test_who_is_gone_is_nobody() -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    assert procfs.read(process.pid) is None


@pytest.mark.parametrize("pid", [0, -1, 1 << 22, 1 << 80])
def test_what_is_no_number_of_a_process_is_nobodys(pid: int) -> None:
    assert procfs.read(pid) is None


def test_who_ends_while_we_read_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    real = procfs._cgroups
    with python(WAITING) as process:

        def reading(descriptor: int) -> str:
            text = real(descriptor)
            process.kill()
            process.wait()
            return text

        monkeypatch.setattr(procfs, "_cgroups", reading)
        assert procfs.read(process.pid) is None


def test_cgroups_are_unknown_where_the_kernel_has_none(tmp_path: Path) -> None:
    with proc.opened(str(tmp_path)) as directory:
        assert procfs._cgroups(directory) == ""
        (tmp_path / "cgroup").write_text("0::/a\n")
        assert procfs._cgroups(directory) == "0::/a\n"


def test_process_of_dead_threads_alone_has_no_living_one() -> None:
    with python(WAITING) as process, proc.opened(f"/proc/{process.pid}") as directory:
        with procfs._living_thread(directory) as thread:
            assert not proc.stat(thread).is_dead
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError):
            procfs._living_thread(directory).__enter__()


def test_nothing_stays_open() -> None:
    before = descriptors()
    with python(WAITING) as process:
        procfs.read(process.pid, hashes=Hashes())
    procfs.read(process.pid)
    procfs.read(threading.get_native_id(), started_by_ns=0)
    assert descriptors() == before


def test_of_a_kernel_thread_the_name_is_all() -> None:
    told = found(2)
    assert told.name == "kthreadd"
    assert (told.path, told.is_deleted, told.cmd_line) == (None, None, None)
    assert (told.uid, told.working_directory, told.ancestors) == (0, "/", ())


def test_of_who_has_ended_the_name_is_left() -> None:
    with subprocess.Popen(["true"]) as process:
        until(lambda: state(process.pid) == "Z")
        told = procfs.read(process.pid, hashes=Hashes())
    assert told is not None
    assert (told.name, told.uid) == ("true", 0)
    assert (told.path, told.sha256, told.cmd_line, told.working_directory) == (None,) * 4
    assert told.ancestors[0].pid == os.getpid()


def test_what_is_not_for_us_to_see_is_unknown() -> None:
    code = """
import sys
from ocsf_nft.attribution import procfs
print(procfs.read(int(sys.argv[1])))
"""
    with python(WAITING) as process:
        command = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", code]
        done = subprocess.run(
            [*command, str(process.pid)], capture_output=True, text=True, check=True
        )
        told = found(process.pid)
    seen = dataclasses.replace(
        told, path=None, is_deleted=None, working_directory=None, ancestors=()
    )
    assert done.stdout.startswith(repr(seen).removesuffix("ancestors=())"))


def test_who_has_users_of_its_own_is_told_by_ours() -> None:
    with running(
        *("setpriv", "--reuid=1234", "--regid=4321", "--clear-groups"),
        *("unshare", "-Ur", "/bin/sh", "-c", "echo; read line"),
    ) as process:
        told = found(process.pid)
    assert (told.uid, told.gid, told.user_name, told.group_name) == (1234, 4321, None, None)


# Its own words.


def test_a_long_list_of_arguments_costs_no_more_than_its_beginning() -> None:
    arguments = ["x" * 100_000] * 10
    with python(WAITING, *arguments) as process:
        told = found(process.pid)
        seconds = min(measured(lambda: procfs.read(process.pid)) for _ in range(5))
    assert told.cmd_line is not None
    assert len(told.cmd_line) == 4096
    assert told.cmd_line.startswith(sys.executable)
    assert seconds < 0.05


def measured(work: Callable[[], object]) -> float:
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_name_whatever_is_in_it(name: bytes) -> None:
    with python(called(name)) as process:
        told = found(process.pid)
    assert told.name == name.decode("utf-8", "surrogateescape")
    assert (told.pid, told.tid, told.uid, told.path) == (process.pid, None, 0, str(PYTHON))
    assert told.ancestors[0].pid == os.getpid()


def test_arguments_are_what_the_process_wrote_there() -> None:
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
        told = found(process.pid)
    assert told.cmd_line == text.replace(b"\0", b" ").decode("utf-8", "surrogateescape")
    assert told.path == str(PYTHON)


def test_who_calls_itself_something_else_all_the_time_hides_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = procfs._cgroups
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

        monkeypatch.setattr(procfs, "_cgroups", reading)
        told = found(process.pid)
    assert (told.name, told.path) == ("name 1", str(PYTHON))
    assert told.cmd_line is not None
    assert told.cmd_line.endswith(" argument")


def test_who_is_in_very_many_groups_hides_nothing() -> None:
    code = f"import os; os.setgroups(range(4_000_000_000, 4_000_030_000)); {WAITING}"
    with python(code) as process:
        told = found(process.pid)
    assert (told.pid, told.uid, told.path) == (process.pid, 0, str(PYTHON))
    assert told.ancestors[0].pid == os.getpid()


# Where it is.


@pytest.fixture
def hierarchy() -> Iterator[Path]:
    """A cgroup of version two, for a test."""
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    (mounted, *_) = (Path(words[1]) for words in lines if words[2] == "cgroup2")
    top = mounted / f"docker-{os.getpid():064x}.scope"
    top.mkdir()
    yield top
    for path in sorted(top.rglob("*/"), reverse=True):
        path.rmdir()
    if top.exists():
        top.rmdir()


def test_a_process_is_in_the_container_that_the_host_put_it_in(hierarchy: Path) -> None:
    below = hierarchy / f"docker-{'0' * 64}.scope/payload (deleted)"
    below.mkdir(parents=True)
    with python(WAITING) as process:
        for cgroup in (hierarchy, below):
            (cgroup / "cgroup.procs").write_text(str(process.pid))
            told = found(process.pid)
            assert told.container == Container(uid=f"{os.getpid():064x}", runtime="docker")
            assert told.unit is None


def test_who_has_ended_in_a_cgroup_that_is_gone_was_in_it(hierarchy: Path) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        (hierarchy / "cgroup.procs").write_text(str(process.pid))
        send(process)
        process.kill()
        until(lambda: state(process.pid) == "Z")
        hierarchy.rmdir()
        assert " (deleted)\n" in Path(f"/proc/{process.pid}/cgroup").read_text()
        told = found(process.pid)
    assert told.container == Container(uid=f"{os.getpid():064x}", runtime="docker")


def test_a_working_directory_that_is_gone_says_so(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    with running(sys.executable, "-c", WAITING, cwd=gone) as process:
        gone.rmdir()
        assert found(process.pid).working_directory == f"{gone} (deleted)"
