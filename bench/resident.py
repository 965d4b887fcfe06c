"""Memory of a run, calm and under load, with a sink that is down all the time."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bench import host, receivers, stage
from bench.subject import Subject
from ocsf_nft import lab
from ocsf_nft.delivery.sink_db import SinkArchive
from ocsf_nft.state.archive import Archive

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from bench.stage import Fenced

_SECONDS: Final = 60
_RATE: Final = 300
#: A flow ends after ten seconds, and has a new event when it begins again after fifteen. A user has
#: separate events for ten flows a second. So each packet is an event, and no more flows begin.
_FLOWS: Final = 4_500
_USERS: Final = 30
_FIRST_PORT: Final = 20_000
#: Seconds at which memory is measured.
_MEASURED_AT: Final = (15, 30, 45, 60)
#: Limit while calm, with a file alone.
_BOUND_BYTES: Final = 70_000_000
#: Permitted variation once each flow has an event.
_FLAT_BYTES: Final = 5_000_000
_FILE: Final = "a file"
_SYSLOG: Final = """
[[sink]]
type = "syslog"
transport = "tcp"
host = "{host}"
port = {port}
"""
_HTTP: Final = """
[[sink]]
type = "http"
url = "http://{host}:{port}/"
"""
#: Sinks of each run: a file, and one without a receiver.
_SINKS: Final = {
    _FILE: "",
    "a file, and syslog by TCP that is down": _SYSLOG,
    "a file, and HTTP that is down (aiohttp)": _HTTP,
}


@dataclass(slots=True, kw_only=True)
class _Run:
    """A run, and its memory so far."""

    sinks: str
    fenced: Fenced
    service: subprocess.Popen[bytes]
    found: list[int] = field(default_factory=list)
    stored: int = 0
    waiting: int = 0

    def measure(self) -> None:
        """Record the memory of both processes: the sinks are in the second one."""
        self.found.append(host.use(self.service).bytes)

    def measure_store(self) -> None:
        """Record the number of stored events, and of events that wait for a sink."""
        with Archive(self.fenced.store) as archive, SinkArchive(self.fenced.store) as sinks:
            self.stored = next((each.number for each in archive.newest()), 0)
            self.waiting = max(each.waiting for each in sinks.backlogs(archive))

    def row(self) -> tuple[str, ...]:
        shown = (f"{each / 1e6:.1f}" for each in self.found)
        return self.sinks, *shown, f"{self.stored:,}", f"{self.waiting:,}"

    def failures(self) -> tuple[str, ...]:
        failed = []
        calm, _, first, *_, last = self.found
        if last - first > _FLAT_BYTES:
            failed.append(f"{self.sinks}: it grew by {(last - first) / 1e6:.1f} MB under load")
        if self.sinks == _FILE and calm >= _BOUND_BYTES:
            failed.append(f"{self.sinks}: calm it takes {_BOUND_BYTES // 10**6} MB or more")
        return tuple(failed)


def run() -> Subject:
    """Measure all at the same time; raise an OcsfNftError if the system does not permit it."""
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(receivers.unused_port())
        runs = [
            stack.enter_context(_running(name, sinks.format(host=receivers.HOST, port=port)))
            for name, sinks in _SINKS.items()
        ]
        for each in runs:
            stage.wait_until_idle(each.service)
            each.measure()
        begun = time.monotonic()
        senders = [stack.enter_context(stage.ending(_load(each.fenced))) for each in runs]
        for seconds in _MEASURED_AT:
            time.sleep(max(0.0, begun + seconds - time.monotonic()))
            for each in runs:
                each.measure()
        for sender, each in zip(senders, runs, strict=True):
            stage.sent(sender)
            stage.wait_until_idle(each.service)
            each.measure_store()
    return Subject(
        title=f"Memory (Pss) of a run's processes, in MB, at {_RATE} packets/s, {_FLOWS:,} flows",
        columns=(
            "events go to", "calm", *(f"after {at} s" for at in _MEASURED_AT), "stored", "waiting"
        ),
        rows=tuple(each.row() for each in runs),
        notes=(
            "All at the same time, each with a separate fence. Waiting: events that a sink did not",
            "get yet. Memory that several processes share is divided among them (Pss).",
        ),
        failures=tuple(failure for each in runs for failure in each.failures()),
    )  # fmt: skip


@contextlib.contextmanager
def _running(name: str, sinks: str) -> Iterator[_Run]:
    with stage.fenced("nflog", ipv6=False) as fenced:
        output = fenced.folder / "events.jsonl"
        with stage.ending(fenced.start_with(output, sinks)) as service:
            stage.wait_until_ready(service, output)
            yield _Run(sinks=name, fenced=fenced, service=service)


def _load(fenced: Fenced) -> subprocess.Popen[bytes]:
    return stage.send(
        fenced.namespace, "paced", lab.INTERNET4, _FIRST_PORT, _RATE, _RATE * _SECONDS, _FLOWS,
        _USERS,
    )  # fmt: skip
