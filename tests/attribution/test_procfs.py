from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.attribution import procfs
from ocsf_nft.attribution.hashes import Hashes
from ocsf_nft.process import Container, Process
from tests.attribution.living import (
    WAITING,
    cat,
    children,
    copied,
    descriptors,
    now,
    python,
    running,
    send,
    until,
)
from tests.kernel.users import as_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.kernel

PYTHON = Path(sys.executable).resolve()
TICK_NS = 10_000_000
#: What reading says of who is gone, by when it went.
GONE = (FileNotFoundError, ProcessLookupError)
_EXIT = {"x86_64": 60, "aarch64": 93}[platform.machine()]


def found(pid: int, *, started_by_ns: int | None = None, started_ns: int | None = None) -> Process:
    process = procfs.read(pid, started_by_ns=started_by_ns, started_ns=started_ns)
    assert process is not None
    return process


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@contextlib.contextmanager
def directory(pid: int) -> Iterator[int]:
    with procfs._opened(f"/proc/{pid}") as descriptor:
        yield descriptor


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


def test_its_ancestors_are_told_up_to_the_first_process(tmp_path: Path) -> None:
    with python(WAITING) as process:
        ancestors = found(process.pid).ancestors
        assert ancestors[0].pid == os.getpid()
        assert ancestors[0].path == str(PYTHON)
        assert ancestors[1].pid == os.getppid()
        assert ancestors[-1].pid == 1
        assert {each.ancestors for each in ancestors} == {()}
        # What they were called with is nobody's business, and where.
        assert {(each.cmd_line, each.working_directory) for each in ancestors} == {(None, None)}
        again = found(process.pid)
    assert again.ancestors == ancestors
    assert not list(tmp_path.iterdir())


