from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft import proc
from tests.attribution.living import WAITING, copied, descriptors, now, python, running, send, until
from tests.attribution.process_details_helpers import (
    EXITED,
    NAMES,
    PYTHON,
    TICK_NS,
    called,
    directory,
    state,
    ticks,
)

# Text that the kernel writes.

FIELDS = st.lists(st.integers(0, 1 << 64), min_size=49, max_size=55)


@given(st.binary(max_size=64), FIELDS, st.sampled_from(["S", "R", "Z"]))
def test_fields_of_stat_are_correct_with_any_name(
    name: bytes, numbers: list[int], letter: str
) -> None:
    rest = " ".join([letter, *map(str, numbers)])
    stat = proc.parsed_stat(b"%d (%b) %b\n" % (numbers[0], name, rest.encode()))
    assert stat.name == name
    assert stat.is_dead == (letter == "Z")
    assert (stat.parent, stat.threads, stat.start) == (numbers[0], numbers[16], numbers[18])
    assert stat.flags == numbers[5]
    assert stat.had_children == any((numbers[7], numbers[9], *numbers[12:14]))
    layout = tuple(str(each).encode() for each in (*numbers[22:25], *numbers[41:48]))
    assert stat.layout == (layout if numbers[44] and numbers[45] else None)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"1 (a) S 1",
        b"1 (a) S" + b" 1" * 47,
        b"1 a S" + b" 1" * 60,
        b"1 (a) S x" + b" 1" * 60,
    ],
)
def test_malformed_stat_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"no stat of a process|invalid literal"):
        proc.parsed_stat(text)


def test_each_field_of_a_stat_has_its_own_meaning() -> None:
    for field in range(48):
        zeros, ones = [0] * 48, [1] * 48
        zeros[field], ones[field] = 1, 0
        one, others = (
            proc.parsed_stat(b"1 (a) S %b" % " ".join(map(str, each)).encode())
            for each in (zeros, ones)
        )
        # Page faults and time of children; the ends of the arguments (proc_pid_stat(5)).
        assert one.had_children == (field in {7, 9, 12, 13})
        assert (others.layout is None) == (field in {44, 45})


STATUS = b"Name:\t%b\nTgid:\t7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nNStgid:\t7\t1\n"


def shown(name: bytes) -> bytes:
    """Return a name as ``status`` shows it: of all line ends only the usual one is escaped."""
    return name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")


@given(st.binary(max_size=20))
def test_fields_of_status_are_correct_with_any_name(name: bytes) -> None:
    status = proc.parsed_status(STATUS % shown(name))
    assert status == proc.Status(group=7, uid=2, gid=6, numbers=(7, 1))


@pytest.mark.parametrize("end", [b"\r", b"\x0b", b"\x0c", b"\x1c", b"\x85", b"\n"])
def test_line_end_in_a_name_does_not_start_a_line_of_status(end: bytes) -> None:
    lines = [b"Tgid:\t1", b"Uid:\t9\t9\t9\t9", b"Gid:\t9\t9\t9\t9", b"NStgid:\t9", b""]
    status = proc.parsed_status(STATUS % shown(end.join([b"a", *lines])))
    assert status == proc.Status(group=7, uid=2, gid=6, numbers=(7, 1))


def test_status_without_pid_namespaces_has_no_numbers() -> None:
    status = proc.parsed_status((STATUS % b"a").replace(b"NStgid:\t7\t1\n", b""))
    assert (status.group, status.numbers) == (7, ())


@pytest.mark.parametrize("line", [b"Tgid:", b"Uid:", b"Gid:"])
def test_malformed_status_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="no status of a process"):
        proc.parsed_status((STATUS % b"a").replace(line, b"x"))


# Data of a process.


@pytest.mark.kernel
@pytest.mark.parametrize("name", NAMES)
def test_process_data_is_correct_with_any_name(name: bytes) -> None:
    with python(called(name)) as process, directory(process.pid) as descriptor:
        stat, status = proc.stat(descriptor), proc.status(descriptor)
    assert (stat.name, stat.parent, stat.is_dead) == (name, os.getpid(), False)
    assert stat.layout is not None
    assert status == proc.Status(process.pid, 0, 0, (process.pid,))


