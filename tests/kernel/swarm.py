"""Attempts by many short-lived processes, and the process of each: the expected attribution.

Each packet contains its number, so that a record can be matched to its attempt.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ocsf_nft.netns import Namespace
    from ocsf_nft.record import Record

IPV6, NONBLOCKING, UDP, CONNECTED, STAYS = 1, 2, 4, 8, 16
#: The smallest MSS that Linux accepts is 88; a number must differ from the MSS of a usual SYN.
FIRST: Final = 2000
_HEADERS: Final = {4: 28, 6: 48}
_MSS: Final = "0204"


@dataclass(frozen=True, slots=True)
class Truth:
    """The process that made an attempt."""

    pid: int
    path: str
    parent: int


@dataclass(frozen=True, slots=True)
class Swarm:
    """Programs that make an attempt, and the program that starts them."""

    launcher: Path
    programs: tuple[Path, ...]

    def start(
        self, namespace: Namespace, numbers: range, flags: int, *, mask: int = 0, at_once: int = 8
    ) -> subprocess.Popen[str]:
        """Start as many attempts as there are numbers.

        They run with a lower priority than the observer: a run also has a higher priority than most
        processes (``privileges.raise_priority``).
        """
        arguments = map(str, (numbers.start, numbers.stop, flags, mask, at_once, *self.programs))
        return namespace.call(
            lambda: subprocess.Popen(
                ["nice", "-n", "10", self.launcher, *arguments], stdout=subprocess.PIPE, text=True
            )
        )

    def truth(self, running: subprocess.Popen[str]) -> dict[int, Truth]:
        """Wait until all processes have ended; return the process of each number."""
        output, _ = running.communicate(timeout=120)
        if running.returncode != 0:
            raise RuntimeError("the attempts were not made")
        found = {}
        for line in output.splitlines():
            number, pid = map(int, line.split())
            path = str(self.programs[number % len(self.programs)])
            found[number] = Truth(pid, path, running.pid)
        return found


def build(folder: Path, programs: int) -> Swarm:
    """Compile the programs, each to its own file."""
    here = Path(__file__).parent
    made = [folder / "swarm", folder / "brief"]
    for each in made:
        source = here / f"{each.name}.c"
        subprocess.run(["cc", "-O2", "-o", each, source], check=True)
    copies = []
    for number in range(programs):
        copies.append(folder / f"brief-{number}")
        shutil.copy(made[1], copies[-1])
    return Swarm(made[0], tuple(copies))


def number_of(record: Record) -> int | None:
    """Return the number in a record's packet; None if the packet is not from the swarm."""
    if record.protocol == 17 and record.length is not None and record.ip_version is not None:
        return record.length - _HEADERS[record.ip_version]
    options = record.details.get("tcp_options")
    if isinstance(options, str) and options.startswith(_MSS):
        return int(options[4:8], 16)
    return None
