"""Search for the mount point of cgroup v2, which is not the same on all hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ocsf_nft.errors import UnsupportedError

_MOUNTS: Final = Path("/proc/self/mountinfo")


def hierarchy(mounts: str | None = None) -> Path:
    """Return the mount point of cgroup v2.

    ``mounts`` is a text in the format of /proc/self/mountinfo. If it is None, this file is read.
    Raises UnsupportedError if cgroup v2 is not mounted.
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
    # Of several, the mount point that shows the largest part of the cgroup tree.
    # In a cgroup namespace, roots of mounts above the namespace's root are "/..", "/../.." etc.
    _, path = min(found, key=lambda each: (-each[0].count("/.."), len(each[0])))
    return path


def _plain(text: str) -> str:
    # mountinfo escapes blanks, tabs, line ends and backslashes.
    for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escape, character)
    return text
