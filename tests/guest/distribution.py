"""A distribution for the guest: systemd and what it needs, from the packages of this machine.

No mirror is asked and nothing is installed: the files are those that dpkg put here, with an /etc
of the test's own.
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
    """The layer that makes a guest with busybox one with systemd."""
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
            place = image.below(root, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place, follow_symlinks=False)
        for name in ("passwd", "group"):
            shutil.copy(_USERS / f"{name}.master", root / "etc" / name)
        image.finish(root, folder)

    return cache.made("systemd", [*packages.values(), cache.stamp(Path(__file__))], make)


def _needed(names: Iterable[str]) -> dict[str, str]:
    """The packages that are here of those, and of what they depend on; name and version of each."""
    found: dict[str, str] = {}
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        told = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Version}\n${Pre-Depends}, ${Depends}", name],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        version, _, depends = told.stdout.partition("\n")
        if told.returncode == 0 and version:  # the alternative that is not here says nothing
            found[name] = f"{name} {version}"
            wanted += re.findall(r"(?:^|[,|])\s*([a-z0-9][a-z0-9.+-]+)", depends)
    return found
