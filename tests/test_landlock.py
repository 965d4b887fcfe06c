"""Files that a process restricted by Landlock can open, and the requests to the kernel."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import pytest

from ocsf_nft import landlock
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.landlock import Access, Calls, Rule

if TYPE_CHECKING:
    from pathlib import Path

_RESTRICTED = """
import errno, json, os, socket, subprocess, sys, threading
from pathlib import Path
from ocsf_nft import landlock, privileges
from ocsf_nft.landlock import Access, Rule

folder, parent = Path(sys.argv[1]), os.getppid()
opened = open(folder / "hidden/file")
privileges.keep_only(frozenset())
version = landlock.restrict([
    Rule(folder / "read", Access.READ),
    Rule(folder / "one", Access.READ_FILE),
    Rule(folder / "written", Access.WRITE),
    Rule(folder / "missing", Access.READ),
])
assert version > 0


def in_thread():
    found = []
    def read():
        try:
            (folder / "hidden/file").read_text()
        except OSError as error:
            found.append(error)
    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    for error in found:
        raise error


# A link to a file that may not be read is one between different file systems.
for call in json.loads(sys.argv[2]):
    try:
        eval(call)
    except OSError as error:
        assert error.errno in (errno.EACCES, errno.EPERM, errno.EXDEV), error
        print("forbidden:", call)
    else:
        print("allowed:", call)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("read", "written", "hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("text", "utf-8")
    for name in ("one", "other"):
        (tmp_path / name).write_text("text", "utf-8")
    (tmp_path / "read/link").symlink_to(tmp_path / "hidden/file")
    return tmp_path


#: The calls of each group are made in one process, one after another.
_FORBIDDEN = [
    "(folder / 'hidden/file').read_text()",
    "(folder / 'read/link').read_text()",
    "(folder / 'other').read_text()",
    "(folder / 'read/file').write_text('x')",
    "(folder / 'read/new').touch()",
    "(folder / 'one').write_text('x')",
    "os.truncate(folder / 'one', 0)",
    "(folder / 'written/file').rename(folder / 'hidden/new')",
    "os.link(folder / 'hidden/file', folder / 'written/new')",
    "(folder / 'written/new').symlink_to('/etc/shadow')",
    "os.mkfifo(folder / 'written/new')",
    "os.listdir(folder)",
    "Path('/proc/1/environ').read_bytes()",
    "subprocess.run(['/bin/true'])",
    "in_thread()",
]
_ALLOWED = [
    "(folder / 'read/file').read_text()",
    "os.listdir(folder / 'read')",
    "(folder / 'one').read_text()",
    "(folder / 'written/file').write_text('x')",
    "(folder / 'written/folder').mkdir()",
    "(folder / 'written/file').rename(folder / 'written/new')",
    "(folder / 'written/new').unlink()",
    "os.open(folder / 'written', os.O_DIRECTORY)",
    "opened.read()",
    "os.stat(folder / 'other')",
]
#: Since version 6.
_FORBIDDEN_LATER = [
    "socket.socket().bind(('127.0.0.1', 0))",
    "os.kill(parent, 0)",
]


def _outcomes(folder: Path, calls: list[str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _RESTRICTED, str(folder), json.dumps(calls)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_restricted_process_can_open_only_what_its_rules_allow(folder: Path) -> None:
    if (version := landlock.abi()) == 0:
        pytest.skip("the kernel has no Landlock, or does not use it")
    forbidden = _FORBIDDEN + (_FORBIDDEN_LATER if version >= 6 else [])
    found = _outcomes(folder, [*forbidden, *_ALLOWED])
    assert found == [
        *(f"forbidden: {call}" for call in forbidden),
        *(f"allowed: {call}" for call in _ALLOWED),
    ]


class _Fake(Calls):
    """Kernel with a version of Landlock; it stores what it is asked."""

    def __init__(self, version: int, *, failure: int = 0) -> None:
        self._version = version
        self._failure = failure
        self.ruleset: tuple[int, ...] = ()
        self.rules: list[int] = []
        self.is_restricted = False

    def create_ruleset(self, attributes: object, size: int, flags: int) -> int:
        if flags == 1:
            if self._version == 0:
                ctypes.set_errno(errno.EOPNOTSUPP)
                return -1
            return self._version
        made = cast("Any", attributes)._obj
        self.ruleset = (made.files, made.network, made.scoped)[: size // 8]
        return os.open(os.devnull, os.O_RDONLY)

    def add_rule(self, ruleset: int, attributes: object) -> int:
        os.fstat(ruleset)
        if self._failure:
            ctypes.set_errno(self._failure)
            return -1
        self.rules.append(cast("Any", attributes)._obj.access)
        return 0

    def restrict_self(self, ruleset: int) -> int:
        os.fstat(ruleset)
        self.is_restricted = True
        return 0


@pytest.mark.parametrize(
    ("version", "ruleset"),
    [
        (1, (0x1FFF,)),
        (2, (0x3FFF,)),
        (3, (0x7FFF,)),
        (4, (0x7FFF, 1)),
        (5, (0xFFFF, 1)),
        (6, (0xFFFF, 1, 3)),
        (99, (0xFFFF, 1, 3)),
    ],
)
def test_ruleset_has_only_what_the_kernel_knows(
    tmp_path: Path, version: int, ruleset: tuple[int, ...]
) -> None:
    fake = _Fake(version)
    (tmp_path / "file").touch()
    rules = [Rule(tmp_path, Access.WRITE), Rule(tmp_path / "file", Access.WRITE)]
    assert landlock.restrict(rules, fake) == version
    assert fake.ruleset == ruleset
    assert fake.is_restricted
    folder, file = fake.rules
    assert folder == Access.WRITE & ruleset[0]
    # The kernel refuses a rule for a file with rights over directories.
    assert Access(file) in Access.READ_FILE | Access.WRITE_FILE | Access.TRUNCATE


def test_kernel_without_landlock_restricts_nothing(tmp_path: Path) -> None:
    fake = _Fake(0)
    assert landlock.restrict([Rule(tmp_path, Access.READ)], fake) == 0
    assert not fake.is_restricted


def test_pipe_needs_no_rule(tmp_path: Path) -> None:
    fake = _Fake(7, failure=errno.EBADFD)
    assert landlock.restrict([Rule(tmp_path, Access.READ)], fake) == 7
    assert fake.is_restricted


def test_path_that_can_not_be_opened_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "file").touch()
    paths = ("a", "x" * 256, "file/x", "missing", "\0", "file")
    fake = _Fake(7)
    assert landlock.restrict([Rule(tmp_path / each, Access.READ) for each in paths], fake) == 7
    assert fake.is_restricted
    assert fake.rules == [Access.READ_FILE]


def test_refused_rule_is_an_error_with_its_cause(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="was refused: Operation not permitted"):
        landlock.restrict([Rule(tmp_path, Access.READ)], _Fake(7, failure=errno.EPERM))
