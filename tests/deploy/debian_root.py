"""Minimal Debian systems in folders, to install packages in as on a new machine.

A system has the kernel, the network and the devices of this machine. Its changes are a layer over
the files of another one (overlayfs), so that tests share an installation and not their changes.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_RELEASE: Final = "trixie"
_SOURCES: Final = ("sources.list", "sources.list.d/*.list", "sources.list.d/*.sources")
#: The machine's settings of apt that a system needs too: proxies, and checks of dates.
_SETTINGS: Final = ("Acquire::http", "Acquire::https", "Acquire::Check-")
#: Files of this machine that name the archive's host, if it has a special one.
_NETWORK: Final = ("/etc/hosts", "/etc/resolv.conf")

#: Enter a system: FOLDER LAYERS COMMAND. The mounts end with the command, because their namespace
#: does. The names of `ip netns` are in the tmpfs.
_ENTER: Final = """
root=$1/root
mount -t overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" overlay "$root"
shift 2
for each in proc sys dev; do mount --rbind "/$each" "$root/$each"; done
mount -t tmpfs tmpfs "$root/run"
exec chroot "$root" "$@"
"""


@dataclass(frozen=True, slots=True)
class DebianRoot:
    """A system: the folder of its changes, and the layers below them, the upper one first."""

    folder: Path
    layers: tuple[Path, ...]

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the system; its output has standard error too."""
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _ENTER, "enter",
             self.folder, ":".join(map(str, self.layers)), *command],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL": "C.UTF-8",
                "HOME": "/root",
                "DEBIAN_FRONTEND": "noninteractive",
            },
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}"
        return done

    def install(self, package: Path) -> str:
        """Install a package's file with apt, and return apt's output."""
        name = f"/tmp/{package.name}"  # noqa: S108 - in the system
        target = self.folder / "upper" / name.lstrip("/")
        target.parent.mkdir(mode=0o1777, exist_ok=True)
        target.write_bytes(package.read_bytes())
        try:
            return self.run("apt-get", "install", "--yes", "--no-install-recommends", name).stdout
        finally:
            target.unlink()


def first(folder: Path, root: Path) -> DebianRoot:
    """Return a system that starts with the files of ``root``; its changes go to ``folder``."""
    return _layered(folder, (root,))


def copied(folder: Path, system: DebianRoot) -> DebianRoot:
    """Return a system that starts as ``system`` is; its changes go to ``folder``.

    ``system`` must not run a command at the same time.
    """
    return _layered(folder, (system.folder / "upper", *system.layers))


def _layered(folder: Path, layers: tuple[Path, ...]) -> DebianRoot:
    for name in ("root", "upper", "work"):
        (folder / name).mkdir(parents=True)
    return DebianRoot(folder, layers)


def bootstrap(root: Path) -> None:
    """Install the smallest Debian that has apt, from the sources of this machine."""
    sources = [path for pattern in _SOURCES for path in Path("/etc/apt").glob(pattern)]
    configured = subprocess.run(
        ["apt-config", "dump", "--format", '%F "%v";%n', "Acquire"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    settings = [line for line in configured.stdout.splitlines() if line.startswith(_SETTINGS)]
    done = subprocess.run(
        [
            "mmdebstrap", "--quiet", "--mode=root", "--variant=apt",
            "--dpkgopt=force-unsafe-io",
            # The lists of packages stay, for the installation of ours.
            "--skip=cleanup/apt/lists",
            *(f"--aptopt={line}" for line in settings),
            *(f"--customize-hook=copy-in {path} /etc" for path in _NETWORK),
            _RELEASE, root,
            # A source in a folder of this machine is not one of a new machine.
            *(path for path in sources if "file:" not in path.read_text(encoding="utf-8")),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
