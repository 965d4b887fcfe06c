"""The memory of a run, calm and under load, with a sink that is down for all of it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bench import receivers, stage
from bench.subject import Subject
from ocsf_nft import lab
from ocsf_nft.delivery.stored_events import Archive

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from bench.stage import Fenced

_SECONDS: Final = 60
_RATE: Final = 300
#: A flow is over after ten seconds, and told anew when it begins again after fifteen; a user has
#: ten flows a second told one by one. So each packet is an event, and no more flows come.
_FLOWS: Final = 4_500
_USERS: Final = 30
_FIRST_PORT: Final = 20_000
#: When memory is looked at.
_LOOKS: Final = (15, 30, 45, 60)
#: Calm, with a file alone.
_BOUND_BYTES: Final = 60_000_000
#: What may come and go once each flow has been told.
_FLAT_BYTES: Final = 3_000_000
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
#: What goes to a file in each run, and besides to somebody who is not there.
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
    kept: int = 0
    waiting: int = 0

    def look(self) -> None:
        """Take its memory down."""
        self.found.append(stage.resident_bytes(self.service))

    def look_at_store(self) -> None:
        """Take down what it has kept, and what of it waits for a sink."""
        with Archive(self.fenced.store) as archive:
            self.kept = next((each.number for each in archive.newest()), 0)
            self.waiting = max(each.waiting for each in archive.sink_backlogs())

    def row(self) -> tuple[str, ...]:
        shown = (f"{each / 1e6:.1f}" for each in self.found)
        return self.sinks, *shown, f"{self.kept:,}", f"{self.waiting:,}"

    def failures(self) -> tuple[str, ...]:
        failed = []
        calm, _, first, *_, last = self.found
        if last - first > _FLAT_BYTES:
            failed.append(f"{self.sinks}: it grew by {(last - first) / 1e6:.1f} MB under load")
        if self.sinks == _FILE and calm >= _BOUND_BYTES:
            failed.append(f"{self.sinks}: calm it takes {_BOUND_BYTES // 10**6} MB or more")
        return tuple(failed)


def run() -> Subject:
    """Measure all at the same time; raises an OcsfNftError when the system doesn't let us."""
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(receivers.nobodys_port())
        runs = [
            stack.enter_context(_running(name, sinks.format(host=receivers.HOST, port=port)))
            for name, sinks in _SINKS.items()
        ]
        for each in runs:
            stage.wait_until_idle(each.service)
            each.look()
        begun = time.monotonic()
        senders = [stack.enter_context(stage.ending(_load(each.fenced))) for each in runs]
        for seconds in _LOOKS:
            time.sleep(max(0.0, begun + seconds - time.monotonic()))
            for each in runs:
                each.look()
        for sender, each in zip(senders, runs, strict=True):
            stage.sent(sender)
            stage.wait_until_idle(each.service)
            each.look_at_store()
    return Subject(
        title=f"Resident memory of a run, in MB, at {_RATE} packets/s, {_FLOWS:,} flows",
        columns=(
            "events go to", "calm", *(f"after {seconds} s" for seconds in _LOOKS), "kept", "waiting"
        ),
        rows=tuple(each.row() for each in runs),
        notes=(
            "All at the same time, each with a fence of its own. Waiting: events that a sink has",
            "yet to get. With what is shared with other processes (VmRSS).",
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
