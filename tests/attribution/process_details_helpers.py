"""Helpers for tests of process details, and of /proc beside them."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ocsf_nft import proc
from ocsf_nft.attribution import process_details
from tests.attribution.living import WAITING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.attribution.program_hashes import ProgramHashes
    from ocsf_nft.process import Process

PYTHON = Path(sys.executable).resolve()
TICK_NS = 10_000_000
#: Errors of reads about an exited process, by the time of its exit.
EXITED = (FileNotFoundError, ProcessLookupError)

#: Names that a process may choose to imitate another process.
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
    """Return the code of a Python program that sets its name, and waits."""
    end = b"\0"
    return f"open('/proc/self/comm', 'wb').write({name + end!r}); " + WAITING


def found(pid: int, hashes: ProgramHashes | None = None) -> Process:
    """Return the details of a running process."""
    process = process_details.read(pid, started_ns=ticks(pid) * TICK_NS, hashes=hashes)
    assert process is not None
    return process


def state(pid: int) -> str:
    """Return the letter of its state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def ticks(pid: int) -> int:
    """Return its start time in clock ticks."""
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])


@contextlib.contextmanager
def directory(pid: int) -> Iterator[int]:
    """Open its directory."""
    with proc.opened(f"/proc/{pid}") as descriptor:
        yield descriptor
