"""Number of processors that this process may use."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROCESS: Final = Path("/proc/self")


def usable_cores(process: Path = _PROCESS) -> int:
    """Return the number of processors that this process may use, at least 1.

    The CPU affinity limits it, and the CPU quotas of the process's cgroups: in a container with a
    limit of 1.5 CPUs it is 2. ``process`` is the directory of the process in /proc.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # on systems other than Linux
        cores = os.cpu_count() or 1
    return max(1, min((cores, *map(math.ceil, _quotas(process)))))


def _quotas(process: Path) -> Iterator[float]:
    """Yield the CPU quotas of a process's cgroups, in processors."""
    try:
        mounts = (process / "mountinfo").read_text("utf-8", "surrogateescape").split("\n")
        groups = (process / "cgroup").read_text("utf-8", "surrogateescape").split("\n")
    except OSError:
        return
    # cgroups(7): number, controllers of cgroup v1 (none for v2), path.
    fields = [line.split(":", 2) for line in groups if line.count(":") > 1]
    paths = {name: path for _, names, path in fields for name in names.split(",")}
    for line in mounts:
        # proc(5): ID, parent, device, root, mount point, options, optional fields, "-", type, …
        before, _, after = line.partition(" - ")
        if not after:
            continue
        root, mount_point = before.split(" ")[3:5]
        kind, *_, options = after.split(" ")
        path = None
        if kind == "cgroup2":
            path = paths.get("")
        elif kind == "cgroup" and "cpu" in options.split(","):
            path = paths.get("cpu")
        if path is None:
            continue
        # A container has only a part of the tree: the path may begin above the mount's root.
        below = path.removeprefix(root).strip("/") if path.startswith(root) else ""
        directory = Path(mount_point, below)
        for each in (directory, *directory.parents[: len(Path(below).parts)]):
            with suppress(OSError, ValueError):  # the root cgroup has no quota
                yield _quota_of_v2(each) if kind == "cgroup2" else _quota_of_v1(each)


def _quota_of_v2(cgroup: Path) -> float:
    """Return a quota, in processors; ValueError if there is none (cgroup-v2.rst: cpu.max)."""
    quota, period = (cgroup / "cpu.max").read_text("ascii").split()
    return int(quota) / int(period)


def _quota_of_v1(cgroup: Path) -> float:
    """Return a quota, in processors (sched-bwc.rst: cpu.cfs_quota_us is -1 if there is none)."""
    quota = int((cgroup / "cpu.cfs_quota_us").read_text("ascii"))
    if quota < 0:
        raise ValueError(quota)
    return quota / int((cgroup / "cpu.cfs_period_us").read_text("ascii"))
