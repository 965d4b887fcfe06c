from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import proc
from ocsf_nft.attribution import procfs
from tests.attribution.living import WAITING, children, python, running, until
from tests.attribution.told import PYTHON, directory, found, state

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.attribution.program_hashes import Hashes

pytestmark = pytest.mark.kernel


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


def test_who_is_not_its_parent_is_no_ancestor() -> None:
    with (
        python(WAITING) as process,
        python(WAITING) as other,
        directory(process.pid) as child,
        contextlib.ExitStack() as opened,
    ):
        stat = proc.stat(child)
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
            stat: proc.Stat,
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
