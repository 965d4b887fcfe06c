"""Start of short commands, in relation to the start of Python itself.

Run only this subject with ``python -m bench.command_start [ROUNDS]``.
"""

from __future__ import annotations

import math
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import command, dmesg, stage
from bench.subject import Subject

_ROUNDS: Final = 15
_SCRIPT: Final = str(Path(sysconfig.get_path("scripts")) / "ocsf-nft")
#: Variables of Python could prevent compiled modules.
_ENVIRONMENT: Final = {
    name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """Command, the upper limit of its CPU time in relation to Python, and its CPU times."""

    what: str
    arguments: tuple[str, ...]
    limit: float = math.inf
    seconds: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """Return the median of the CPU times, in seconds."""
        return statistics.median(self.seconds)

    def run(self, line: bytes) -> None:
        """Run the command with a line of a log as its input; raise BenchError if it fails."""
        before = _cpu_seconds()
        done = subprocess.run(
            self.arguments, input=line, env=_ENVIRONMENT, capture_output=True, check=False
        )
        if done.returncode != 0:
            raise stage.BenchError(f"{self.what} failed: {done.stderr.decode(errors='replace')}")
        self.seconds.append(_cpu_seconds() - before)


def run(rounds: int = _ROUNDS) -> Subject:
    """Measure all commands in turns; raise BenchError if one fails."""
    python = _Start(what="python -c pass", arguments=(sys.executable, "-c", "pass"))
    commands = (
        _Start(what="ocsf-nft --help", arguments=(_SCRIPT, "--help"), limit=3),
        _Start(what="ocsf-nft --version", arguments=(_SCRIPT, "--version"), limit=3),
        _Start(what="ocsf-nft convert, of one line", arguments=(_SCRIPT, "convert"), limit=6),
    )
    line = dmesg.usual(1)
    for _ in range(rounds):
        for each in (python, *commands):
            each.run(line)
    ratios = {each.what: each.median_s / python.median_s for each in commands}
    return Subject(
        title=f"Start of short commands, the median of {rounds} runs",
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
                for each in commands
            ),
        ),
        failures=tuple(
            f"{each.what} takes {ratios[each.what]:.1f} times the CPU of Python itself"
            for each in commands
            if ratios[each.what] > each.limit
        ),
    )


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    command.run([lambda: run(int(sys.argv[1]) if len(sys.argv) > 1 else _ROUNDS)])
