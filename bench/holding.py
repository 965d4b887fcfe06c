"""What memory it takes to look for processes, before a flood of them and after it."""

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
#: What may come and go once all that is kept is full.
_FLAT_BYTES: Final = 3_000_000


@dataclass(slots=True, kw_only=True)
class _Holder:
    """A program that has a ladder and nothing else, and its memory so far."""

    top: TopMethod
    child: subprocess.Popen[bytes]
    found: list[int] = field(default_factory=list)
    cpu_s: float = 0.0

    def look(self) -> None:
        """Take its memory down once it is at rest."""
        stage.wait_until_idle(self.child)
        self.found.append(stage.resident_bytes(self.child))

    def said(self) -> int:
        """Wait for it to be ready for the next step, as which it says a number."""
        line = b"" if self.child.stdout is None else self.child.stdout.readline()
        if not line:
            raise stage.BenchError(f"a program with the ladder {self.top} ended by itself")
        return int(line)

    def go_on(self) -> int:
        """Have it take the next step, and what it says then."""
        if self.child.stdin is not None:
            self.child.stdin.write(b"\n")
            self.child.stdin.flush()
        return self.said()

    def row(self, lost: int) -> tuple[str, ...]:
        attempts = _PROCESSES * _ATTEMPTS * _FLOODS
        shown = (f"{each / 1e6:.1f}" for each in self.found)
        return self.top, *shown, f"{self.cpu_s / attempts * 1e6:.1f}", f"{lost:,}"

    def failures(self) -> Iterator[str]:
        *_, first, last = self.found
        if last - first > _FLAT_BYTES:
            yield f"{self.top}: the second flood added {(last - first) / 1e6:.1f} MB"


def run() -> Subject:
    """Measure each holder; raises an OcsfNftError when the system doesn't let us."""
    with contextlib.ExitStack() as stack:
        program = stack.enter_context(calling.built())
        fenced = stack.enter_context(stage.fenced("none", ipv6=False))
        holders = [stack.enter_context(_holder(top, fenced)) for top in TOPS]
        for each in holders:
            each.look()
            each.go_on()
            each.look()
        for _ in range(_FLOODS):
            before = [stage.cpu_seconds(each.child) for each in holders]
            _flood(fenced, program)
            for each, cpu_s in zip(holders, before, strict=True):
                each.look()
                each.cpu_s += stage.cpu_seconds(each.child) - cpu_s
        rows = tuple(each.row(each.go_on()) for each in holders)
    each_time = f"{_PROCESSES * _ATTEMPTS:,} attempts by {_PROCESSES:,} processes"
    return Subject(
        title=f"Resident memory of who looks for processes, in MB, and {each_time}",
        columns=("by", "before", "open", "after them", "twice", "CPU µs an attempt", "lost"),
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
        holder.said()
        yield holder
