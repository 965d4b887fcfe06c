"""containerd in a folder and a network namespace of its own, with its client ctr.

The snapshotter is native. The CRI plugin is off: it would need its own settings and network, and
`ctr` does not use it. `ctr run --cni` reads only /etc/cni/net.d and /opt/cni/bin.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tests.engines import cgroups, engine, image

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

_KIND = "containerd"
#: Folder of Debian's containernetworking-plugins.
_PLUGINS: Final = "/usr/lib/cni"
_SETTINGS: Final = """\
version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri"]
"""


@dataclass(frozen=True, slots=True)
class Containerd:
    """The client ctr of one containerd."""

    site: engine.Site
    cgroup: str
    #: The runtime: the wrapper, or runc together with a CNI plugin of ours.
    runtime: str
    kind: str = _KIND

    @property
    def client(self) -> tuple[str, ...]:
        """Return the command with its global options."""
        return "ctr", f"--address={self.site.folder}/containerd.sock"

    def start(self, container: engine.Container) -> subprocess.Popen[str]:
        """Start `ctr run`."""
        options = [
            "--rm", "--snapshotter=native", f"--cgroup={self.cgroup}/{container.name}",
            f"--runc-binary={self.runtime}",
        ]  # fmt: skip
        options += [f"--annotation={key}={value}" for key, value in container.annotations.items()]
        options += [f"--label={key}={value}" for key, value in container.labels.items()]
        options.append("--net-host" if container.network == "host" else "--cni")
        name = f"localhost/{image.NAME}:latest"
        command = (*self.client, "run", *options, name, container.name, *container.command)
        return self.site.popen(*command)

    def remove(self, name: str) -> None:
        """Delete a container and its processes by force; ctr keeps one whose network has failed."""
        self.site.call(*self.client, "task", "delete", "--force", name)
        self.site.call(*self.client, "container", "delete", name)


@contextlib.contextmanager
def running(
    folder: Path, control: Path, seconds: float = 5.0, plugin: dict[str, Any] | None = None
) -> Iterator[Containerd]:
    """Run containerd with the wrapper; with ``plugin``, with runc and this chained CNI plugin."""
    with (
        engine.site(folder, control, seconds) as site,
        cgroups.parent(f"/{site.network}") as cgroup,
    ):
        found = Containerd(site, cgroup, str(site.runtime) if plugin is None else "runc")
        (folder / "config.toml").write_text(_SETTINGS, encoding="ascii")
        _add_network(site, plugin)
        daemon = (
            "containerd", f"--config={folder}/config.toml", f"--root={folder}/root",
            f"--state={folder}/state", f"--address={folder}/containerd.sock",
        )  # fmt: skip
        with site.daemon((*found.client, "version"), *daemon):
            archive = image.oci_archive(folder / "image.tar")
            site.call(*found.client, "images", "import", "--snapshotter=native", archive)
            try:
                yield found
            finally:
                for name in site.call(*found.client, "task", "list", "--quiet").split():
                    site.call(*found.client, "task", "delete", "--force", name)


def _add_network(site: engine.Site, plugin: dict[str, Any] | None) -> None:
    """Add the network of `ctr run --cni`: a bridge, and the plugin after it."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.88.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    network = {
        "cniVersion": "1.0.0",
        "name": "test",
        "plugins": [bridge, *([] if plugin is None else [plugin])],
    }
    written = site.folder / "10-test.conflist"
    written.write_text(json.dumps(network), encoding="utf-8")
    site.call("cp", written, "/etc/cni/net.d")
    programs = [f"{_PLUGINS}/{name}" for name in ("bridge", "host-local", "loopback")]
    site.call("ln", "-s", *programs, engine.PROGRAM.with_name("ocsf-nft-cni"), "/opt/cni/bin")
