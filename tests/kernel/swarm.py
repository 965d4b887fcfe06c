"""Attempts by many processes that are gone at once, and who made which: what attribution must say.

The number of each is in its packet, so that a record says whose it is by itself.
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
#: The smallest MSS that Linux takes is 88, and a number is to be told from that of a usual SYN.
FIRST: Final = 2000
_HEADERS: Final = {4: 28, 6: 48}
_MSS: Final = "0204"


@dataclass(frozen=True, slots=True)
class Truth:
    """Who made an attempt."""

    pid: int
    path: str
    parent: int


@dataclass(frozen=True, slots=True)
class Swarm:
    """Programs that attempt, and one that starts them."""

    launcher: Path
    programs: tuple[Path, ...]

    def start(
        self, namespace: Namespace, numbers: range, flags: int, *, mask: int = 0, at_once: int = 8
    ) -> subprocess.Popen[str]:
        """Begin to make as many attempts as there are numbers.

        They give way to who watches: a run goes before most others too (``privileges.go_first``).
        """
        arguments = map(str, (numbers.start, numbers.stop, flags, mask, at_once, *self.programs))
        return namespace.call(
            lambda: subprocess.Popen(
                ["nice", "-n", "10", self.launcher, *arguments], stdout=subprocess.PIPE, text=True
            )
        )

    def truth(self, running: subprocess.Popen[str]) -> dict[int, Truth]:
        """Who made which, when all have ended."""
        told, _ = running.communicate(timeout=120)
        if running.returncode != 0:
            raise RuntimeError("the attempts were not made")
        found = {}
        for line in told.splitlines():
            number, pid = map(int, line.split())
            path = str(self.programs[number % len(self.programs)])
            found[number] = Truth(pid, path, running.pid)
        return found


def build(folder: Path, programs: int) -> Swarm:
    """Compile them; each program is a file of its own."""
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
    """The number that a record's packet tells; None where it is none of the swarm's."""
    if record.protocol == 17 and record.length is not None and record.ip_version is not None:
        return record.length - _HEADERS[record.ip_version]
    options = record.details.get("tcp_options")
    if isinstance(options, str) and options.startswith(_MSS):
        return int(options[4:8], 16)
    return None
