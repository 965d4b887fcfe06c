"""Failures of a test for its own leftovers, and never for those of another test."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

_ROOT: Final = Path(__file__).parents[2]
_CONFTEST: Final = """
import pathlib
from tests import leftovers, scheduling
leftovers._EXIT_SECONDS = 0.1
# Its own: those of the machine are for the test that runs this one, and for tests beside it.
scheduling._LOCKS = pathlib.Path(__file__).parent

def pytest_configure(config):
    for name in ("kernel", "kernel_log"):
        config.addinivalue_line("markers", f"{name}: as here")
    config.pluginmanager.register(leftovers.Leftovers(config))
"""
_START: Final = """
import os, pathlib, socket, subprocess, threading, time
import pytest
pytestmark = pytest.mark.kernel
started = []
def run(*command): subprocess.run(command, check=True)
def meet(mine, others):
    open(mine, "w").close()
    until(lambda: os.path.exists(others))
def until(holds):
    end = time.monotonic() + 100
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
def commands():
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes().split(b"\\0")[:-1]
        except OSError:  # it has ended
            pass
def until_shown(*command):  # the kernel shows it some time after the process has started
    until(lambda: list(map(os.fsencode, command)) in commands())
def start(*command):
    started.append(subprocess.Popen(command, stdout=subprocess.PIPE))
    until_shown(*command)
def leave(shell, *command):  # a shell starts it in the background
    run("sh", "-c", shell.format(" ".join(command)) + " >&- 2>&- &")
    until_shown(*command)
def end(pid):
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid
"""
#: The code of a test, and the pattern of the failure that reports its leftover.
_KINDS: Final = {
    "namespace": ("run('ip', 'netns', 'add', 'one')", r"mount \d+ on /run/netns/one.*space one"),
    "child": ("start('sleep', '601')", r"descriptor .*process \d+ \(sleep 601\)"),
    "orphan": ("leave('setsid env -i {}', 'sleep', '602')", r"process \d+ \(sleep 602\)"),
    "elsewhere": ("leave('setsid unshare -m {}', 'sleep', '603')", r"process \d+ \(sleep 603\)"),
    "zombie": (
        "started.append(end(os.posix_spawn('/bin/true', ['true'], {})))",
        r"process \d+ \(ended\)",
    ),
    "mount": ("run('mount', '-t', 'tmpfs', 'tmpfs', '/mnt')", r"mount \d+ on /mnt"),
    "descriptor": ("started.append(socket.socket())", r"descriptor \d+ of socket:\[\d+\]"),
    "thread": (
        "threading.Thread(target=time.sleep, args=[600], daemon=True, name='x').start()",
        r"thread \d+ \(x\)",
    ),
}
#: Run pytest on a machine with its own table. The shell waits for orphans, as an init process does.
_HOST: Final = 'nft add table ip hosts; "$0" -m pytest -q -p no:cacheprovider "$@"; exit'
#: Leftovers end with the first process of their namespace.
_ENDING: Final = ("--pid", "--fork", "--mount-proc", "--kill-child")
#: The same for leftovers on the machine. A separate network namespace replaces the machine here.
_OF_THE_MACHINE: Final = {
    "table": ("run('nft', 'add', 'table', 'ip', 'mine')", "table ip mine"),
    "no_table": ("run('nft', 'delete', 'table', 'ip', 'hosts')", "no more table ip hosts"),
    "link": ("run('ip', 'link', 'add', 'mine0', 'type', 'veth')", "link mine0"),
    "sysctl": (
        "run('sh', '-c', 'echo 500 >/proc/sys/net/ipv4/icmp_ratelimit')",
        "sysctl net/ipv4/icmp_ratelimit = 500",
    ),
}


def _run(folder: Path, program: str, *options: str) -> str:
    """Run tests in their own network and process namespaces; return the output of pytest."""
    (folder / "conftest.py").write_text(_CONFTEST)
    (folder / "test_it.py").write_text(_START + program)
    done = subprocess.run(
        ["unshare", "--net", *_ENDING, "sh", "-c", _HOST, sys.executable, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(_ROOT), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.stdout + done.stderr


def _test(name: str, body: str) -> str:
    return f"def test_{name}():\n    {body}\n"


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """Yield the path of a cgroup (version 2) that does not exist yet."""
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    (mounted, *_) = (Path(words[1]) for words in lines if words[2] == "cgroup2")
    made = mounted / f"ocsf-nft-{secrets.token_hex(4)}"
    yield made
    made.rmdir()


def test_leftovers_fail_the_test_that_left_them(tmp_path: Path, cgroup: Path) -> None:
    kinds = _KINDS | _OF_THE_MACHINE | {"cgroup": (f"os.mkdir('{cgroup}')", str(cgroup))}
    tests = (
        _test(name, body) + _test(f"after_{name}", "pass") for name, (body, _) in kinds.items()
    )
    output = _run(tmp_path, "".join(tests))
    blamed = dict(re.findall(r"^ERROR test_it.py::test_(\w+) - (.*)$", output, re.MULTILINE))
    assert blamed.keys() == kinds.keys(), output
    for name, (_, words) in kinds.items():
        assert re.search(f"left behind: .*{words}", blamed[name]), (name, blamed[name])


def test_leftovers_of_a_shared_fixture_fail_its_last_test(tmp_path: Path) -> None:
    def fixture(name: str, scope: str, seconds: int, after: str) -> str:
        return (
            f"@pytest.fixture(scope='{scope}')\ndef {name}():\n"
            f"    start('sleep', '{seconds}')\n    yield started[-1]\n    {after}\n"
        )

    ended = "started[-1].kill(); started[-1].communicate()"
    fixtures = fixture("whole", "session", 601, "pass")
    fixtures += fixture("some", "module", 602, ended)
    tests = "def test_a(whole, some): pass\ndef test_b(some): pass\ndef test_c(): pass\n"
    output = _run(tmp_path, fixtures + tests)
    blamed = re.findall(
        r"^ERROR test_it.py::test_(\w+) - .*process \d+ \(sleep", output, re.MULTILINE
    )
    assert blamed == ["c"], output


def test_leftovers_of_one_worker_do_not_fail_a_test_of_another(tmp_path: Path) -> None:
    kinds = {**_KINDS, "table": _OF_THE_MACHINE["table"]}
    leaving = "; ".join(kinds[name][0] for name in ("namespace", "mount", "orphan", "table"))
    tests = _test("leaving", f"meet('b', 'a'); {leaving}; meet('d', 'c')")
    tests += _test("beside", "meet('a', 'b'); meet('c', 'd')")
    output = _run(tmp_path, tests, "-n", "2")
    assert re.findall(r"^ERROR test_it.py::test_(\w+)", output, re.MULTILINE) == ["leaving"], output
    assert "left behind (run without -n to see by which test)" in output
    assert "table ip mine" in output
