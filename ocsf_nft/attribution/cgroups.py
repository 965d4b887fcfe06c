"""Where the hierarchy of cgroup v2 is mounted: systemd has it elsewhere beside cgroup v1."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from ocsf_nft.errors import UnsupportedError

_MOUNTS: Final = Path("/proc/self/mountinfo")
_NAMESPACE: Final = Path("/proc/self/ns/cgroup")
#: include/linux/proc_ns.h, PROC_CGROUP_INIT_INO: the initial cgroup namespace has this inode. In
#: another one the root is the namespace's own.
_INITIAL: Final = "cgroup:[4026531835]"


class Hierarchy(NamedTuple):
    """Where it is, and whether all cgroups of the machine are below it."""

    path: Path
    is_whole: bool


def hierarchy(mounts: str | None = None) -> Hierarchy:
    """The widest one that is there; ``mounts`` is as in /proc/self/mountinfo.

    Raises UnsupportedError where there is none.
    """
    found: list[tuple[str, Path]] = []
    if mounts is None:
        mounts = _MOUNTS.read_text("utf-8", "surrogateescape")
    for line in mounts.split("\n"):
        # proc(5): ID, parent, device, root, mount point, options, optional fields, "-", type, …
        words = line.split(" ")
        if "-" in words and words[words.index("-") + 1 :][:1] == ["cgroup2"]:
            found.append((words[3], Path(_plain(words[4]))))
    if not found:
        raise UnsupportedError(
            "cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified"
        )
    # In a namespace what is mounted of above its root is "/..", "/../.." and so on.
    root, path = min(found, key=lambda each: (-each[0].count("/.."), len(each[0])))
    return Hierarchy(path, is_whole=root == "/" and _is_initial())


def _is_initial() -> bool:
    try:
        return str(_NAMESPACE.readlink()) == _INITIAL
    except OSError:
        return False


def _plain(text: str) -> str:
    """A path without the kernel's escapes of blanks and backslashes (``seq_path``)."""
    for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escape, character)
    return text
