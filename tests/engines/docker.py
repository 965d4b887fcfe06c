"""Docker in a folder and a network namespace of its own.

The storage driver is vfs, since a folder of a test may be on any file system. Without
``--iptables=false`` dockerd would need the iptables modules. Docker's containers are below a cgroup
of their own, which is removed at the end.
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

_KIND = "docker"


@dataclass(frozen=True, slots=True)
class Docker:
    """Docker's client for one daemon."""

    site: engine.Site
    kind: str = _KIND

    @property
    def client(self) -> tuple[str, ...]:
        """Return the client's command with its global options."""
        return "docker", "--host", f"unix://{self.site.folder}/docker.sock"

    def start(self, container: engine.Container) -> subprocess.Popen[str]:
        """Start `docker run`."""
        options = ["--runtime=ocsf-nft", "--rm", f"--name={container.name}"]
        options += [f"--annotation={key}={value}" for key, value in container.annotations.items()]
        options += [f"--label={key}={value}" for key, value in container.labels.items()]
        if container.network is not None:
            options.append(f"--network={container.network}")
        if container.is_background:
            options.append("--detach")
        return self.site.popen(*self.client, "run", *options, image.NAME, *container.command)

    def remove(self, name: str) -> None:
        """Remove a container by force."""
        self.site.call(*self.client, "rm", "--force", name)


@contextlib.contextmanager
def running(folder: Path, control: Path, seconds: float = 5.0) -> Iterator[Docker]:
    """Run Docker with the wrapper as its runtime ``ocsf-nft``."""
    with (
        engine.site(folder, control, seconds) as site,
        cgroups.parent(f"/{site.network}") as cgroup,
    ):
        docker = Docker(site)
        daemon = (
            "dockerd", "--storage-driver=vfs", f"--data-root={folder}/data",
            f"--exec-root={folder}/exec", f"--pidfile={folder}/docker.pid",
            f"--host=unix://{folder}/docker.sock", f"--config-file={folder}/daemon.json",
            "--iptables=false", "--ip6tables=false", f"--cgroup-parent={cgroup}",
            f"--add-runtime=ocsf-nft={site.runtime}",
        )  # fmt: skip
        (folder / "daemon.json").write_text("{}", encoding="ascii")
        with site.daemon((*docker.client, "version"), *daemon):
            site.call(*docker.client, "import", str(engine.archive(folder)), image.NAME)
            try:
                yield docker
            finally:
                if left := site.call(*docker.client, "ps", "--all", "--quiet").split():
                    site.call(*docker.client, "rm", "--force", *left)
