"""Start of commands, and of the service, in relation to the start of Python itself.

Run only this subject with ``python -m bench.command_start [ROUNDS]``.
"""

from __future__ import annotations

import functools
import math
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import command, dmesg, host, stage
from bench.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Callable

_ROUNDS: Final = 15
_SCRIPT: Final = str(Path(sysconfig.get_path("scripts")) / "ocsf-nft")
#: Variables of Python could prevent compiled modules.
_ENVIRONMENT: Final = {
    name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
}
_TICK: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """Start of a program, the upper limit of its CPU time in relation to Python, and its times."""

    what: str
    #: Starts the program, and returns its CPU time in seconds.
    measure: Callable[[], float]
    limit: float = math.inf
    seconds: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """Return the median of the CPU times, in seconds."""
        return statistics.median(self.seconds)


def run(rounds: int = _ROUNDS) -> Subject:
    """Measure all starts in turns; raise an OcsfNftError if one fails."""
    python = _Start(
        what="python -c pass", measure=functools.partial(_whole, sys.executable, "-c", "pass")
    )
    starts = (
        *(
            _Start(
                what=f"ocsf-nft {words}",
                measure=functools.partial(_whole, _SCRIPT, words.split()[0].rstrip(",")),
                limit=limit,
            )
            for words, limit in (("--help", 3), ("--version", 3), ("convert, of one line", 6))
        ),
        _Start(what="ocsf-nft run, until it is ready", measure=_until_ready, limit=35),
    )
    for _ in range(rounds):
        for each in (python, *starts):
            each.seconds.append(each.measure())
    ratios = {each.what: each.median_s / python.median_s for each in starts}
    return Subject(
        title=f"Start of commands, the median of {rounds} runs",
        columns=("what", "CPU ms", "python -c pass is 1", "limit"),
        rows=(
            (python.what, f"{python.median_s * 1000:.0f}", "1.0", ""),
            *(
                (
                    each.what,
                    f"{each.median_s * 1000:.0f}",
                    f"{ratios[each.what]:.1f}",
                    f"{each.limit:.0f}",
                )
                for each in starts
            ),
        ),
        notes=("run: one sandbox that is fenced already, and a file as the sink; all processes.",),
        failures=tuple(
            f"{each.what} takes {ratios[each.what]:.1f} times the CPU of Python itself"
            for each in starts
            if ratios[each.what] > each.limit
        ),
    )


def _whole(*arguments: str) -> float:
    """Run a program with one line of a log as its input; raise BenchError if it fails."""
    before = _children_s()
    done = subprocess.run(
        arguments, input=dmesg.usual(1), env=_ENVIRONMENT, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise stage.BenchError(f"{arguments} failed: {done.stderr.decode(errors='replace')}")
    return _children_s() - before


def _until_ready() -> float:
    with stage.fenced("nflog", ipv6=False) as fenced:
        output = fenced.folder / "events.jsonl"
        with stage.ending(fenced.start(output)) as service:
            stage.wait_until_ready(service, output)
            return sum(map(_used_s, host.processes(service)))


def _used_s(pid: int) -> float:
    """Return the CPU time of a process and of its ended children (proc_pid_stat(5), 14 to 17)."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICK


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    command.run([lambda: run(int(sys.argv[1]) if len(sys.argv) > 1 else _ROUNDS)])
