"""Kernel log without a reader: the records written to it, and those that it still has."""

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
    """Number of the newest record (-1: none), and the number of records with a prefix."""

    newest: int
    held: int


def read(prefix: str, *, behind: int = -1) -> Log:
    """Read all records; ``held`` counts those after the number ``behind``.

    Raises OSError if the log may not be read.
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
                if error.errno != errno.EPIPE:  # overwritten meanwhile: reading continues after it
                    raise
                continue
            head, _, message = record.partition(b";")
            newest = int(head.split(b",")[1])
            held += newest > behind and message.startswith(prefix.encode("ascii"))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def of_all_namespaces() -> Iterator[None]:
    """Let the records of all namespaces, and so of every sandbox of the host, into the log."""
    before = _ALL_NAMESPACES.read_text("ascii")
    _ALL_NAMESPACES.write_text("1", "ascii")
    try:
        yield
    finally:
        _ALL_NAMESPACES.write_text(before, "ascii")
