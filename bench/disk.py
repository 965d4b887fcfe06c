"""The measured disk: a folder on it, and its description."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

#: It survives a boot (file-hierarchy(7)), and is a disk where /tmp is memory, as on Debian 13.
_FOLDER: Final = "/var/tmp"  # noqa: S108 - a private folder in it
_MOUNTS: Final = Path("/proc/self/mountinfo")
_BLOCK: Final = bytes(4096)


def folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder on the disk; it is deleted at the end of the context."""
    return tempfile.TemporaryDirectory(prefix="ocsf-nft-", dir=_FOLDER)


def name() -> str:
    """Return file system and device of the mount (proc_pid_mountinfo(5))."""
    number = Path(_FOLDER).stat().st_dev
    selected = f"{os.major(number)}:{os.minor(number)}"
    for line in _MOUNTS.read_text("utf-8").splitlines():
        mount, _, of = line.partition(" - ")
        if mount.split()[2] == selected:
            kind, device, _ = of.split(" ", 2)
            return f"{kind} on {device}"
    return "an unknown disk"


def synced_ns(times: int) -> Sequence[int]:
    """Return the nanoseconds until the disk has another 4 KiB at the end of a file, each time."""
    took = []
    with folder() as made, (Path(made) / "blocks").open("wb", buffering=0) as file:
        for _ in range(times):
            begun = time.monotonic_ns()
            file.write(_BLOCK)
            os.fdatasync(file.fileno())
            took.append(time.monotonic_ns() - begun)
    return took