@pytest.mark.kernel
def test_start_time_has_the_resolution_of_a_clock_tick() -> None:
    assert proc.TICK_NS * os.sysconf("SC_CLK_TCK") == 1_000_000_000
    before_ns, since_ns = now(), time.time_ns()
    with python(WAITING) as process, directory(process.pid) as descriptor:
        stat = proc.stat(descriptor)
        assert stat.started_ns == ticks(process.pid) * TICK_NS
    assert before_ns - TICK_NS <= stat.started_ns <= now()
    assert since_ns - 2 * TICK_NS <= stat.created_ns <= time.time_ns()
    assert len({stat.created_ns for _ in range(20)}) <= 2


@pytest.mark.kernel
def test_directory_descriptor_never_refers_to_another_process() -> None:
    with python(WAITING) as process, directory(process.pid) as descriptor:
        process.kill()
        until(lambda: state(process.pid) == "Z")
        assert proc.stat(descriptor).is_dead
        process.wait()
        for read in (proc.stat, proc.status, proc.arguments):
            with pytest.raises(EXITED):
                read(descriptor)
        assert proc.link("exe", descriptor) is None


@pytest.mark.kernel
def test_no_descriptor_stays_open() -> None:
    before = descriptors()
    with proc.opened("/proc/self") as whole, proc.opened("task", whole) as tasks:
        proc.stat(tasks, f"{os.getpid()}/stat")
        proc.status(whole)
        with pytest.raises(FileNotFoundError):
            proc.read("nothing", whole)
    assert descriptors() == before


@pytest.mark.kernel
def test_process_that_waited_for_a_child_had_children() -> None:
    with (
        running("/bin/sh", "-c", "/bin/true; echo; read line") as parent,
        directory(parent.pid) as descriptor,
    ):
        assert proc.stat(descriptor).had_children
    with python(WAITING) as process, directory(process.pid) as descriptor:
        assert not proc.stat(descriptor).had_children


@pytest.mark.kernel
def test_program_and_layout_of_another_users_process_are_unknown() -> None:
    code = """
import sys
from ocsf_nft import proc
with proc.opened(f"/proc/{sys.argv[1]}") as directory:
    print(proc.stat(directory).layout, proc.link("exe", directory), proc.status(directory).uid)
"""
    with python(WAITING) as process:
        command = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", code]
        done = subprocess.run(
            [*command, str(process.pid)], capture_output=True, text=True, check=True
        )
    assert done.stdout == "None None 0\n"


@pytest.mark.kernel
def test_link_returns_the_exact_bytes_of_its_target(tmp_path: Path) -> None:
    program = copied(Path(os.fsdecode(os.fsencode(tmp_path) + b'/\xff\xc3\x28 "}\n')))
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        send(process)
        with directory(process.pid) as descriptor:
            assert proc.link("exe", descriptor) == str(program)
            program.unlink()
            assert proc.link("exe", descriptor) == f"{program} (deleted)"
    with directory(2) as kernel_thread:
        assert proc.link("exe", kernel_thread) is None


# Limits of reading.


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 8192, 9000, 20_000])
@pytest.mark.parametrize("most", [4096, 9000, 1 << 20])
def test_read_stops_at_the_maximum(tmp_path: Path, size: int, most: int) -> None:
    content = bytes(each % 251 for each in range(size))
    (tmp_path / "file").write_bytes(content)
    with proc.opened(str(tmp_path)) as descriptor:
        assert proc.read("file", descriptor, most=most) == content[:most]


def test_file_is_read_up_to_a_mebibyte_by_default(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes((1 << 20) + 1))
    with proc.opened(str(tmp_path)) as descriptor:
        assert len(proc.read("file", descriptor)) == 1 << 20


@pytest.mark.kernel
def test_status_of_a_process_with_many_groups_is_read_completely() -> None:
    code = f"import os; os.setgroups(range(4_000_000_000, 4_000_030_000)); {WAITING}"
    with python(code) as process, directory(process.pid) as descriptor:
        assert len(proc.read("status", descriptor)) > 300_000
        assert proc.status(descriptor) == proc.Status(process.pid, 0, 0, (process.pid,))


@pytest.mark.kernel
def test_arguments_are_read_up_to_a_page() -> None:
    with python(WAITING, "a b", "") as process, directory(process.pid) as descriptor:
        assert proc.arguments(descriptor) == f"{sys.executable} -c {WAITING} a b"
    with python(WAITING, *["x" * 100_000] * 10) as process, directory(process.pid) as descriptor:
        read = proc.arguments(descriptor)
    assert read is not None
    assert len(read) == 4096 + len("…")
    with directory(2) as kernel_thread:
        assert proc.arguments(kernel_thread) is None


