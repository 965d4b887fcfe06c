"""``python -m bench.sink_cost``: CPU time that an event takes, by sink, and its limits.

It measures only this, in about a minute, and needs no root. It exits with 1 if a sink takes more
than its limit.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import command, delivering, disk, lines
from bench.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.delivering import Destination

_EVENTS: Final = 10_000
#: The sinks are measured in turn, so that other load affects all equally.
_ROUNDS: Final = 4
_STORED_ONLY: Final = "no sink: stored only"
_FILE: Final = next(iter(delivering.DESTINATIONS))
#: Limits, in multiples of the CPU time for a file.
_LIMIT: Final = 1.3
#: A log record of OpenTelemetry has three times as much JSON as its event.
_LIMITS: Final = {"Parquet in a directory": 2.5, "OTLP, gzip": 4.0}


def run() -> Subject:
    """Measure all sinks; raise an OcsfNftError if a delivery is not possible."""
    events = lines.lines(_EVENTS + 1)
    destinations = {_STORED_ONLY: delivering.nowhere, **delivering.DESTINATIONS}
    costs: dict[str, float] = {}
    for _ in range(_ROUNDS):
        for name, destination in destinations.items():
            costs[name] = min(_cost(destination, events), costs.get(name, float("inf")))
    return Subject(
        title=f"CPU time of an event by sink (real ones, {lines.mean_bytes(events)})",
        columns=("sink", "µs an event", "more than the file", "file is 1", "limit"),
        rows=tuple(_row(name, costs) for name in destinations),
        notes=(
            "CPU of storing and of delivering, with each sink's defaults, in one process.",
            f"The best of {_ROUNDS} rounds of {_EVENTS:,} events, the sinks in turn.",
        ),
        failures=tuple(
            f"{name}: {cost / costs[_FILE]:.2f} times the CPU time of the file, more than "
            f"{_limit(name):g}"
            for name, cost in costs.items()
            if cost > _limit(name) * costs[_FILE]
        ),
    )


def _cost(destination: Destination, events: Sequence[bytes]) -> float:
    """Return the CPU time of an event in µs."""
    with disk.folder() as folder, destination(Path(folder)) as (table, _):
        _, seconds = asyncio.run(
            delivering.delivered(table, Path(folder) / "state.sqlite3", events)
        )
    return seconds / _EVENTS * 1e6


def _limit(name: str) -> float:
    return _LIMITS.get(name, _LIMIT)


def _row(name: str, costs: dict[str, float]) -> tuple[str, ...]:
    cost, of_file = costs[name], costs[_FILE]
    limit = "" if name in {_STORED_ONLY, _FILE} else f"{_limit(name):g}"
    return name, f"{cost:.1f}", f"{cost - of_file:+.1f}", f"{cost / of_file:.2f}", limit


if __name__ == "__main__":
    command.run([run])
