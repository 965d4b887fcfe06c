"""Access of tests to the machine's kernel log."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_ALL_NAMESPACES: Final = Path("/proc/sys/net/netfilter/nf_log_all_netns")


@contextlib.contextmanager
def of_all_namespaces() -> Iterator[None]:
    """Let all network namespaces write to the kernel log, and restore the setting."""
    before = _ALL_NAMESPACES.read_text(encoding="ascii")
    _ALL_NAMESPACES.write_text("1", encoding="ascii")
    try:
        yield
    finally:
        _ALL_NAMESPACES.write_text(before, encoding="ascii")


def write(line: str) -> None:
    """Write a line as a program; without the line break the record would stay incomplete."""
    with Path("/dev/kmsg").open("wb", buffering=0) as device:
        device.write(line.encode() + b"\n")