@pytest.mark.kernel
def test_arguments_may_be_any_bytes() -> None:
    command = ("/bin/sh", "-c", "echo; read line", "sh", os.fsdecode(b"\xff\n\x1b[2J"))
    with running(*command) as process, directory(process.pid) as descriptor:
        read = proc.arguments(descriptor)
    assert read is not None
    assert read.encode("utf-8", "surrogateescape").endswith(b" sh \xff\n\x1b[2J")


# Detection of another program in the same process.

ONE, OTHER = (b"1", b"2"), (b"3", b"4")


@pytest.mark.parametrize(
    ("before", "after", "has_program", "is_same"),
    [
        ((b"a", ONE), (b"a", ONE), True, True),
        ((b"a", ONE), (b"b", ONE), True, True),  # it changed its name
        ((b"a", ONE), (b"a", OTHER), True, False),
        ((b"a", ONE), (b"a", None), True, False),
        ((b"a", None), (b"a", ONE), True, False),
        ((b"a", None), (b"a", None), True, False),  # before the start of the program
        ((b"a", None), (b"a", None), False, True),
        ((b"a", None), (b"b", None), False, False),
        ((b"a", ONE), (b"a", None), False, False),
    ],
)
def test_another_program_has_another_layout(
    before: tuple[bytes, tuple[bytes, ...] | None],
    after: tuple[bytes, tuple[bytes, ...] | None],
    has_program: bool,
    is_same: bool,
) -> None:
    stat = proc.parsed_stat(b"1 (a) S" + b" 1" * 60)
    stats = [stat._replace(name=name, layout=layout) for name, layout in (before, after)]
    assert proc.is_same_program(*stats, has_program=has_program) == is_same


@pytest.mark.kernel
def test_second_execution_of_a_program_is_another_program() -> None:
    code = "import os, sys; print(flush=True); input(); os.execv(sys.argv[1], sys.argv[1:])"
    with (
        python(code, sys.executable, "-c", WAITING) as process,
        directory(process.pid) as descriptor,
    ):
        before, again = proc.stat(descriptor), proc.stat(descriptor)
        assert proc.is_same_program(before, again, has_program=True)
        send(process)
        after = proc.stat(descriptor)
        assert proc.link("exe", descriptor) == str(PYTHON)
        assert after.name == before.name
        assert not proc.is_same_program(before, after, has_program=True)


# The initial pid namespace.


@pytest.mark.kernel
@pytest.mark.parametrize(
    "under",
    [("unshare", "-p", "-f"), ("unshare", "-p", "-f", "--mount-proc"), ("unshare", "-m")],
)
def test_only_the_initial_pid_namespace_is_the_initial_one(under: tuple[str, ...]) -> None:
    code = "from ocsf_nft import proc; print(proc.is_initial())"
    done = subprocess.run(
        [*under, sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(under == ("unshare", "-m"))


@pytest.mark.kernel
def test_proc_with_another_pid_for_us_is_of_another_namespace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert proc.is_initial()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert not proc.is_initial()


@pytest.mark.kernel
def test_without_proc_the_namespace_is_not_the_initial_one() -> None:
    code = """
import subprocess
from ocsf_nft import proc
subprocess.run(["mount", "-t", "tmpfs", "none", "/proc"], check=True)
print(proc.is_initial())
"""
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_proc_without_a_first_process_hides_processes(tmp_path: Path) -> None:
    with proc.opened(str(tmp_path)) as directory:
        assert not proc.shows_all(directory)
        (tmp_path / "self").symlink_to(str(os.getpid()))
        assert not proc.shows_all(directory)
        (tmp_path / "1").mkdir()
        assert proc.shows_all(directory)


@pytest.mark.kernel
def test_arguments_have_no_secret() -> None:
    words = (WAITING, "--password", "s3cr3t 'Value'", "x" * 4100, "--token=s3cr3t-Value")
    with python(*words) as process, directory(process.pid) as descriptor:
        read = proc.arguments(descriptor)
    assert read is not None
    assert read.count("[redacted:") == 1
    assert "s3cr3t" not in read
