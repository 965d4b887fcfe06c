"""A host for benchmarks: many fenced sandboxes, programs in them, and what their service uses."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import disk, stage
from ocsf_nft import netns
from ocsf_nft.fence import installer
from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: An address that the fence refuses.
REFUSED: Final = "203.0.113.7"
PROXY: Final = "10.0.0.1:3128"
UPLINK: Final = "up0"
#: A link through which packets could leave; without IPv6 the kernel sends none.
_LINKS: Final = f"""\
link set lo up
link add {UPLINK} type veth peer name far0
link set {UPLINK} up
link set far0 up
address add 10.0.0.2/24 dev {UPLINK}
route add default via 10.0.0.1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Resources of the two processes of a service: CPU time so far, and the others now."""

    cpu_s: float
    descriptors: int
    threads: int
    bytes: int


@contextlib.contextmanager
def sandboxes(number: int) -> Iterator[tuple[list[str], Path]]:
    """Make fenced namespaces; yield their names and a folder with their state."""
    with namespaces(number) as (names, folder):
        for name in names:
            install(name, folder / "state")
        yield names, folder


@contextlib.contextmanager
def namespaces(number: int) -> Iterator[tuple[list[str], Path]]:
    """Make namespaces without a fence; yield their names and a folder."""
    prefix = f"bench-{secrets.token_hex(3)}-"
    names: list[str] = []
    with disk.folder() as folder:
        try:
            for each in range(number):
                name = f"{prefix}{each}"
                subprocess.run(["ip", "netns", "add", name], check=True)
                names.append(name)
                netns.named(name).call(_without_ipv6)
                subprocess.run(
                    ["ip", "-n", name, "-batch", "-"], input=_LINKS, text=True, check=True
                )
            yield names, Path(folder)
        finally:
            for name in names:
                subprocess.run(["ip", "netns", "delete", name], check=False)


def install(name: str, state: Path) -> None:
    """Fence a namespace of this host."""
    spec = FenceSpec(sandbox=name, proxies=(endpoint(PROXY),))
    installer.install(spec, netns.named(name), StateDirectory(state), "nflog")


@contextlib.contextmanager
def service(folder: Path, tables: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a service with some tables in its file; yield its process, and its control socket."""
    config, messages, control = folder / "config.toml", folder / "messages", folder / "control"
    settings = {"state_dir": folder / "state", "output": folder / "events", "control": control}
    lines = [f"{key} = {json.dumps(str(value))}\n" for key, value in settings.items()]
    config.write_text("".join(lines) + tables, "utf-8")
    program = [sys.executable, "-m", "ocsf_nft", "run", "--config", str(config)]
    with messages.open("wb") as stderr:
        process = subprocess.Popen(program, stdin=subprocess.DEVNULL, stderr=stderr)
    with stage.ending(process):
        stage.wait_for("ready", lambda: b'"ready"' in messages.read_bytes(), process)
        yield process, control


def _without_ipv6() -> None:
    for name in ("all", "default"):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1", "ascii")


@contextlib.contextmanager
def sockets(names: Sequence[str]) -> Iterator[dict[str, socket.socket]]:
    """Yield a UDP socket in each sandbox."""
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(
                netns.named(name).call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            )
            for name in names
        }


def processes(service: subprocess.Popen[bytes]) -> tuple[int, ...]:
    """Return the process ids of a service and of its child processes."""
    children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text("ascii").split()
    return (service.pid, *map(int, children))


def use(service: subprocess.Popen[bytes]) -> Use:
    """Return what a service and its child processes use."""
    cpu_s = 0.0
    descriptors = threads = size = 0
    for pid in processes(service):
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
        cpu_s += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        descriptors += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        threads += int(fields[17])
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
        size += sum(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Pss:"))
    return Use(cpu_s=cpu_s, descriptors=descriptors, threads=threads, bytes=size)
