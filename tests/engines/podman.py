"""Podman in a folder and a network namespace of its own.

runc is the runtime below the wrapper, and cgroupfs the cgroup manager: crun is not installed, and
there is no systemd. netavark makes its bridge and its nftables table in the namespace.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.engines import cgroups, engine, image

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

_KIND = "podman"


@dataclass(frozen=True, slots=True)
class Podman:
    """Podman with storage of its own; it has no daemon."""

    site: engine.Site
    cgroup: str
    #: Path of the runtime; runc itself together with the hooks in ``hooks``.
    runtime: str
    hooks: Path | None = None
    kind: str = _KIND

    @property
    def client(self) -> tuple[str, ...]:
        """Return the command with its global options."""
        folder = self.site.folder
        hooks = [] if self.hooks is None else [f"--hooks-dir={self.hooks}"]
        return (
            "podman", f"--root={folder}/root", f"--runroot={folder}/runroot",
            f"--tmpdir={folder}/temporary", f"--network-config-dir={folder}/networks",
            f"--volumepath={folder}/volumes", "--storage-driver=vfs", "--events-backend=none",
            f"--runtime={self.runtime}", "--cgroup-manager=cgroupfs", *hooks,
        )  # fmt: skip

    def start(self, container: engine.Container) -> subprocess.Popen[str]:
        """Start `podman run`."""
        options = ["--rm", f"--name={container.name}", f"--cgroup-parent={self.cgroup}"]
        options += [f"--annotation={key}={value}" for key, value in container.annotations.items()]
        options += [f"--label={key}={value}" for key, value in container.labels.items()]
        if container.network is not None:
            options.append(f"--network={container.network}")
        if container.is_background:
            options.append("--detach")
        return self.site.popen(*self.client, "run", *options, image.NAME, *container.command)

    def remove(self, name: str) -> None:
        """Remove a container by force."""
        self.site.call(*self.client, "rm", "--force", "--time=0", name)


@contextlib.contextmanager
def running(
    folder: Path, control: Path, seconds: float = 5.0, hooks: Path | None = None
) -> Iterator[Podman]:
    """Prepare Podman with the wrapper as its runtime; with ``hooks``, with runc and these hooks."""
    with (
        engine.site(folder, control, seconds) as site,
        cgroups.parent(f"/{site.network}") as cgroup,
    ):
        podman = Podman(site, cgroup, str(site.runtime) if hooks is None else "runc", hooks)
        site.call(*podman.client, "import", "--quiet", engine.archive(folder), image.NAME)
        try:
            yield podman
        finally:
            site.call(*podman.client, "rm", "--all", "--force", "--time=0")
