"""Memory of attribution, before and after a flood of processes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bench import calling, stage
from bench.holder import TOPS
from bench.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.stage import Fenced
    from ocsf_nft.attribution.fallback_chain import TopMethod

_PROCESSES: Final = 5_000
_ATTEMPTS: Final = 10
_FLOODS: Final = 2
#: Permitted variation once all maps are full.
_FLAT_BYTES: Final = 3_000_000


@dataclass(slots=True, kw_only=True)
class _Holder:
    """Program with a fallback chain and nothing else, and its memory so far."""

    top: TopMethod
    child: subprocess.Popen[bytes]
    found: list[int] = field(default_factory=list)
    cpu_s: float = 0.0

    def measure(self) -> None:
        """Record its memory when it is idle."""
        stage.wait_until_idle(self.child)
        self.found.append(stage.resident_bytes(self.child))

    def wait_for_number(self) -> int:
        """Wait until it is ready for the next step, and return the number that it prints."""
        line = b"" if self.child.stdout is None else self.child.stdout.readline()
        if not line:
            raise stage.BenchError(f"a program with the fallback chain {self.top} ended by itself")
        return int(line)

    def go_on(self) -> int:
        """Start its next step, and return the number that it prints."""
        if self.child.stdin is not None:
            self.child.stdin.write(b"\n")
            self.child.stdin.flush()
        return self.wait_for_number()

    def row(self, dropped: int) -> tuple[str, ...]:
        attempts = _PROCESSES * _ATTEMPTS * _FLOODS
        shown = (f"{each / 1e6:.1f}" for each in self.found)
        return self.top, *shown, f"{self.cpu_s / attempts * 1e6:.1f}", f"{dropped:,}"

    def failures(self) -> Iterator[str]:
        *_, first, last = self.found
        if last - first > _FLAT_BYTES:
            yield f"{self.top}: the second flood added {(last - first) / 1e6:.1f} MB"


def run() -> Subject:
    """Measure each holder; raise an OcsfNftError if the system does not permit it."""
    with contextlib.ExitStack() as stack:
        program = stack.enter_context(calling.built())
        fenced = stack.enter_context(stage.fenced("none", ipv6=False))
        holders = [stack.enter_context(_holder(top, fenced)) for top in TOPS]
        for each in holders:
            each.measure()
            each.go_on()
            each.measure()
        for _ in range(_FLOODS):
            before = [stage.cpu_seconds(each.child) for each in holders]
            _flood(fenced, program)
            for each, cpu_s in zip(holders, before, strict=True):
                each.measure()
                each.cpu_s += stage.cpu_seconds(each.child) - cpu_s
        rows = tuple(each.row(each.go_on()) for each in holders)
    each_time = f"{_PROCESSES * _ATTEMPTS:,} attempts by {_PROCESSES:,} processes"
    return Subject(
        title=f"Resident memory of attribution, in MB, and {each_time}",
        columns=("by", "before", "open", "after them", "twice", "CPU µs an attempt", "dropped"),
        rows=rows,
        notes=(
            "A Python program that does nothing else; no records are read. Each process tries one",
            "protocol and ten ports, all of them some five thousand; as fast as it goes.",
        ),
        failures=tuple(failure for each in holders for failure in each.failures()),
    )


def _flood(fenced: Fenced, program: Path) -> None:
    swarm = calling.swarm(fenced, program, (_PROCESSES, 0, _ATTEMPTS, 0), subprocess.DEVNULL)
    with stage.ending(swarm):
        stage.wait_for("the end of a flood", lambda: swarm.poll() == 0, swarm, seconds=30)


@contextlib.contextmanager
def _holder(top: TopMethod, fenced: Fenced) -> Iterator[_Holder]:
    command = [sys.executable, "-m", "bench.holder", top, fenced.lab.sandbox]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with stage.ending(child):
        holder = _Holder(top=top, child=child)
        holder.wait_for_number()
        yield holder
