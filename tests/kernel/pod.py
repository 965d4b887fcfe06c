"""A pod without a kubelet: its containers as processes, in the kernel's own namespaces.

All containers share a network namespace, and a user namespace where the pod has one. Each has a
mount namespace with a read-only root, its volumes and its own ``/etc``. Each has the user, the
capabilities and ``no_new_privs`` of its ``securityContext``. Seccomp, limits and the image are
missing: the machine's own programs run.
"""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from ocsf_nft.lab import (
    GATEWAY4,
    GATEWAY6,
    INTERNET4,
    INTERNET6,
    SANDBOX4,
    SANDBOX6,
    ip,
    set_sysctls,
)
from ocsf_nft.netns import of_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace
    from tests.deploy.manifests import Container, Object, Pod

#: A name that resolves in the pod, by its ``/etc/hosts``.
KNOWN_NAME: Final = "example.com"
#: The first user of a pod's user namespace, as the node numbers it. Root stays root, because only
#: root may read the tested tree. Inside, root has no capability over the node.
_FIRST: Final = 100_000
_PORTS: Final = (53, 80, 443)
_LINK: Final = f"""
link set lo up
address add {SANDBOX4}/24 dev sb0
address add {SANDBOX6}/64 dev sb0 nodad
link set sb0 up
route add default via {GATEWAY4}
route add ::/0 via {GATEWAY6}
"""
#: Arguments: the pod's folder, sources and targets to mount, ``--``, a command. /tmp is mounted
#: last, because the sources may be there.
_MOUNTED: Final = """
set -e
mount --bind /proc/sys /proc/sys
mount --bind "$1/etc" /etc
mount --bind "$1/lib" /var/lib
for each in /proc/sys /etc /var/lib; do mount -o remount,bind,ro "$each"; done
shift
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done
mount -o remount,bind,ro /
shift
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class RunningPod:
    """A running pod: its specification, and its namespace, process and folder."""

    spec: Pod
    namespace: Namespace
    pid: int
    folder: Path

    def inside(self, container: Container, *, without: frozenset[str] = frozenset()) -> list[str]:
        """Return the command prefix that runs a command in a container.

        ``without``: capabilities of the container's specification that it does not get.
        """
        enter = ["nsenter", f"--target={self.pid}", "--net"]
        if self.spec.spec.get("hostUsers") is False:
            enter += ["--user", "--setuid=0", "--setgid=0"]
        mounts = [
            str(part)
            for target, name in sorted(container.mounts().items(), key=_tmp_last)
            for part in (self.folder / "volumes" / name, target)
        ]
        private = ["unshare", "--mount", "--propagation=private"]
        script = ["sh", "-c", _MOUNTED, "container", str(self.folder), *mounts, "--"]
        return [*enter, *private, *script, *_confined(container, without)]


def _confined(container: Container, without: frozenset[str]) -> list[str]:
    security = container.security
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"]["drop"] == ["ALL"]
    added = [name for name in security["capabilities"].get("add", ()) if name not in without]
    return [
        "setpriv",
        f"--reuid={security['runAsUser']}",
        f"--regid={security['runAsGroup']}",
        "--clear-groups",
        "--inh-caps=-all",
        "--ambient-caps=-all",
        ",".join(["--bounding-set=-all", *(f"+{name.lower()}" for name in added)]),
        "--no-new-privs",
    ]


def _tmp_last(mount: tuple[str, str]) -> tuple[bool, str]:
    return mount[0] == "/tmp", mount[0]  # noqa: S108 - a container's own


@contextlib.contextmanager
def run_pod(spec: Pod, objects: list[Object], lab: Lab, folder: Path) -> Iterator[RunningPod]:
    """Run a pod in a new network namespace with the lab's link; remove it at the end.

    ``folder`` holds its volumes. Existing volumes keep their content, as an emptyDir does when a
    pod gets a new network namespace.
    """
    _volumes(spec, objects, folder)
    users = []
    if spec.spec.get("hostUsers") is False:
        for kind in ("users", "groups"):
            users += [f"--map-{kind}=0:0:1", f"--map-{kind}=1:{_FIRST + 1}:65535"]
        users.insert(0, "--user")
    with subprocess.Popen(
        ["unshare", *users, "--net", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"ready")
        assert holder.stdout.read(5) == b"ready"
        namespace = of_process(holder.pid)
        namespace.call(set_sysctls)
        ip("-n", lab.sandbox, "link", "set", "sb0", "netns", str(holder.pid))
        namespace.call(
            lambda: subprocess.run(["ip", "-batch", "-"], input=_LINK, text=True, check=True)
        )
        try:
            yield RunningPod(spec, namespace, holder.pid, folder)
        finally:
            # The next pod needs the link, which would be removed with the namespace.
            namespace.call(lambda: ip("link", "set", "sb0", "netns", f"/run/netns/{lab.sandbox}"))
            holder.stdin.close()


def _volumes(spec: Pod, objects: list[Object], folder: Path) -> None:
    maps = {
        found["metadata"]["name"]: found["data"]
        for found in objects
        if found["kind"] == "ConfigMap"
    }
    for volume in spec.spec["volumes"]:
        path = folder / "volumes" / volume["name"]
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o777)  # as an emptyDir is
        for name, content in maps.get(volume.get("configMap", {}).get("name"), {}).items():
            (path / name).write_text(content, encoding="utf-8")
    etc, lib = folder / "etc", folder / "lib"
    for each in (etc, lib):
        each.mkdir(exist_ok=True)
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n{INTERNET4} {KNOWN_NAME}\n", encoding="utf-8")
    (etc / "nsswitch.conf").write_text("hosts: files\n", encoding="utf-8")
    for container in spec.containers:
        for target in container.mounts():
            for own, where in ((etc, "/etc/"), (lib, "/var/lib/")):
                if target.startswith(where):
                    (own / target.removeprefix(where)).mkdir(exist_ok=True)


class World:
    """Servers beyond the pod's link, on the addresses of the internet."""

    def __init__(self, lab: Lab) -> None:
        ip("-n", lab.gateway, "address", "add", f"{INTERNET4}/32", "dev", "lo")
        ip("-n", lab.gateway, "address", "add", f"{INTERNET6}/128", "dev", "lo", "nodad")
        self._sockets = lab.gateway_namespace.call(lambda: list(_listening()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            each.close()

    def reached(self, seconds: float = 0, number: int = 1) -> list[tuple[str, int]]:
        """Return the sorted protocols and ports that were reached since the last call.

        Wait at most ``seconds`` until there are ``number`` of them.
        """
        found: list[tuple[str, int]] = []
        until = time.monotonic() + seconds
        while True:
            left = max(0, until - time.monotonic()) if len(found) < number else 0
            ready, _, _ = select.select(self._sockets, (), (), left)
            if not ready:
                return sorted(found)
            for each in ready:
                if each.type == socket.SOCK_STREAM:
                    each.accept()[0].close()
                else:
                    each.recv(2048)
                kind = "tcp" if each.type == socket.SOCK_STREAM else "udp"
                version = "4" if each.family == socket.AF_INET else "6"
                found.append((kind + version, each.getsockname()[1]))


def _listening() -> Iterator[socket.socket]:
    for family, address in ((socket.AF_INET, INTERNET4), (socket.AF_INET6, INTERNET6)):
        for port in _PORTS:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                sock = socket.socket(family, kind)
                sock.bind((address, port))
                if kind == socket.SOCK_STREAM:
                    sock.listen()
                yield sock
