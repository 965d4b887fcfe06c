"""Process of the campaign that runs blocks of inputs, and judges time, memory and errors."""

from __future__ import annotations

import re
import resource
import signal
import sys
import traceback
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from tests.fuzz import registry
from tests.fuzz.mutator import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from types import FrameType

    from tests.fuzz.target import Target

#: Maximum processor time of one input, and the interval of the checks of it. It is no time of the
#: wall clock: a busy machine does not matter.
SECONDS: Final = 1.0
_TICK_SECONDS: Final = 0.25
#: Maximum growth of the peak memory of a worker while it runs the inputs of one target.
GROWTH_BYTES: Final = 96 << 20
#: Address space for one target, beside that in use: with more, an allocation fails.
_SPACE_BYTES: Final = 1 << 30
_PEAK: Final = re.compile(rb"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_PACKAGE: Final = str(Path(__file__).parents[2])


class TooSlow(BaseException):
    """Signal that an input takes too much processor time."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive inputs of a target: those from the number ``first`` on."""

    target: str
    campaign: int
    first: int
    inputs: int


@dataclass(frozen=True)
class Fault:
    """Input that broke a parser; ``number`` is -1 for one that is replayed."""

    target: str
    campaign: int
    number: int
    error: str
    #: Innermost line of the package, so that equal faults are reported once.
    where: str
    data: str

    def as_json(self) -> dict[str, Any]:
        """Return the fault with plain values."""
        return asdict(self)


class Watch:
    """Timer that interrupts an input after ``SECONDS`` of processor time."""

    def __init__(self) -> None:
        #: Number of the present input.
        self.number = -1
        self._last = -1
        self._ticks = 0

    def __enter__(self) -> Self:
        """Start the timer."""
        self._before = signal.signal(signal.SIGPROF, self._tick)
        signal.setitimer(signal.ITIMER_PROF, _TICK_SECONDS, _TICK_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the timer."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self._before)

    def _tick(self, _number: int, _frame: FrameType | None) -> None:
        if self.number != self._last:
            self._last, self._ticks = self.number, 0
        elif self.number >= 0:
            self._ticks += 1
            if self._ticks * _TICK_SECONDS >= SECONDS:
                self._ticks = 0
                raise TooSlow(f"took more than {SECONDS:g} s of processor time")


class MemoryLimit:
    """Limit of the memory that the inputs of a target may need; the seeds set the start value."""

    def __init__(self, target: Target) -> None:
        for seed in target.seeds():
            _outcome(target, seed)
        self._peak = _peak_bytes()
        size = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        space = size * resource.getpagesize() + _SPACE_BYTES
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (space, hard))

    def growth(self) -> int | None:
        """Return the growth of the peak memory in bytes if it is too large, else None."""
        grown = _peak_bytes() - self._peak
        if grown <= GROWTH_BYTES:
            return None
        self._peak += grown
        return grown


def run(chunk: Chunk, target: Target, watch: Watch, limit: MemoryLimit | None) -> Iterator[Fault]:
    """Run the inputs of a chunk; yield the faults. ``watch.number`` is the present input."""
    parse, documented = target.parse, target.documented
    last = chunk.first + chunk.inputs
    number = chunk.first
    while number < last:
        block, skipped = divmod(number, BLOCK)
        for data in target.block(chunk.campaign, block):
            if skipped:
                skipped -= 1
                continue
            watch.number = number
            try:
                parse(data)
            except documented:
                pass
            except (Exception, TooSlow) as error:  # noqa: BLE001 - each other error is a fault
                yield _fault(target.name, chunk.campaign, number, error, data)
            number += 1
            if number == last:
                break
        watch.number = -1
        grown = None if limit is None else limit.growth()
        if grown is not None:
            first = number - 1 - (number - 1) % BLOCK
            sentence = f"memory grew by {grown >> 20} MiB in the inputs {first} to {number - 1}"
            yield Fault(target.name, chunk.campaign, first, sentence, "memory", "")


def replay(target: Target, data: bytes) -> Fault | None:
    """Run one input; return its fault, or None."""
    with Watch() as watch:
        watch.number = 0
        error = _outcome(target, data)
    return None if error is None else _fault(target.name, 0, -1, error, data)


def _outcome(target: Target, data: bytes) -> BaseException | None:
    try:
        target.parse(data)
    except target.documented:
        return None
    except (Exception, TooSlow) as error:  # noqa: BLE001 - each other error is a fault
        return error
    return None


def _fault(target: str, campaign: int, number: int, error: BaseException, data: bytes) -> Fault:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [each for each in frames if "/ocsf_nft/" in each.filename] or list(frames)
    path = ours[-1].filename.removeprefix(f"{_PACKAGE}/")
    sentence = f"{type(error).__name__}: {error}"
    return Fault(target, campaign, number, sentence[:300], f"{path}:{ours[-1].lineno}", data.hex())


def _peak_bytes() -> int:
    # Not ru_maxrss, which includes the memory of the parent before the exec (getrusage(2)).
    found = _PEAK.search(Path("/proc/self/status").read_bytes())
    return 0 if found is None else int(found[1]) * 1024


def serve(connection: Connection, progress: Any) -> None:
    """Run the chunks that arrive on a connection; send the faults of each.

    ``progress`` is shared memory for the number of the present input: if the process dies, its
    parent reads it. A worker has one target at a time, so that memory counts for that target.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # removes the folder of the parsers
    targets = registry.targets()
    limits: dict[str, MemoryLimit] = {}

    class Shared(Watch):
        @property
        def number(self) -> int:
            return int(progress.value)

        @number.setter
        def number(self, value: int) -> None:
            progress.value = value

    with Shared() as watch:
        while (chunk := connection.recv()) is not None:
            target = targets[chunk.target]
            if chunk.target not in limits:
                limits.clear()
                limits[chunk.target] = MemoryLimit(target)
            faults: list[Fault] = []
            counts: Counter[tuple[str, str]] = Counter()
            for fault in run(chunk, target, watch, limits[chunk.target]):
                key = fault.where, fault.error.partition(":")[0]
                counts[key] += 1
                if counts[key] == 1:
                    faults.append(fault)
            connection.send((chunk, faults, sum(counts.values())))
