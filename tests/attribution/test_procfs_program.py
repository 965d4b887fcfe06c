from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ocsf_nft import proc
from ocsf_nft.attribution import procfs
from ocsf_nft.attribution.program_hashes import Hashes
from tests.attribution.living import WAITING, cat, copied, python, send
from tests.attribution.told import PYTHON, directory, found

pytestmark = pytest.mark.kernel


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
            with proc.opened(str(opened)) as now_another:
                os.dup2(now_another, descriptor)
            return real(descriptor)

        monkeypatch.setattr(procfs, "_cgroups", reading)
        with directory(process.pid) as descriptor:
            stat = proc.stat(descriptor)
            look, is_of_one = procfs._once(descriptor, stat, is_ancestor=False, hashes=Hashes())
    assert not is_of_one
    assert (look.program, look.sha256, look.arguments, look.name) == (None,) * 4


def test_who_is_about_to_start_a_program_still_has_the_name_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with python(WAITING) as process, directory(process.pid) as descriptor:
        stat = proc.stat(descriptor)._replace(name=b"before", layout=None)
        monkeypatch.setattr(proc, "stat", lambda _: stat)
        told = found(process.pid)
    assert (told.name, told.cmd_line) == (None, None)
    assert told.path == str(PYTHON)
