"""Many sandboxes in one service: what each of them costs."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from bench import host, stage
from bench.subject import Subject, percentile
from ocsf_nft.state.archive import Archive
from ocsf_nft.state.state_db import FILE

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from bench.host import Use

_NUMBERS: Final = (1, 10, 100, 500)
#: Time until the pauses of an idle sandbox are the longest.
_SETTLE_S: Final = 70.0
_IDLE_S: Final = 30.0
_SAMPLES: Final = 10
_ACTIVE_S: Final = 20
#: Time until the restores of all fences are prepared, which goes on after the start.
_PREPARE_S: Final = 15.0
#: Sandboxes and attempts of each in a second, for the time from packet to event.
_QUICK: Final = ((1, 10), (50, 10))
_FIRST_PORT: Final = 1_000
_LATENCY_PORT: Final = 60_000
_NETWORK_ACTIVITY: Final = 4001
#: Limits for one more idle sandbox: part of a core, descriptors, bytes, and seconds to start.
_BOUNDS: Final = {"CPU %": 0.05, "fds": 4.0, "MB": 0.25, "start s": 0.05}
_CONFIG: Final = """
state_dir = {state}
[attribution]
method = "capture"
[[sink]]
path = {output}
"""
_SANDBOX: Final = """
[[sandbox]]
name = "{name}"
netns = "{name}"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    sandboxes: int
    ready_s: float
    use: Use
    idle_percent: float
    active_percent: float
    events: int
    stop_s: float

    def row(self) -> tuple[str, ...]:
        return (
            f"{self.sandboxes:,}",
            f"{self.ready_s:.2f}",
            f"{self.idle_percent:.2f}",
            f"{self.active_percent:.1f}",
            f"{self.use.descriptors:,}",
            f"{self.use.threads}",
            f"{self.use.bytes / 1e6:.1f}",
            f"{self.events:,}",
            f"{self.stop_s:.2f}",
        )

    def each_more(self, first: _Measured) -> dict[str, float]:
        """Return what each sandbox beyond the first costs."""
        more = self.sandboxes - first.sandboxes
        return {
            "CPU %": (self.idle_percent - first.idle_percent) / more,
            "fds": (self.use.descriptors - first.use.descriptors) / more,
            "MB": (self.use.bytes - first.use.bytes) / 1e6 / more,
            "start s": (self.ready_s - first.ready_s) / more,
        }


def run() -> Subject:
    """Measure all numbers in turn; raise an OcsfNftError if the system does not permit it."""
    with host.sandboxes(max(_NUMBERS)) as (names, folder):
        measured = [_measure(names[:number], folder) for number in _NUMBERS]
        waits = {number: _latencies(names[:number], rate, folder) for number, rate in _QUICK}
    more = measured[-1].each_more(measured[0])
    few, many = (percentile(waits[number], 50) / 1e6 for number, _ in _QUICK)
    failures = [
        f"{name} of one more idle sandbox: {more[name]:.3f} is above {bound}"
        for name, bound in _BOUNDS.items()
        if more[name] > bound
    ]
    # With one sandbox the shared threads have not all been needed yet.
    if len({each.use.threads for each in measured[1:]}) > 1:
        failures.append("the number of threads depends on the number of sandboxes")
    failures += [
        f"{each.sandboxes} sandboxes: {each.sandboxes * _ACTIVE_S} attempts, {each.events} events"
        for each in measured
        if each.events != each.sandboxes * _ACTIVE_S
    ]
    if many > 2 * few:
        failures.append("50 sandboxes: the median from packet to event is over twice that of one")
    costs = ", ".join(f"{each:.3f} {name}" for name, each in more.items())
    return Subject(
        title="Sandboxes in one service",
        columns=(
            "sandboxes", "ready, s", "idle, CPU %", "1 attempt/s each, CPU %", "descriptors",
            "threads", "Pss, MB", "events", "stop, s",
        ),
        rows=tuple(each.row() for each in measured),
        notes=(
            "Both processes of the service, with a file as the sink. CPU of one core.",
            f"One more idle sandbox: {costs}",
            "Packet to durable event, 10 attempts/s each, p50:",
            f"{few:.2f} ms with one sandbox, {many:.2f} ms with 50.",
        ),
        failures=tuple(failures),
    )  # fmt: skip


