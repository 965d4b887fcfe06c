"""Rate at which a socket lookup finds the sender of a packet, and its cost.

Each attempt is made by a new program, and looked up as soon as its record is read, as a service
does.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ocsf_nft.lab import INTERNET4

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ocsf_nft.attribution.socket_method import SocketLookup
    from ocsf_nft.netns import Namespace
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Batch, Record
    from ocsf_nft.sources.nflog import Nflog

Protocol: TypeAlias = Literal["tcp", "udp"]
Ending: TypeAlias = Literal["exits", "stays"]

_NUMBERS: Final = {"tcp": 6, "udp": 17}
_FIRST_PORT: Final = 1024
_USER: Final = 1000
_SECONDS: Final = 60.0


@dataclass
class Rate:
    """Results of the attempts of one kind, and the duration of each lookup.

    ``named``: the right process was named; ``seen``: it was among several; ``wrong``: another
    process was named, or it was not among several.
    """

    protocol: Protocol
    ending: Ending
    named: int = 0
    seen: int = 0
    wrong: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        attempts = len(self.seconds)
        slow = sorted(self.seconds)[int(attempts * 0.99)] if attempts else 0.0
        unknown = ", ".join(f"{number}: {reason}" for reason, number in self.reasons.items())
        return (
            f"{self.protocol} {self.ending}: {attempts} attempts, {self.named} named, "
            f"{self.seen} seen, {self.wrong} wrong, {sum(self.reasons.values())} unknown; "
            f"{statistics.median(self.seconds) * 1e3:.1f} ms a lookup, p99 {slow * 1e3:.1f} ms"
            + (f" ({unknown})" if unknown else "")
        )

    def count(self, result: Attribution | str, pid: int) -> None:
        """Compare the result of a lookup with the real sender."""
        if isinstance(result, str):
            self.reasons[result] = self.reasons.get(result, 0) + 1
        elif result.process is not None:
            self.named += result.process.pid == pid
            self.wrong += result.process.pid != pid
        else:
            is_among = any(seen.process.pid == pid for seen in result.seen)
            self.seen += is_among
            self.wrong += not is_among


def build(folder: Path) -> Path:
    """Build the program that makes an attempt, in a folder that the user can read."""
    program = folder / "sender"
    compiler = shutil.which("cc")
    assert compiler is not None
    source = Path(__file__).with_name("sender.c")
    subprocess.run([compiler, "-O1", "-o", program, source], check=True)
    folder.chmod(0o755)
    return program


async def rate(
    namespace: Namespace,
    source: Nflog,
    lookup: SocketLookup,
    program: Path,
    protocol: Protocol,
    ending: Ending,
    attempts: int,
) -> Rate:
    """Make attempts, one after the other, and look up each."""
    found = Rate(protocol, ending)
    batches = source.batches()
    for port in range(_FIRST_PORT, _FIRST_PORT + attempts):
        command = [str(program), protocol, INTERNET4, str(port), ending]
        started = asyncio.create_task(asyncio.to_thread(_start, namespace, command))
        record = await first(
            batches,
            lambda record, port=port: (  # type: ignore[misc]
                (record.protocol, record.destination_port) == (_NUMBERS[protocol], port)
            ),
        )
        result, seconds = await asyncio.to_thread(_timed, lookup, record)
        process = await started
        process.kill()
        await asyncio.to_thread(process.wait)
        found.count(result, process.pid)
        found.seconds.append(seconds)
    return found


async def first(batches: AsyncIterator[Batch], is_match: Callable[[Record], bool]) -> Record:
    """Return the first matching record; raise TimeoutError if there is none."""
    async with asyncio.timeout(_SECONDS):
        async for batch in batches:
            for record in batch.records:
                if is_match(record):
                    return record
    raise TimeoutError


def _start(namespace: Namespace, command: list[str]) -> subprocess.Popen[bytes]:
    return namespace.call(
        lambda: subprocess.Popen(command, user=_USER, group=_USER, extra_groups=[])
    )


def _timed(lookup: SocketLookup, record: Record) -> tuple[Attribution | str, float]:
    before = time.perf_counter()
    result = lookup.attribution(record)
    return result, time.perf_counter() - before
