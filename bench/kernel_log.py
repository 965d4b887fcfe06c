"""The kernel log as it is when nobody follows it: what was written to it, and what it still has."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEVICE: Final = "/dev/kmsg"
_ALL_NAMESPACES: Final = Path("/proc/sys/net/netfilter/nf_log_all_netns")
_RECORD_BYTES: Final = 8192


@dataclass(frozen=True, slots=True)
class Log:
    """The number of the newest record (-1: there is none), and how many of a prefix it holds."""

    newest: int
    held: int


def read(prefix: str, *, behind: int = -1) -> Log:
    """Read what there is now; ``held`` are those behind a number.

    Raises OSError where it may not be read.
    """
    newest, held = -1, 0
    descriptor = os.open(_DEVICE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            try:
                record = os.read(descriptor, _RECORD_BYTES)
            except BlockingIOError:
                return Log(newest, held)
            except OSError as error:
                if error.errno != errno.EPIPE:  # it was written over: reading goes on behind
                    raise
                continue
            head, _, message = record.partition(b";")
            newest = int(head.split(b",")[1])
            held += newest > behind and message.startswith(prefix.encode("ascii"))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def of_all_namespaces() -> Iterator[None]:
    """Let the records of all namespaces into it meanwhile, those of every sandbox of the host."""
    before = _ALL_NAMESPACES.read_text("ascii")
    _ALL_NAMESPACES.write_text("1", "ascii")
    try:
        yield
    finally:
        _ALL_NAMESPACES.write_text(before, "ascii")
