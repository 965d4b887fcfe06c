"""Allowed traffic: what a fence costs the packets between a sandbox and its proxy."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import disk, stage
from bench.subject import Subject, percentile
from ocsf_nft import lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace

_SOURCE: Final = Path(__file__).with_name("traffic.c")
_CLIENT_CORE: Final = 0
_SERVER_CORE: Final = 1
#: Ports of datagrams: of their receivers at the gateway and in the sandbox, and of the answers.
_PORT: Final = 5000
_OWN_PORT: Final = 6000
_ANSWER_PORT: Final = 5001

#: Protections of a sandbox: each has the previous one too.
_OPEN: Final = "without a fence"
_FENCE: Final = "fence"
_GUARD: Final = "and guard"
_SERVICE: Final = "and service"
_PROTECTIONS: Final = (_OPEN, _FENCE, _GUARD, _SERVICE)

_PACKET_ROUNDS: Final = 6
_BATCHES: Final = 150
#: Datagrams of a batch, as in ``traffic.c``.
_BATCH: Final = 100
_BOUNDS_US: Final = {"to the proxy": 2.5, "from the proxy": 1.5}

_RATE_ROUNDS: Final = 15
_MILLISECONDS: Final = 300
_SMALL: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """Work of ``traffic.c`` by TCP."""

    name: str
    kind: str
    connections: int
    size: int

    def shown(self, rate: float) -> str:
        """Format a rate: Gbit/s of large writes, else thousands of writes a second."""
        if self.size > _SMALL:
            return f"{rate * self.size * 8 / 1e9:.1f} Gbit/s"
        return f"{rate / 1e3:.1f} k/s"


_WORKS: Final = (
    _Work(name="64 KiB writes", kind="send", connections=1, size=65_536),
    _Work(name="the same, 64 connections", kind="send", connections=64, size=65_536),
    _Work(name="64-byte writes", kind="send", connections=1, size=_SMALL),
    _Work(name="the same, 64 connections", kind="send", connections=64, size=_SMALL),
    _Work(name="64-byte questions", kind="ask", connections=1, size=_SMALL),
)


@dataclass(slots=True)
class _Found:
    """Numbers of each round, by the protection of the sandbox."""

    rounds: dict[str, list[float]] = field(
        default_factory=lambda: {each: [] for each in _PROTECTIONS}
    )

    def median(self, protection: str) -> float:
        return percentile(self.rounds[protection], 50)

    def less_percent(self, protection: str) -> float:
        """Return by how many percent a protection reduces the number: the median of the rounds.

        The protections of one round follow each other, so that other load disturbs them alike.
        """
        pairs = zip(self.rounds[_OPEN], self.rounds[protection], strict=True)
        return 100 * (1 - percentile([found / without for without, found in pairs], 50))


def packets() -> Subject:
    """Measure single packets; raise an OcsfNftError if the system does not permit it."""
    found = {direction: _Found() for direction in _BOUNDS_US}
    with _labs() as (program, labs):
        for _ in range(_PACKET_ROUNDS):
            for direction, each in found.items():
                for protection, made in labs.items():
                    took = _packet_us(made, program, is_reply=direction == "from the proxy")
                    each.rounds[protection].append(took)
    failures = []
    for direction, bound_us in _BOUNDS_US.items():
        more = found[direction].median(_SERVICE) - found[direction].median(_OPEN)
        if more > bound_us:
            failures.append(f"{direction}: {more:.2f} µs more, allowed are {bound_us}")
    return Subject(
        title="An allowed UDP packet of 64 bytes, µs of CPU until it is at its receiver's socket",
        columns=("packet", *_PROTECTIONS, "more", "limit"),
        rows=tuple(
            (
                direction,
                *(f"{each.median(protection):.2f}" for protection in _PROTECTIONS),
                f"{each.median(_SERVICE) - each.median(_OPEN):.2f}",
                f"{_BOUNDS_US[direction]}",
            )
            for direction, each in found.items()
        ),
        notes=(
            "The whole way, in the sender's system call and on its core: socket, hooks of the",
            "sandbox, veth pair, hooks of the host's end, socket. Medians of the rounds; of each",
            "round the 5th percentile of its batches, as other load disturbs it least.",
            "Guard: on the host's end. Service: an idle one, with the last gate and the capture.",
        ),
        failures=tuple(failures),
    )


def rates() -> Subject:
    """Measure TCP connections; raise an OcsfNftError if the system does not permit it."""
    found = [_Found() for _ in _WORKS]
    with _labs() as (program, labs):
        for _ in range(_RATE_ROUNDS):
            for work, each in zip(_WORKS, found, strict=True):
                for protection, made in labs.items():
                    each.rounds[protection].append(_rate(made, program, work))
    return Subject(
        title="Allowed TCP traffic to the proxy, in turns",
        columns=("work", *_PROTECTIONS, "% less"),
        rows=tuple(
            (
                work.name,
                *(work.shown(each.median(protection)) for protection in _PROTECTIONS),
                f"{each.less_percent(_SERVICE):.0f}",
            )
            for work, each in zip(_WORKS, found, strict=True)
        ),
        notes=(
            f"{_RATE_ROUNDS} rounds of {_MILLISECONDS} ms; medians of the rates, and of the ratios",
            "within a round. The client and the server have a core each, and do nothing else.",
        ),
    )


@contextlib.contextmanager
def _labs() -> Iterator[tuple[Path, dict[str, Lab]]]:
    """Make a lab with each protection, with servers; yield the program ``traffic`` and the labs."""
    with _built() as program, contextlib.ExitStack() as stack:
        labs = {each: stack.enter_context(_protected(each)) for each in _PROTECTIONS}
        for made in labs.values():
            gateway, sandbox = made.gateway_namespace, made.sandbox_namespace
            for namespace, kind, address, port in (
                (gateway, "serve", lab.GATEWAY4, lab.PROXY_PORT),
                (gateway, "receive", lab.GATEWAY4, _PORT),
                (sandbox, "receive", lab.SANDBOX4, _OWN_PORT),
            ):
                stack.enter_context(_serving(namespace, program, kind, address, port))
        yield program, labs


@contextlib.contextmanager
def _built() -> Iterator[Path]:
    compiler = shutil.which("cc")
    if compiler is None:
        raise stage.BenchError("cc is missing: install gcc and libc6-dev")
    with disk.folder() as folder:
        made = Path(folder) / "traffic"
        subprocess.run([compiler, "-O2", "-o", made, _SOURCE], check=True)
        yield made


@contextlib.contextmanager
def _protected(protection: str) -> Iterator[Lab]:
    """Make a lab, and fence its sandbox from the gateway, which is its host."""
    with lab.throwaway() as made, disk.folder() as folder:
        output = Path(folder) / "events.jsonl"
        options = (
            "--sandbox", stage.SANDBOX, "--netns", made.sandbox,
            "--proxy", f"{lab.GATEWAY4}:{lab.PROXY_PORT}",
            "--allow", f"udp:{lab.GATEWAY4}:{_PORT}",
            "--allow", f"udp:{lab.GATEWAY4}:{_ANSWER_PORT}",
            "--state-dir", str(Path(folder) / "state"),
            "--host-guard", "off" if protection == _FENCE else "auto",
        )  # fmt: skip
        if protection == _SERVICE:
            with _running(made, output, options):
                yield made
            return
        if protection != _OPEN and _start(made, output, "install", *options).wait(60):
            raise stage.BenchError(stage.messages(output).read_text("utf-8"))
        yield made


@contextlib.contextmanager
def _running(made: Lab, output: Path, options: tuple[str, ...]) -> Iterator[None]:
    service = _start(made, output, "run", "--install", "--output", str(output), *options)
    with stage.ending(service):
        stage.wait_until_ready(service, output)
        yield


def _start(made: Lab, output: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = (sys.executable, "-m", "ocsf_nft", *arguments)
    with stage.messages(output).open("wb") as stderr:
        return made.gateway_namespace.call(
            lambda: subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr
            )
        )


@contextlib.contextmanager
def _serving(
    namespace: Namespace, program: Path, kind: str, address: str, port: int
) -> Iterator[None]:
    command = [str(program), kind, str(_SERVER_CORE), address, str(port)]
    server = namespace.call(lambda: subprocess.Popen(command, stdout=subprocess.PIPE))
    with stage.ending(server):
        if server.stdout is None or server.stdout.readline() != b"ready\n":
            raise stage.BenchError("the server did not start")
        yield


def _rate(made: Lab, program: Path, work: _Work) -> float:
    """Return how many writes, or questions, a second were processed."""
    writes, took_ns = _numbers(
        made.sandbox_namespace, program, work.kind, lab.GATEWAY4, lab.PROXY_PORT,
        work.connections, work.size, _MILLISECONDS,
    )  # fmt: skip
    return writes / took_ns * 1e9


def _packet_us(made: Lab, program: Path, *, is_reply: bool) -> float:
    """Return the duration of a packet's way, in µs, without disturbance."""
    if is_reply:
        namespace = made.gateway_namespace
        ends = (lab.SANDBOX4, _OWN_PORT, lab.GATEWAY4, _ANSWER_PORT)
    else:
        namespace = made.sandbox_namespace
        ends = (lab.GATEWAY4, _PORT, lab.SANDBOX4, 0)
    took_ns = _numbers(namespace, program, "packets", *ends, _BATCHES)
    return percentile(took_ns, 5) / _BATCH / 1e3


def _numbers(namespace: Namespace, program: Path, kind: str, *arguments: object) -> list[int]:
    command = [str(program), kind, str(_CLIENT_CORE), *map(str, arguments)]
    done = namespace.call(
        lambda: subprocess.run(command, capture_output=True, check=False, timeout=60)
    )
    if done.returncode != 0:
        raise stage.BenchError(f"the client failed: {done.stderr.decode().strip()}")
    return list(map(int, json.loads(done.stdout)))


if __name__ == "__main__":
    from bench import command

    command.run((packets, rates))
