"""A distribution for the guest: systemd and its dependencies, from this machine's packages.

Nothing is downloaded or installed: dpkg has already unpacked the files here. The test has its own
/etc.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.guest import cache, image

if TYPE_CHECKING:
    from collections.abc import Iterable

_PACKAGES: Final = ("systemd", "dash", "coreutils", "mount", "util-linux")
_LEFT_OUT: Final = re.compile(r"/usr/share/(?:doc|info|lintian|locale|man|perl\d?|bug)/")
_USERS: Final = Path("/usr/share/base-passwd")


def layer() -> Path:
    """Build the layer that adds systemd to a guest with busybox."""
    packages = _needed(_PACKAGES)

    def make(folder: Path) -> None:
        root = folder / "root"
        listed = subprocess.run(
            ["dpkg", "-L", *packages], capture_output=True, text=True, check=True
        )
        for name in sorted(set(listed.stdout.splitlines())):
            path = Path(name)
            if _LEFT_OUT.match(name) or not (path.is_symlink() or path.is_file()):
                continue
            target = image.below(root, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target, follow_symlinks=False)
        for name in ("passwd", "group"):
            shutil.copy(_USERS / f"{name}.master", root / "etc" / name)
        image.finish(root, folder)

    return cache.build_once("systemd", [*packages.values(), cache.stamp(Path(__file__))], make)


def _needed(names: Iterable[str]) -> dict[str, str]:
    """Return name and version of the installed packages among these and their dependencies."""
    found: dict[str, str] = {}
    pending = list(names)
    while pending:
        name = pending.pop()
        if name in found:
            continue
        answer = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Version}\n${Pre-Depends}, ${Depends}", name],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        version, _, depends = answer.stdout.partition("\n")
        if answer.returncode == 0 and version:  # a missing alternative has no version
            found[name] = f"{name} {version}"
            pending += re.findall(r"(?:^|[,|])\s*([a-z0-9][a-z0-9.+-]+)", depends)
    return found
