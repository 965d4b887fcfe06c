"""The machine's one kernel log, as a test needs it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_ALL_NAMESPACES: Final = Path("/proc/sys/net/netfilter/nf_log_all_netns")


@contextlib.contextmanager
def of_all_namespaces() -> Iterator[None]:
    """Let namespaces log to it, and set that back."""
    before = _ALL_NAMESPACES.read_text(encoding="ascii")
    _ALL_NAMESPACES.write_text("1", encoding="ascii")
    try:
        yield
    finally:
        _ALL_NAMESPACES.write_text(before, encoding="ascii")


def write(line: str) -> None:
    """Write a line as a program may; without a line break it would stay unfinished."""
    with Path("/dev/kmsg").open("wb", buffering=0) as device:
        device.write(line.encode() + b"\n")
