"""Time from the refusal of a packet to its event: on the disk in the store, and in the file."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from bench import disk, receivers, stage
from bench.subject import Subject, milliseconds, percentile
from ocsf_nft import lab
from ocsf_nft.state.archive import Archive

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ocsf_nft.fence.spec import LogTransport

#: The second rate is more than the stages can process one packet at a time: they then process
#: several at once. Half of the events within 2 ms is the goal there too, and not reached yet.
_CALM: Final = 300
_BUSY: Final = 1_000
#: Each packet is a separate flow: some 4,000 have separate events, and the first 1,000 of one user
#: (flows.overflow).
_PACKETS: Final = 2_700
_USERS: Final = 3
_FIRST_PORT: Final = 20_000
_POLL_S: Final = 50e-6
#: Time limit of the last event.
_TIMEOUT_S: Final = 3.0
#: Limits for the time until an event is in the store, at the 50th and the 99th percentile.
_BOUNDS_NS: Final = {
    _CALM: {50: 2_000_000, 99: 20_000_000},
    _BUSY: {50: 6_000_000, 99: 20_000_000},
}
_SYNCS: Final = 500
_HTTP: Final = """
[[sink]]
type = "http"
url = "http://{host}:{port}/"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A run: its log transport, the packets per second, and its sinks besides a file.

    ``beside`` describes these sinks.
    """

    transport: LogTransport
    rate: int
    sinks: str = ""
    beside: str = ""

    @property
    def name(self) -> str:
        return f"{self.transport}, {self.rate:,}/s{self.beside}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    case: _Case
    where: str
    took_ns: Sequence[int]
    expected: int = _PACKETS

    def row(self) -> tuple[str, ...]:
        counted = (self.case.name, self.where, f"{self.expected:,}", f"{len(self.took_ns):,}")
        if not self.took_ns:
            return *counted, "-", "-", "-"
        shown = (self.percentile(50), self.percentile(99), max(self.took_ns))
        return *counted, *map(milliseconds, shown)

    def percentile(self, percent: int) -> float:
        return percentile(self.took_ns, percent)


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfACase:
    store: _Measured
    file: _Measured
    disk: _Measured

    @property
    def all(self) -> tuple[_Measured, ...]:
        return self.store, self.file, self.disk

    def failures(self) -> Iterator[str]:
        for each in self.all:
            if missing := each.expected - len(each.took_ns):
                yield f"{each.case.name}, {each.where}: {missing} events are missing"
        bounds_ns = _BOUNDS_NS[self.store.case.rate] if self.store.took_ns else {}
        for percent, bound_ns in bounds_ns.items():
            if self.store.percentile(percent) >= bound_ns:
                alone = milliseconds(self.disk.percentile(percent))
                yield (
                    f"{self.store.case.name}, {self.store.where}: percentile {percent} is not "
                    f"below {bound_ns // 10**6} ms (of the disk alone it is {alone} ms)"
                )


def run() -> Subject:
    """Measure all cases; raise an OcsfNftError if the system does not permit it."""
    with receivers.unused_port() as port:
        dead = _HTTP.format(host=receivers.HOST, port=port)
        cases = (
            _Case(transport="nflog", rate=_CALM),
            _Case(transport="nflog", rate=_BUSY),
            _Case(transport="nflog", rate=_BUSY, sinks=dead, beside=", HTTP down"),
            _Case(transport="kmsg", rate=_BUSY),
        )
        measured = [_measure(case) for case in cases]
    return Subject(
        title="Packet to event, one packet per flow, in ms",
        columns=("transport, packets", "where", "packets", "events", "p50", "p99", "max"),
        rows=tuple(row.row() for each in measured for row in each.all),
        notes=(
            "The whole program: from just before sendto() to the time when another process",
            "finds the event (it polls every 0.1 ms): in the store it is on the disk by then, in",
            "the file, whose sync follows, it can be read. Nothing is pinned to a core.",
            "HTTP down: to a receiver that is not there, besides the file.",
            f"The disk alone ({disk.name()}): 4 KiB more of a file and fdatasync(), {_SYNCS} times",
            "in a row right afterwards; the store needs one at least.",
        ),
        failures=tuple(failure for each in measured for failure in each.failures()),
    )


class _Destination:
    """Destination of events, and the time of each port's first event there (CLOCK_MONOTONIC)."""

    def __init__(self, more: Callable[[], Sequence[bytes]]) -> None:
        self.times_ns: dict[int, int] = {}
        self._more = more

    def poll(self) -> bool:
        """Return whether there are new events."""
        lines = self._more()
        now_ns = time.monotonic_ns()
        for event in map(orjson.loads, lines):
            port = event.get("dst_endpoint", {}).get("port")
            if port is not None:
                self.times_ns.setdefault(port, now_ns)
        return bool(lines)


@contextlib.contextmanager
def _stored(path: Path) -> Iterator[_Destination]:
    with Archive(path) as archive:
        last = next((entry.number for entry in archive.newest()), 0)

        def more() -> Sequence[bytes]:
            nonlocal last
            found = list(archive.beyond(last))
            if found:
                last = found[-1].number
            return [entry.line for entry in found]

        yield _Destination(more)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[_Destination]:
    with path.open("rb", buffering=0) as file:
        file.seek(0, os.SEEK_END)
        rest = b""

        def more() -> Sequence[bytes]:
            nonlocal rest
            *lines, rest = (rest + file.read()).split(b"\n")
            return lines

        yield _Destination(more)


def _measure(case: _Case) -> _OfACase:
    with stage.fenced(case.transport, ipv6=False) as fenced:
        output = fenced.folder / "events.jsonl"
        with stage.ending(fenced.start_with(output, case.sinks)) as service:
            stage.wait_until_ready(service, output)
            stage.wait_until_idle(service)
            with _stored(fenced.store) as store, _written(output) as file:
                sender = stage.send(
                    fenced.namespace, "paced", lab.INTERNET4, _FIRST_PORT, case.rate, _PACKETS,
                    _PACKETS, _USERS,
                )  # fmt: skip
                _watch((store, file), sender)
            left = stage.sent(sender)
    return _OfACase(
        store=_Measured(case=case, where="on the disk, in the store", took_ns=_took(left, store)),
        file=_Measured(case=case, where="in the file", took_ns=_took(left, file)),
        disk=_Measured(
            case=case, where="(the disk alone)", took_ns=disk.synced_ns(_SYNCS), expected=_SYNCS
        ),
    )


def _watch(destinations: Sequence[_Destination], sender: subprocess.Popen[bytes]) -> None:
    """Poll until all events have arrived everywhere, or the time limit is over."""
    end = None
    while any(len(each.times_ns) < _PACKETS for each in destinations):
        if not any([each.poll() for each in destinations]):  # noqa: C419 - polls all of them
            time.sleep(_POLL_S)
        if end is None and sender.poll() is not None:
            end = time.monotonic() + _TIMEOUT_S
        if end is not None and time.monotonic() > end:
            return


def _took(left: Sequence[int], destination: _Destination) -> Sequence[int]:
    return [
        destination.times_ns[_FIRST_PORT + number] - left_ns
        for number, left_ns in enumerate(left)
        if _FIRST_PORT + number in destination.times_ns
    ]