def test_no_more_than_sixteen_ancestors_are_told() -> None:
    code = """
import os
for _ in range(20):
    if (child := os.fork()):
        os.waitpid(child, 0)
        os._exit(0)
print(os.getpid(), flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        told = found(int(process.stdout.readline()))
    assert len(told.ancestors) == 16
    assert process.pid not in {each.pid for each in told.ancestors}


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


def test_nothing_stays_open() -> None:
    before = descriptors()
    with python(WAITING) as process:
        procfs.read(process.pid, hashes=Hashes())
    procfs.read(process.pid)
    procfs.read(threading.get_native_id(), started_by_ns=0)
    assert descriptors() == before


# The program.


def test_a_program_that_is_gone_is_told_where_it_was(tmp_path: Path) -> None:
    program = copied(tmp_path / "implant")
    with cat(program) as process:
        program.unlink()
        told = found(process.pid)
    assert (told.path, told.is_deleted, told.name) == (str(program), True, "implant")


def test_a_program_that_was_replaced_is_the_one_that_runs(tmp_path: Path) -> None:
    program = copied(tmp_path / "implant")
    content = program.read_bytes()
    with cat(program) as process:
        (tmp_path / "other").write_text("#!/bin/true")
        (tmp_path / "other").rename(program)
        told = procfs.read(process.pid, hashes=Hashes())
    assert told is not None
    assert (told.path, told.is_deleted) == (str(program), True)
    assert told.sha256 == hashlib.sha256(content).hexdigest()


def test_a_program_that_is_called_deleted_is_not(tmp_path: Path) -> None:
    program = copied(tmp_path / "implant (deleted)")
    with cat(program) as process:
        told = found(process.pid)
        # It may be the name of one that has another one beside it.
        assert (told.path, told.is_deleted) == (str(program), None)
        program.unlink()
        told = found(process.pid)
        assert (told.path, told.is_deleted) == (str(program), True)


def test_a_program_that_has_another_name_still_is_not_told_by_it(tmp_path: Path) -> None:
    program = copied(tmp_path / "implant")
    with cat(program) as process:
        (tmp_path / "other").hardlink_to(program)
        program.unlink()
        told = found(process.pid)
    assert (told.path, told.is_deleted) == (f"{program} (deleted)", None)


def test_a_path_is_told_byte_by_byte(tmp_path: Path) -> None:
    name = b'\xff\xc3\x28 "}\n\x1b[31m'
    program = copied(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)))
    with cat(program) as process:
        told = found(process.pid)
    assert told.path == str(program)
    assert told.name is not None
    assert told.name.encode("utf-8", "surrogateescape") == name[:15]


@pytest.mark.parametrize("name", ["implant", "../../bin//ls/.", "a (deleted)", ""])
def test_a_program_in_memory_is_told_by_its_name(name: str) -> None:
    content = Path("/bin/cat").resolve().read_bytes()
    descriptor = os.memfd_create(name, 0)
    try:
        os.write(descriptor, content)
        with subprocess.Popen(
            ["[kworker/0:0]"],
            executable=f"/proc/self/fd/{descriptor}",
            pass_fds=[descriptor],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            send(process)
            told = procfs.read(process.pid, hashes=Hashes())
    finally:
        os.close(descriptor)
    assert told is not None
    assert (told.path, told.is_deleted) == (f"memfd:{name}", True)
    assert told.sha256 == hashlib.sha256(content).hexdigest()
    assert told.cmd_line == "[kworker/0:0]"


def test_a_program_at_a_path_like_that_is_not_in_memory() -> None:
    program = copied(Path(f"/memfd:ocsf-nft-{os.getpid()}"))
    try:
        with cat(program) as process:
            program.unlink()
            told = found(process.pid)
    finally:
        program.unlink(missing_ok=True)
    assert (told.path, told.is_deleted) == (str(program), True)


def test_a_kernel_without_a_flag_for_it_still_knows_what_is_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(procfs, "_MFD_CLOEXEC_NOEXEC", 1 << 20)
    assert procfs._memory.__wrapped__() == procfs._memory()
    monkeypatch.setattr(os, "MFD_CLOEXEC", 1 << 20)
    assert procfs._memory.__wrapped__() is None


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


NAMES = [
    b") S 1 1 1",
    b"a) Z 1 (b",
    b"a\rTgid:\t1",
    b"a\nTgid:\t1",
    b"\nUid:\t7\t7\t7\t7",
    b"(",
    b"",
    b'{"a":"\\n"}\n',
    b"\x1b]0;x\x07",
    b"\xe2\x80",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_name_whatever_is_in_it(name: bytes) -> None:
    end = b"\0"
    code = f"open('/proc/self/comm', 'wb').write({name + end!r}); " + WAITING
    with python(code) as process:
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


# Another program meanwhile.


CHANGING = """
import os, sys
print(flush=True)
input()
program, *others = sys.argv[1:]
os.execv(program, [program, "-c", os.environ["CODE"], *others])
"""


@pytest.fixture
def changing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODE", CHANGING)


def reading_with(
    monkeypatch: pytest.MonkeyPatch, process: subprocess.Popen[bytes], times: int
) -> None:
    """Have it run its next program while we read, so many times."""
    real, left = procfs._cgroups, [times]

    def reading(descriptor: int) -> str:
        if left[0]:
            left[0] -= 1
            send(process)
        return real(descriptor)

    monkeypatch.setattr(procfs, "_cgroups", reading)


@pytest.fixture
def other(tmp_path: Path) -> str:
    """Another program that is Python too."""
    link = tmp_path / "other"
    link.symlink_to(sys.executable)
    return str(link)


@pytest.mark.usefixtures("changing")
def test_a_program_that_is_started_meanwhile_is_told_whole(
    monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    with python(CHANGING, other, "unused") as process:
        reading_with(monkeypatch, process, 1)
        told = found(process.pid)
    assert (told.name, told.path) == ("other", str(PYTHON))
    assert told.cmd_line == f"{other} -c {CHANGING} unused"


@pytest.mark.usefixtures("changing")
def test_what_may_be_of_two_programs_is_unknown(
    monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    with python(CHANGING, other, other, "unused") as process:
        reading_with(monkeypatch, process, 2)
        told = procfs.read(process.pid, hashes=Hashes())
    assert told is not None
    assert (told.name, told.cmd_line) == (None, None)
    # Both are the same file, by whatever name they were called.
    assert told.path == str(PYTHON)
    assert told.uid == 0


@pytest.mark.usefixtures("changing")
def test_a_program_that_has_the_same_name_as_the_one_before_is_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with python(CHANGING, sys.executable, sys.executable, "unused") as process:
        reading_with(monkeypatch, process, 2)
        told = found(process.pid)
    assert (told.name, told.cmd_line) == (None, None)


def test_a_file_that_is_another_one_afterwards_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copies = [str(copied(tmp_path / name)) for name in ("one", "two")]
    code = "import os, sys; print(flush=True); input(); os.execv(sys.argv[1], sys.argv[1:])"
    real = procfs._cgroups
    with python(code, copies[0]) as process, cat(Path(copies[1])) as second:
        opened = Path(f"/proc/{second.pid}")

        def reading(descriptor: int) -> str:
            # As though it were the second one by now.
            with procfs._opened(str(opened)) as now_another:
                os.dup2(now_another, descriptor)
            return real(descriptor)

        monkeypatch.setattr(procfs, "_cgroups", reading)
        with directory(process.pid) as descriptor:
            stat = procfs._stat(descriptor)
            look, is_of_one = procfs._once(descriptor, stat, is_ancestor=False, hashes=Hashes())
    assert not is_of_one
    assert (look.program, look.sha256, look.arguments, look.name) == (None,) * 4


def test_who_is_about_to_start_a_program_still_has_the_name_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with python(WAITING) as process, directory(process.pid) as descriptor:
        stat = procfs._stat(descriptor)._replace(name="before", layout=None)
        monkeypatch.setattr(procfs, "_stat", lambda _: stat)
        told = found(process.pid)
    assert (told.name, told.cmd_line) == (None, None)
    assert told.path == str(PYTHON)


# Threads.


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
        look = procfs._look(thread, procfs._stat(thread))
        assert procfs._of_its_process(look, thread, leader).stat.name == found(os.getpid()).name
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


# Who started it.


def test_who_is_not_its_parent_is_no_ancestor() -> None:
    with (
        python(WAITING) as process,
        python(WAITING) as other,
        directory(process.pid) as child,
        contextlib.ExitStack() as opened,
    ):
        stat = procfs._stat(child)
        assert procfs._parent(child, stat, opened) is not None
        # Who has that number by now: the child has been given to somebody else.
        assert procfs._parent(child, stat._replace(parent=1), opened) is None
        # Who has it, and is younger than the child.
        assert procfs._parent(child, stat._replace(start=0), opened) is None
        assert procfs._parent(child, stat._replace(parent=other.pid), opened) is None
        assert procfs._parent(child, stat._replace(parent=0), opened) is None


def test_whose_parent_ends_meanwhile_has_no_ancestors(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import subprocess, sys
with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"]) as child:
    child.wait()
"""
    with python(code) as process:
        (child,) = children(process.pid)
        real = procfs._look

        def looking(
            directory: int,
            stat: procfs._Stat,
            *,
            is_ancestor: bool = False,
            hashes: Hashes | None = None,
        ) -> procfs._Look:
            look = real(directory, stat, is_ancestor=is_ancestor, hashes=hashes)
            if is_ancestor:
                process.kill()
                until(lambda: state(process.pid) == "Z")
            return look

        assert [each.pid for each in found(child).ancestors][:2] == [process.pid, os.getpid()]
        monkeypatch.setattr(procfs, "_look", looking)
        assert found(child).ancestors == ()


