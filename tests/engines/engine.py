"""Container engines in folders and network namespaces of their own: Docker, Podman, containerd.

An engine has its own network namespace, and its own mount namespace with private folders. So it
changes no file, no link and no table of the machine, and another engine may run there. For a
container with the host's network, the engine's namespace is the host's.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Protocol

from ocsf_nft import lab
from tests.engines import image

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The wrapper, as pip has installed it for this Python.
PROGRAM: Final = Path(sys.prefix, "bin/ocsf-nft-oci")
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 30.0
_COMMAND_SECONDS: Final = 120.0
#: Shell code that replaces the folders in which engines and plugins write, or read settings, by
#: private ones. It ends when its standard input is closed.
_MOUNTS: Final = """
cp -a /etc "$1/etc"
mount --bind "$1/etc" /etc
rm -rf /etc/cni /etc/containers /etc/containerd /etc/docker
mkdir -p /etc/cni/net.d /etc/containers
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/etc/containers/policy.json
for folder in /run /dev/shm /var/lib /opt; do mount -t tmpfs tmpfs $folder; done
mkdir -p /run/lock /opt/cni/bin /var/lib/cni
echo ready
exec cat
"""


@dataclass(frozen=True, slots=True)
class Container:
    """Container to run: its name, the command, and facts that an ``[[attach]]`` table matches.

    ``network`` is ``host``, or ``container:NAME`` for the network of another container.
    """

    name: str
    command: Sequence[str]
    annotations: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    network: str | None = None
    is_background: bool = False


class Engine(Protocol):
    """Running container engine."""

    @property
    def kind(self) -> str:
        """Return the engine's name, as in the facts about its containers."""

    @property
    def site(self) -> Site:
        """Return the engine's folder and namespaces."""

    @property
    def client(self) -> tuple[str, ...]:
        """Return the client's command with its global options."""

    def start(self, container: Container) -> subprocess.Popen[str]:
        """Start the client's command that runs a container with the wrapper as the runtime."""

    def remove(self, name: str) -> None:
        """End and delete a container."""


def run(engine: Engine, container: Container) -> subprocess.CompletedProcess[str]:
    """Run a container until its command ends, or until it runs in the background."""
    with engine.start(container) as process:
        stdout, stderr = process.communicate(timeout=_COMMAND_SECONDS)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@dataclass(frozen=True, slots=True)
class Site:
    """Folder and namespaces of one engine, with the wrapper as a runtime without options.

    ``network`` is the name of the network namespace. The process ``holder`` keeps the mount
    namespace open.
    """

    folder: Path
    network: str
    runtime: Path
    holder: int

    def popen(self, *command: str | Path, log: IO[bytes] | None = None) -> subprocess.Popen[str]:
        """Start a program in the engine's namespaces; ``log`` gets both outputs if it is given."""
        inside = ("nsenter", f"--target={self.holder}", "--net", "--mount", "--")
        # No proxy and no settings of the machine's own engine.
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("DOCKER_")
        } | {"TMPDIR": str(self.folder), "PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}
        return subprocess.Popen(
            [*inside, *command],
            stdin=subprocess.DEVNULL,
            stdout=log or subprocess.PIPE,
            stderr=log or subprocess.PIPE,
            text=True,
            env=environment,
            cwd="/",
        )

    def call(self, *command: str | Path) -> str:
        """Run a program in the engine's namespaces; return its standard output."""
        with self.popen(*command) as process:
            stdout, stderr = process.communicate(timeout=_COMMAND_SECONDS)
        assert process.returncode == 0, f"{command}: {stderr}"
        return stdout

    @contextlib.contextmanager
    def daemon(self, ready: Sequence[str | Path], *command: str | Path) -> Iterator[None]:
        """Run a daemon; wait until the command ``ready`` succeeds, and end the daemon at exit."""
        path = self.folder / "daemon.log"
        with path.open("wb") as log:
            process = self.popen(*command, log=log)
        try:
            end = time.monotonic() + _START_SECONDS
            while not self._succeeds(ready):
                assert process.poll() is None, path.read_text("utf-8", "replace")
                assert time.monotonic() < end, path.read_text("utf-8", "replace")
                time.sleep(0.05)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=_STOP_SECONDS)

    def _succeeds(self, command: Sequence[str | Path]) -> bool:
        with self.popen(*command) as process:
            process.communicate(timeout=_COMMAND_SECONDS)
        return process.returncode == 0


@contextlib.contextmanager
def site(folder: Path, control: Path, seconds: float = 5.0) -> Iterator[Site]:
    """Create the folder and the namespaces of an engine, with a runtime that asks ``control``."""
    folder.mkdir(parents=True)
    runtime = folder / "runtime"
    runtime.write_text(
        f"#!/bin/sh\nexec {PROGRAM} --ocsf-nft-control={control} --ocsf-nft-timeout={seconds:g} "
        '"$@"\n',
        encoding="utf-8",
    )
    runtime.chmod(0o755)
    network = f"ocsf-nft-{secrets.token_hex(3)}-en"
    with lab.new_namespace(network):
        lab.ip("-n", network, "link", "set", "lo", "up")
        with _held(network, folder) as holder:
            yield Site(folder, network, runtime, holder)


@contextlib.contextmanager
def _held(network: str, folder: Path) -> Iterator[int]:
    """Yield a process in the network namespace, and in a new mount namespace (:data:`_MOUNTS`)."""
    with subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{network}", "--", "unshare", "--mount", "--propagation",
         "private", "sh", "-ec", _MOUNTS, "sh", folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            process.stdin.close()


def archive(folder: Path) -> Path:
    """Return the path of a root file system's archive, for `import`."""
    return image.root_archive(folder / "root.tar")
