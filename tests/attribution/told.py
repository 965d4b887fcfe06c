"""What is asked of the facts of a process, and of what there is in /proc beside them."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ocsf_nft import proc
from ocsf_nft.attribution import procfs
from tests.attribution.living import WAITING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.process import Process

PYTHON = Path(sys.executable).resolve()
TICK_NS = 10_000_000
#: What reading says of who is gone, by when it went.
GONE = (FileNotFoundError, ProcessLookupError)

#: What somebody may call himself to be taken for somebody else.
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


def called(name: bytes) -> str:
    """The code of a Python program that calls itself so, and waits."""
    end = b"\0"
    return f"open('/proc/self/comm', 'wb').write({name + end!r}); " + WAITING


def found(pid: int, *, started_by_ns: int | None = None, started_ns: int | None = None) -> Process:
    """The facts of a process that is there."""
    process = procfs.read(pid, started_by_ns=started_by_ns, started_ns=started_ns)
    assert process is not None
    return process


def state(pid: int) -> str:
    """The letter for what it does."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def ticks(pid: int) -> int:
    """When it started."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@contextlib.contextmanager
def directory(pid: int) -> Iterator[int]:
    """Its directory, open."""
    with proc.opened(f"/proc/{pid}") as descriptor:
        yield descriptor