def in_namespaces(depth: int) -> tuple[str, ...]:
    return ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc") * depth


@pytest.mark.parametrize("depth", [1, 2])
def test_ancestors_end_with_the_sandboxs_own_init(depth: int) -> None:
    code = f"""
import subprocess, sys
with subprocess.Popen([sys.executable, "-c", "{WAITING}", "grandchild"]) as child:
    child.wait()
"""
    with running(*in_namespaces(depth), sys.executable, "-c", code, "child") as process:
        line = [process.pid]
        while below := children(line[-1]):
            line += below
        told = found(line[-1])
        init = found(line[1])
        assert told.cmd_line is not None
        assert told.cmd_line.endswith(" grandchild")
        assert told.namespace_pid is not None
        assert told.namespace_pid > 1
        # A namespace that somebody made inside the sandbox is not where it begins.
        assert [each.pid for each in told.ancestors] == line[1:-1][::-1]
        assert told.ancestors[-1].namespace_pid == 1
        assert (init.namespace_pid, init.ancestors) == (1, ())
        assert found(process.pid).namespace_pid is None


def test_who_has_users_of_its_own_is_told_by_ours() -> None:
    with running(
        *("setpriv", "--reuid=1234", "--regid=4321", "--clear-groups"),
        *("unshare", "-Ur", "/bin/sh", "-c", "echo; read line"),
    ) as process:
        told = found(process.pid)
    assert (told.uid, told.gid, told.user_name, told.group_name) == (1234, 4321, None, None)


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


# What the kernel writes.

FIELDS = st.lists(st.integers(0, 1 << 64), min_size=49, max_size=55)


@given(st.binary(max_size=64), FIELDS, st.sampled_from(["S", "R", "Z"]))
def test_whatever_its_name_is_the_rest_is_read_right(
    name: bytes, numbers: list[int], letter: str
) -> None:
    rest = " ".join([letter, *map(str, numbers)])
    stat = procfs._parsed(b"%d (%b) %b\n" % (numbers[0], name, rest.encode()))
    assert stat.name.encode("utf-8", "surrogateescape") == name
    assert stat.is_dead == (letter == "Z")
    assert (stat.parent, stat.threads, stat.start) == (numbers[0], numbers[16], numbers[18])
    places = tuple(str(each).encode() for each in (*numbers[22:25], *numbers[41:48]))
    assert stat.layout == (places if numbers[44] else None)


@pytest.mark.parametrize(
    "text", [b"", b"1 (a) S 1", b"1 a S" + b" 1" * 60, b"1 (a) S x" + b" 1" * 60]
)
def test_what_is_no_stat_is_not_read(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"no stat of a process|invalid literal"):
        procfs._parsed(text)


@given(st.binary(max_size=20))
def test_status_is_the_kernels_whatever_the_name_is(name: bytes) -> None:
    shown = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    text = b"Name:\t%b\nTgid:\t7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nNStgid:\t7\t1\n" % shown
    patterns = (procfs._GROUP, procfs._USER, procfs._USERS_GROUP)
    assert [procfs._number(each, text) for each in patterns] == [7, 2, 6]
    numbers = procfs._NUMBERS.search(text)
    assert numbers is not None
    assert numbers[1].split() == [b"7", b"1"]
