from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ocsf_nft import proc
from ocsf_nft.attribution import process_details
from ocsf_nft.attribution.program_hashes import ProgramHashes
from tests.attribution.living import WAITING, cat, copied, python, send
from tests.attribution.process_details_helpers import PYTHON, directory, found

pytestmark = pytest.mark.kernel


def test_deleted_program_has_its_former_path(tmp_path: Path) -> None:
    program = copied(tmp_path / "implant")
    with cat(program) as process:
        program.unlink()
        result = found(process.pid)
    assert (result.path, result.is_deleted, result.name) == (str(program), True, "implant")


def test_replaced_program_is_the_one_that_runs(tmp_path: Path) -> None:
    program = copied(tmp_path / "implant")
    content = program.read_bytes()
    with cat(program) as process:
        (tmp_path / "other").write_text("#!/bin/true")
        (tmp_path / "other").rename(program)
        result = found(process.pid, ProgramHashes(1 << 30))
    assert (result.path, result.is_deleted) == (str(program), True)
    assert result.sha256 == hashlib.sha256(content).hexdigest()


def test_program_with_a_name_like_deleted_is_not_deleted(tmp_path: Path) -> None:
    program = copied(tmp_path / "implant (deleted)")
    with cat(program) as process:
        result = found(process.pid)
        # The suffix may also show a removed name of a file that has another one.
        assert (result.path, result.is_deleted) == (str(program), None)
        program.unlink()
        result = found(process.pid)
        assert (result.path, result.is_deleted) == (str(program), True)


def test_program_with_a_second_name_keeps_its_removed_path(tmp_path: Path) -> None:
    program = copied(tmp_path / "implant")
    with cat(program) as process:
        (tmp_path / "other").hardlink_to(program)
        program.unlink()
        result = found(process.pid)
    assert (result.path, result.is_deleted) == (f"{program} (deleted)", None)


def test_path_keeps_all_its_bytes(tmp_path: Path) -> None:
    name = b'\xff\xc3\x28 "}\n\x1b[31m'
    program = copied(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)))
    with cat(program) as process:
        result = found(process.pid)
    assert result.path == str(program)
    assert result.name is not None
    assert result.name.encode("utf-8", "surrogateescape") == name[:15]


@pytest.mark.parametrize("name", ["implant", "../../bin//ls/.", "a (deleted)", ""])
def test_memfd_program_has_the_name_of_the_memfd(name: str) -> None:
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
            result = found(process.pid, ProgramHashes(1 << 30))
    finally:
        os.close(descriptor)
    assert (result.path, result.is_deleted) == (f"memfd:{name}", True)
    assert result.sha256 == hashlib.sha256(content).hexdigest()
    assert result.cmd_line == "[kworker/0:0]"


def test_program_at_a_path_like_a_memfd_is_not_one() -> None:
    program = copied(Path(f"/memfd:ocsf-nft-{os.getpid()}"))
    try:
        with cat(program) as process:
            program.unlink()
            result = found(process.pid)
    finally:
        program.unlink(missing_ok=True)
    assert (result.path, result.is_deleted) == (str(program), True)


def test_memfd_device_is_known_without_a_new_kernel_flag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_details, "_MFD_CLOEXEC_NOEXEC", 1 << 20)
    assert process_details._memfd_device.__wrapped__() == process_details._memfd_device()
    monkeypatch.setattr(os, "MFD_CLOEXEC", 1 << 20)
    assert process_details._memfd_device.__wrapped__() is None


# An exec during the read.


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
    """Make the process run its next program during ``times`` reads."""
    real, left = process_details._cgroups, [times]

    def reading(descriptor: int) -> str:
        if left[0]:
            left[0] -= 1
            send(process)
        return real(descriptor)

    monkeypatch.setattr(process_details, "_cgroups", reading)


@pytest.fixture
def other(tmp_path: Path) -> str:
    """Return the path of another Python program."""
    link = tmp_path / "other"
    link.symlink_to(sys.executable)
    return str(link)


@pytest.mark.usefixtures("changing")
def test_program_started_during_the_read_is_read_again(
    monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    with python(CHANGING, other, "unused") as process:
        reading_with(monkeypatch, process, 1)
        result = found(process.pid)
    assert (result.name, result.path) == ("other", str(PYTHON))
    assert result.cmd_line == f"{other} -c {CHANGING} unused"


@pytest.mark.usefixtures("changing")
def test_details_that_may_be_of_two_programs_are_unknown(
    monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    with python(CHANGING, other, other, "unused") as process:
        reading_with(monkeypatch, process, 2)
        result = found(process.pid, ProgramHashes(1 << 30))
    assert (result.name, result.cmd_line) == (None, None)
    # Both names are links to the same file.
    assert result.path == str(PYTHON)
    assert result.uid == 0


@pytest.mark.usefixtures("changing")
def test_second_exec_of_the_same_program_is_detected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with python(CHANGING, sys.executable, sys.executable, "unused") as process:
        reading_with(monkeypatch, process, 2)
        result = found(process.pid)
    assert (result.name, result.cmd_line) == (None, None)


def test_program_file_that_changes_during_the_read_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copies = [str(copied(tmp_path / name)) for name in ("one", "two")]
    code = "import os, sys; print(flush=True); input(); os.execv(sys.argv[1], sys.argv[1:])"
    real = process_details._cgroups
    with python(code, copies[0]) as process, cat(Path(copies[1])) as second:
        opened = Path(f"/proc/{second.pid}")

        def reading(descriptor: int) -> str:
            # As if the process ran the second file now.
            with proc.opened(str(opened)) as now_another:
                os.dup2(now_another, descriptor)
            return real(descriptor)

        monkeypatch.setattr(process_details, "_cgroups", reading)
        with directory(process.pid) as descriptor:
            stat = proc.stat(descriptor)
            is_of_one, _, seen = process_details._read_once(
                process.pid, descriptor, stat, is_ancestor=False, hashes=ProgramHashes(1 << 30)
            )
    assert not is_of_one
    assert (seen.path, seen.is_deleted, seen.sha256) == (None,) * 3
    assert (seen.cmd_line, seen.name) == (None, None)


def test_process_in_the_middle_of_an_exec_has_no_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with python(WAITING) as process, directory(process.pid) as descriptor:
        stat = proc.stat(descriptor)._replace(name=b"before", layout=None)
        monkeypatch.setattr(proc, "stat", lambda _: stat)
        result = found(process.pid)
    assert (result.name, result.cmd_line) == (None, None)
    assert result.path == str(PYTHON)
