"""Start of the programs that a container engine starts for each container.

Run only this subject with ``python -m bench.starting [ROUNDS]``.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

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


class _Cost(NamedTuple):
    """Durations in milliseconds, and CPU time of the programs in them."""

    wall_ms: list[float]
    cpu_ms: list[float]

    @classmethod
    def none(cls) -> _Cost:
        """Return the cost of nothing yet."""
        return cls([], [])

    def measure(self, work: Callable[[], object]) -> None:
        """Run ``work``, and add its cost."""
        began, before = time.perf_counter(), _cpu_seconds()
        work()
        self.wall_ms.append(1_000 * (time.perf_counter() - began))
        self.cpu_ms.append(1_000 * (_cpu_seconds() - before))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """One way to start a program, and what its starts cost.

    ``others`` does the work that the program requests from the service or from the runtime.
    ``prepare`` runs before each of both, and is not measured.
    """

    what: str
    program: Callable[[], object]
    others: Callable[[], object] | None = None
    prepare: Callable[[], object] = lambda: None
    cost: _Cost = field(default_factory=_Cost.none)
    cost_of_others: _Cost = field(default_factory=_Cost.none)

    @property
    def own_ms(self) -> float:
        """Return the median duration without the work of others."""
        return _median(self.cost.wall_ms) - _median(self.cost_of_others.wall_ms)

    @property
    def own_cpu_ms(self) -> float:
        """Return the median CPU time without that of others."""
        return _median(self.cost.cpu_ms) - _median(self.cost_of_others.cpu_ms)

    def row(self, peer: _Start) -> tuple[str, ...]:
        each_ms, others_ms = self.cost.wall_ms, self.cost_of_others.wall_ms
        durations = _median(each_ms), percentile(each_ms, 95), _median(others_ms), self.own_ms
        ratio = self.own_cpu_ms / peer.own_cpu_ms
        cells = (f"{each:.0f}" for each in (*durations, self.own_cpu_ms))
        return self.what, *cells, f"{ratio:.1f}"


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
                each.prepare()
                (each.cost if number else _Cost.none()).measure(each.program)
            for each in starts:
                if each.others is not None:
                    each.prepare()
                    (each.cost_of_others if number else _Cost.none()).measure(each.others)
    failures = [
        f"{each.what}: {own_ms:.0f} ms, the limit is {_BOUND_MS:.0f} ms"
        for each in starts
        if (own_ms := max(each.own_ms, each.own_cpu_ms)) > _BOUND_MS
    ]
    return Subject(
        title="Programs that an engine starts for each container",
        columns=(
            "command",
            "p50, ms",
            "p95, ms",
            "others, ms",
            "own, ms",
            "CPU, ms",
            "times the peer",
        ),
        rows=tuple(each.row(peer) for each in starts),
        notes=(
            f"{rounds} times each, in turn, after one that is not counted. The peer is the first.",
            "Others: the same request to the service, or the same command of runc, without it.",
            "Own: the rest, at the median. CPU: also without others; other load changes it little.",
            "The service goes on with an addition meanwhile, and a release waits for that: the own",
            "time of DEL and poststop may be less than its CPU time.",
        ),
        failures=tuple(failures),
    )


def _median(values: Sequence[float]) -> float:
    return percentile(values, 50) if values else 0.0


def _cpu_seconds() -> float:
    """Return the CPU time of all programs that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