@contextlib.contextmanager
def _running(names: Sequence[str], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """Run a service for some sandboxes; yield its process, and the seconds until it was ready."""
    config, output = folder / "config.toml", folder / "events.jsonl"
    for old in (output, *(folder / "state").glob("state-*")):
        old.unlink(missing_ok=True)
    text = _CONFIG.format(state=json.dumps(str(folder / "state")), output=json.dumps(str(output)))
    config.write_text(text + "".join(_SANDBOX.format(name=name) for name in names), "utf-8")
    messages = folder / "messages"
    command = [sys.executable, "-m", "ocsf_nft", "run", "--config", str(config)]
    began = time.monotonic()
    with messages.open("wb") as stderr:
        service = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stderr)
    with stage.ending(service):
        stage.wait_for("ready", lambda: b'"ready"' in messages.read_bytes(), service, seconds=300.0)
        yield service, time.monotonic() - began


def _measure(names: Sequence[str], folder: Path) -> _Measured:
    with _running(names, folder) as (service, ready_s):
        time.sleep(_SETTLE_S)
        begin, began = host.use(service), time.monotonic()
        time.sleep(_IDLE_S)
        idle, ended = host.use(service), time.monotonic()
        # A reading that goes on has some sockets more.
        descriptors = min(host.use(service).descriptors for _ in range(_SAMPLES))
        idle_percent = 100 * (idle.cpu_s - begin.cpu_s) / (ended - began)
        before = _attempts(folder)  # of an earlier service
        with host.sockets(names) as socks:
            began = time.monotonic()
            for second in range(_ACTIVE_S):
                _attempt(socks, _FIRST_PORT + 100 * len(names) + second)
                time.sleep(max(0.0, began + second + 1 - time.monotonic()))
        active, ended = host.use(service), time.monotonic()
        time.sleep(2)
        events = _attempts(folder) - before
        stopping = time.monotonic()
        service.terminate()
        service.wait(120)
        stop_s = time.monotonic() - stopping
    return _Measured(
        sandboxes=len(names),
        ready_s=ready_s,
        use=replace(idle, descriptors=min(idle.descriptors, descriptors)),
        idle_percent=idle_percent,
        active_percent=100 * (active.cpu_s - idle.cpu_s) / (ended - began),
        events=events,
        stop_s=stop_s,
    )


def _latencies(names: Sequence[str], rate: int, folder: Path) -> list[int]:
    """Return the times from packet to durable event of some seconds of attempts, in ns."""
    sent_ns: dict[tuple[str, int], int] = {}
    found: list[int] = []
    with _running(names, folder) as (_, _), host.sockets(names) as socks:
        time.sleep(_PREPARE_S)
        with Archive(folder / "state" / FILE) as archive:
            last = next((each.number for each in archive.newest()), 0)
            began, step = time.monotonic(), 1 / (rate * len(names))
            total = 5 * rate * len(names)
            number = 0
            while len(found) < total and time.monotonic() < began + 30:
                if number < total and time.monotonic() >= began + number * step:
                    name = names[number % len(names)]
                    port = _LATENCY_PORT + number // len(names)
                    sent_ns[name, port] = time.monotonic_ns()
                    _attempt({name: socks[name]}, port)
                    number += 1
                for each in archive.beyond(last):
                    last = each.number
                    event = json.loads(each.line)
                    key = (
                        event["unmapped"].get("sandbox"),
                        event.get("dst_endpoint", {}).get("port"),
                    )
                    if key in sent_ns:
                        found.append(time.monotonic_ns() - sent_ns.pop(key))
                time.sleep(0.001)
    if len(found) < total:
        raise stage.BenchError(f"{total - len(found)} attempts have no event")
    return found


def _attempt(socks: dict[str, socket.socket], port: int) -> None:
    for each in socks.values():
        with contextlib.suppress(OSError):  # it is refused
            each.sendto(b"attempt", (host.REFUSED, port))


def _attempts(folder: Path) -> int:
    with Archive(folder / "state" / FILE) as archive:
        return sum(
            json.loads(each.line)["class_uid"] == _NETWORK_ACTIVITY for each in archive.beyond(0)
        )
