"""Cgroup of all containers of one engine, in all hierarchies of the machine."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOUNTS: Final = Path("/proc/self/mounts")
#: A cgroup is busy until the kernel has removed its last process.
_EXIT_SECONDS: Final = 10.0


@contextlib.contextmanager
def parent(name: str) -> Iterator[str]:
    """Create a cgroup, and yield its name; remove it from all hierarchies at exit."""
    try:
        # Version 2 now, since tests compare its cgroups. The runtime creates the others.
        for hierarchy in _hierarchies("cgroup2"):
            (hierarchy / name.lstrip("/")).mkdir()
        yield name
    finally:
        for hierarchy in _hierarchies("cgroup", "cgroup2"):
            top = hierarchy / name.lstrip("/")
            below = [each for each in top.rglob("*") if each.is_dir()] if top.exists() else []
            for each in sorted(below, key=lambda path: len(path.parts), reverse=True):
                _remove(each)
            if top.exists():
                _remove(top)


def _hierarchies(*kinds: str) -> list[Path]:
    lines = _MOUNTS.read_text("utf-8").splitlines()
    found = [line.split() for line in lines]
    return [Path(point) for _, point, kind, *_ in found if kind in kinds]


def _remove(folder: Path) -> None:
    end = time.monotonic() + _EXIT_SECONDS
    while folder.exists():
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
