"""From a packet's refusal to its event in the file."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from bench import stage
from bench.subject import Subject, milliseconds, percentile
from ocsf_nft import lab

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence
    from pathlib import Path

    from ocsf_nft.fence.spec import LogTransport

RATE: Final = 1_000
#: Each is a flow of its own; a user's first 1,000 are told one by one (accounting.quota).
PACKETS: Final = 900
_FIRST_PORT: Final = 20_000
_POLL_S: Final = 50e-6
_CHUNK_BYTES: Final = 1 << 20
#: How long the last event may take.
_PATIENCE_S: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    transport: LogTransport
    took_ns: Sequence[int]

    def row(self) -> tuple[str, ...]:
        counted = (self.transport, f"{PACKETS:,}", f"{len(self.took_ns):,}")
        if not self.took_ns:
            return *counted, "-", "-", "-"
        shown = (percentile(self.took_ns, 50), percentile(self.took_ns, 99), max(self.took_ns))
        return *counted, *map(milliseconds, shown)


def run() -> Subject:
    """Measure both transports; raises an OcsfNftError when the system doesn't let us."""
    measured = [_measure(transport) for transport in ("nflog", "kmsg")]
    return Subject(
        title=f"Packet to event in the file, at {RATE:,} packets/s, in ms",
        columns=("transport", "packets", "events", "p50", "p99", "max"),
        rows=tuple(each.row() for each in measured),
        notes=(
            "The whole program: from just before sendto() to the moment when another process",
            "reads the line (it looks every 0.1 ms). Nothing is pinned to a core.",
        ),
        failures=tuple(
            f"{each.transport}: {PACKETS - len(each.took_ns)} events are missing"
            for each in measured
            if len(each.took_ns) != PACKETS
        ),
    )


def _measure(transport: LogTransport) -> _Measured:
    with stage.fenced(transport, ipv6=False) as fenced:
        output = fenced.folder / "events.jsonl"
        with stage.ending(fenced.start(output)) as service:
            ready = output.with_suffix(".stderr")
            stage.wait_for("`ocsf-nft run`", lambda: b"ready" in ready.read_bytes(), service)
            stage.wait_until_idle(service)
            sender = stage.send(
                fenced.namespace, "paced", lab.INTERNET4, _FIRST_PORT, RATE, PACKETS
            )
            seen = _watch(output, sender)
            left = stage.sent(sender)
    return _Measured(
        transport=transport,
        took_ns=[
            seen[_FIRST_PORT + number] - moment
            for number, moment in enumerate(left)
            if _FIRST_PORT + number in seen
        ],
    )


def _watch(output: Path, sender: subprocess.Popen[bytes]) -> dict[int, int]:
    """When the event of each port was there, in the nanoseconds of CLOCK_MONOTONIC."""
    moments: dict[int, int] = {}
    rest, end = b"", None
    descriptor = os.open(output, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.lseek(descriptor, 0, os.SEEK_END)
        while len(moments) < PACKETS and (end is None or time.monotonic() < end):
            chunk = os.read(descriptor, _CHUNK_BYTES)
            now = time.monotonic_ns()
            *lines, rest = (rest + chunk).split(b"\n")
            for event in map(orjson.loads, lines):
                port = event.get("dst_endpoint", {}).get("port")
                if port is not None:
                    moments.setdefault(port, now)
            if end is None and sender.poll() is not None:
                end = time.monotonic() + _PATIENCE_S
            if not chunk:
                time.sleep(_POLL_S)
    finally:
        os.close(descriptor)
    return moments
