"""Start of the programs that a container engine starts for each container.

Run only this subject with ``python -m bench.starting [ROUNDS]``.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench import command, host, stage
from bench.subject import Subject, percentile
from ocsf_nft.cni import node_files
from ocsf_nft.cni.network_file import TYPE
from ocsf_nft.control.container_facts import POLICY
from ocsf_nft.control_request import ControlSocket, container_path
from ocsf_nft.namespace_members import namespace_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_ROUNDS: Final = 40
#: Limit of the median of a start, without the work of the service and of the runtime.
_BOUND_MS: Final = 80.0
_SCRIPTS: Final = Path(sysconfig.get_path("scripts"))
#: Engines set no variables of Python. Those of this process could prevent compiled modules.
_ENVIRONMENT: Final = {
    name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
}
_TABLE: Final = "agents"
_POLICY: Final = f"""
[[attach]]
name = "{_TABLE}"
proxy = ["{host.PROXY}"]
"""
_PLUGIN_ID: Final = "c1" * 32
_HOOK_ID: Final = "0c" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """One way to start a program, and the durations of its starts in milliseconds.

    ``others`` does by itself what the program has others do: the service, or the runtime.
    ``prepare`` runs before each of both, and is not measured.
    """

    what: str
    program: Callable[[], object]
    others: Callable[[], object] | None = None
    prepare: Callable[[], object] = lambda: None
    each_ms: list[float] = field(default_factory=list)
    others_ms: list[float] = field(default_factory=list)

    @property
    def own_ms(self) -> float:
        """Return the median without the work of others."""
        return percentile(self.each_ms, 50) - self._median_of_others

    @property
    def _median_of_others(self) -> float:
        return percentile(self.others_ms, 50) if self.others_ms else 0.0

    def row(self, peer_ms: float) -> tuple[str, ...]:
        others = f"{self._median_of_others:.0f}" if self.others_ms else ""
        ratio = f"{self.own_ms / peer_ms:.1f}"
        p50, p95 = (f"{percentile(self.each_ms, percent):.0f}" for percent in (50, 95))
        return self.what, p50, p95, others, f"{self.own_ms:.0f}", ratio


def run(rounds: int = _ROUNDS) -> Subject:
    """Measure each program; raise an OcsfNftError if the system does not permit it."""
    with contextlib.ExitStack() as stack:
        (namespace,), folder = stack.enter_context(host.namespaces(1))
        _, control = stack.enter_context(host.service(folder, _POLICY))
        peer = _Start(what="python -c pass", program=_program([sys.executable, "-c", "pass"]))
        container = stack.enter_context(_container(folder))
        starts = (
            peer,
            *_of_wrapper(folder, control),
            *_of_hook(container, control),
            *_of_plugin(namespace, folder, control),
        )
        for number in range(rounds + 1):
            for each in starts:
                _measure(each, each.program, each.each_ms if number else [])
            for each in starts:
                if each.others is not None:
                    _measure(each, each.others, each.others_ms if number else [])
    failures = [
        f"{each.what}: {each.own_ms:.0f} ms, the limit is {_BOUND_MS:.0f} ms"
        for each in starts
        if each.own_ms > _BOUND_MS
    ]
    return Subject(
        title="Programs that an engine starts for each container",
        columns=("command", "p50, ms", "p95, ms", "others, ms", "own, ms", "times the peer"),
        rows=tuple(each.row(peer.own_ms) for each in starts),
        notes=(
            f"{rounds} times each, in turn, after one that is not counted. The peer is the first.",
            "Others: the same request to the service, or the same command of runc, without it.",
            "Own: the rest, at the median. Added and created: the service fences the namespace.",
        ),
        failures=tuple(failures),
    )


def _measure(start: _Start, work: Callable[[], object], into: list[float]) -> None:
    start.prepare()
    began = time.perf_counter()
    work()
    into.append(1_000 * (time.perf_counter() - began))


def _program(
    arguments: Sequence[str | Path], given: object = None, **environment: str
) -> Callable[[], object]:
    """Return a call that runs a program; ``given`` is JSON for its standard input."""
    return partial(_completed, arguments, given, environment)


def _completed(arguments: Sequence[str | Path], given: object, environment: dict[str, str]) -> None:
    done = subprocess.run(
        arguments,
        input=json.dumps(given).encode(),
        env=_ENVIRONMENT | environment,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise stage.BenchError(f"`{arguments[0]}` failed: {reason}")


def _of_wrapper(folder: Path, control: Path) -> Iterator[_Start]:
    """Yield commands that the OCI runtime wrapper passes to runc."""
    wrapper = (_SCRIPTS / "ocsf-nft-oci", f"--ocsf-nft-control={control}")
    for arguments in (("--version",), (f"--root={folder}/runc", "list")):
        yield _Start(
            what=f"ocsf-nft-oci {arguments[-1]}",
            program=_program([*wrapper, *arguments]),
            others=_program(["runc", *arguments]),
        )


@dataclass(slots=True, kw_only=True)
class _Container:
    """Container as its runtime has created it: a bundle, and a first process that waits."""

    bundle: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Return the process id of the first process; 0 if it has ended."""
        return 0 if self.process is None else self.process.pid

    @property
    def state(self) -> dict[str, Any]:
        """Return the state that a runtime gives to a hook."""
        return {"ociVersion": "1.2.0", "id": _HOOK_ID, "pid": self.pid, "bundle": str(self.bundle)}

    def create(self) -> None:
        """Start the first process, in a network namespace of its own."""
        self.process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        ours = namespace_of("self")
        stage.wait_for("a container", lambda: namespace_of(self.pid) != ours, self.process)

    def stop(self) -> None:
        """Kill the first process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def _container(folder: Path) -> Iterator[_Container]:
    """Yield a container that is not created yet."""
    bundle = folder / "bundle"
    bundle.mkdir()
    stage.run_quietly("runc", "spec", f"--bundle={bundle}")
    path = bundle / "config.json"
    config = json.loads(path.read_bytes()) | {"annotations": {POLICY: _TABLE}}
    path.write_text(json.dumps(config), "utf-8")
    made = _Container(bundle=bundle)
    try:
        yield made
    finally:
        made.stop()


def _of_hook(container: _Container, control: Path) -> Iterator[_Start]:
    """Yield the hooks of a container."""
    program = (_SCRIPTS / "ocsf-nft-oci", f"--ocsf-nft-control={control}", "hook")
    path = container_path(_HOOK_ID, "")
    facts = {"id": _HOOK_ID, "annotations": {POLICY: _TABLE}}
    service = ControlSocket(str(control))
    yield _Start(
        what="ocsf-nft-oci hook createRuntime",
        program=lambda: _completed([*program, "createRuntime"], container.state, {}),
        others=lambda: service.request("PUT", path, {**facts, "pid": container.pid}),
        prepare=container.create,
    )
    yield _Start(
        what="ocsf-nft-oci hook poststop",
        program=lambda: _completed([*program, "poststop"], container.state, {}),
        others=partial(service.request, "DELETE", path),
        prepare=container.stop,
    )


def _of_plugin(namespace: str, folder: Path, control: Path) -> Iterator[_Start]:
    """Yield commands of the CNI plugin: of the package, and of its copy on a node."""
    plugin = _SCRIPTS / TYPE
    node_files.install(Path("/"), folder / "node", folder / "programs")
    config = {
        "cniVersion": "1.0.0", "name": "bench", "type": TYPE, "control": str(control),
        "policy": _TABLE, "prevResult": {"cniVersion": "1.0.0"},
    }  # fmt: skip
    netns = f"/run/netns/{namespace}"
    container = {"CNI_CONTAINERID": _PLUGIN_ID, "CNI_NETNS": netns, "CNI_IFNAME": "eth0"}
    facts = {"id": _PLUGIN_ID, "netns": netns, "policy": _TABLE}
    path = container_path(_PLUGIN_ID, "bench")
    service = ControlSocket(str(control))
    yield _Start(what=f"{TYPE} VERSION", program=_program([plugin], config, CNI_COMMAND="VERSION"))
    for where, each in (("", plugin), (" of a node", folder / "programs" / TYPE)):
        yield _Start(
            what=f"{TYPE} ADD{where}",
            program=_program([each], config, CNI_COMMAND="ADD", **container),
            others=partial(service.request, "PUT", path, facts),
        )
        yield _Start(
            what=f"{TYPE} DEL{where}",
            program=_program([each], config, CNI_COMMAND="DEL", **container),
            others=partial(service.request, "DELETE", path),
        )


if __name__ == "__main__":
    command.run([partial(run, *map(int, sys.argv[1:]))])
