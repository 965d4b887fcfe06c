from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import proc
from ocsf_nft.attribution import process_details
from tests.attribution.living import WAITING, children, python, running, until
from tests.attribution.process_details_helpers import PYTHON, directory, found, state

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.attribution.program_hashes import ProgramHashes
    from ocsf_nft.process import Process

pytestmark = pytest.mark.kernel


def test_ancestors_end_with_the_first_process(tmp_path: Path) -> None:
    with python(WAITING) as process:
        ancestors = found(process.pid).ancestors
        assert ancestors[0].pid == os.getpid()
        assert ancestors[0].path == str(PYTHON)
        assert ancestors[1].pid == os.getppid()
        assert ancestors[-1].pid == 1
        assert {each.ancestors for each in ancestors} == {()}
        # Arguments and directories of ancestors are private.
        assert {(each.cmd_line, each.working_directory) for each in ancestors} == {(None, None)}
        again = found(process.pid)
    assert again.ancestors == ancestors
    assert not list(tmp_path.iterdir())


def test_read_returns_at_most_sixteen_ancestors() -> None:
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
        result = found(int(process.stdout.readline()))
    assert len(result.ancestors) == 16
    assert process.pid not in {each.pid for each in result.ancestors}


def test_process_that_is_not_the_parent_is_no_ancestor() -> None:
    with (
        python(WAITING) as process,
        python(WAITING) as other,
        directory(process.pid) as child,
        contextlib.ExitStack() as opened,
    ):
        stat = proc.stat(child)
        above = process_details._parent(child, stat, opened)
        assert above is not None
        assert above[2].pid == os.getpid()
        # The parent has changed: the child has a new one.
        assert process_details._parent(child, stat._replace(parent=1), opened) is None
        # The process with that number is younger than the child.
        assert process_details._parent(child, stat._replace(start=0), opened) is None
        assert process_details._parent(child, stat._replace(parent=other.pid), opened) is None
        assert process_details._parent(child, stat._replace(parent=0), opened) is None


def test_process_whose_parent_ends_during_the_read_has_no_ancestors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = """
import subprocess, sys
with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"]) as child:
    child.wait()
"""
    with python(code) as process:
        (child,) = children(process.pid)
        real = process_details._observe

        def observe(
            pid: int,
            directory: int,
            stat: proc.Stat,
            *,
            is_ancestor: bool = False,
            hashes: ProgramHashes | None = None,
        ) -> tuple[proc.Stat, Process]:
            seen = real(pid, directory, stat, is_ancestor=is_ancestor, hashes=hashes)
            if is_ancestor:
                process.kill()
                until(lambda: state(process.pid) == "Z")
            return seen

        assert [each.pid for each in found(child).ancestors][:2] == [process.pid, os.getpid()]
        monkeypatch.setattr(process_details, "_observe", observe)
        assert found(child).ancestors == ()


def in_namespaces(depth: int) -> tuple[str, ...]:
    return ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc") * depth


@pytest.mark.parametrize("depth", [1, 2])
def test_ancestors_do_not_end_with_the_init_of_a_pid_namespace(depth: int) -> None:
    code = f"""
import subprocess, sys
with subprocess.Popen([sys.executable, "-c", "{WAITING}", "grandchild"]) as child:
    child.wait()
"""
    with running(*in_namespaces(depth), sys.executable, "-c", code, "child") as process:
        line = [process.pid]
        while below := children(line[-1]):
            line += below
        result = found(line[-1])
        init = found(line[1])
        assert result.cmd_line is not None
        assert result.cmd_line.endswith(" grandchild")
        assert result.namespace_pid is not None
        assert result.namespace_pid > 1
        line = [os.getpid(), *line[:-1]]
        assert [each.pid for each in result.ancestors][: len(line)] == line[::-1]
        assert result.ancestors[-1].pid == 1
        assert init.namespace_pid == 1
        assert found(process.pid).namespace_pid is None
