"""Fuzz campaign: the inputs of all targets, on several processes."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.fuzz import worker
from tests.fuzz.mutator import BLOCK
from tests.fuzz.worker import Chunk, Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from tests.fuzz.target import Target

#: Inputs that a worker runs at once. The results of a chunk arrive at its end.
_CHUNK: Final = 16 * BLOCK
#: Different faults after which a campaign ends: they have to be fixed first.
MOST_FAULTS: Final = 50
#: Deaths of workers after which a target gets no more inputs: each costs the start of a process.
_MOST_DEATHS: Final = 3
#: Hexadecimal digits of an input that a report shows: its file has all.
_SHOWN: Final = 2_000


@dataclass
class Result:
    """Result of a campaign: the inputs that ran, by target, and the different faults."""

    inputs: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    #: Number of all faulty inputs.
    faulty: int = 0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """Return the number of inputs that ran."""
        return self.inputs.total()


def chunks(targets: Sequence[Target], campaign: int, inputs: int, first: int) -> list[Chunk]:
    """Divide the inputs of a campaign among the targets by their shares, in chunks.

    The order mixes the targets, so that a campaign that ends early has run all of them.
    """
    total = sum(target.share for target in targets)
    found: list[tuple[float, Chunk]] = []
    for target in targets:
        left = max(1, round(inputs * target.share / total))
        size = min(_CHUNK, max(1, left))
        starts = range(first, first + left, size)
        for number, start in enumerate(starts):
            length = min(size, first + left - start)
            chunk = Chunk(target.name, campaign, start, length)
            found.append(((number + 0.5) / len(starts), chunk))
    return [chunk for _, chunk in sorted(found, key=lambda each: each[0])]


def run_here(targets: Iterable[Target], planned: Iterable[Chunk]) -> Result:
    """Run chunks in this process, for tests: without the limit of memory."""
    by_name = {target.name: target for target in targets}
    result = Result()
    begun = time.monotonic()
    with worker.Watch() as watch:
        for chunk in planned:
            for fault in worker.run(chunk, by_name[chunk.target], watch, None):
                _add(result, [fault], 1)
            result.inputs[chunk.target] += chunk.inputs
    result.seconds = time.monotonic() - begun
    return result


def run(
    planned: Sequence[Chunk],
    jobs: int,
    seconds: float | None,
    report: Callable[[Result, int], None],
) -> Result:
    """Run chunks on ``jobs`` processes, for at most ``seconds``; ``report`` gets the progress.

    KeyboardInterrupt ends the campaign: the result has the chunks that have ended.
    """
    result = Result()
    waiting = deque(planned)
    total = sum(chunk.inputs for chunk in planned)
    begun = time.monotonic()
    end = float("inf") if seconds is None else begun + seconds
    workers: dict[Connection, _Worker] = {}
    deaths: Counter[str] = Counter()
    try:
        for _ in range(min(jobs, len(waiting))):
            started = _Worker.start()
            workers[started.connection] = started
            started.send(waiting.popleft())
        while workers:
            ready = multiprocessing.connection.wait(list(workers), timeout=1.0)
            for connection in ready:
                each = workers[connection]  # type: ignore[index] # they are Connections
                try:
                    chunk, faults, faulty = each.connection.recv()
                except (EOFError, OSError):
                    death = each.death()
                    _add(result, [death], 1)
                    deaths[death.target] += 1
                    if deaths[death.target] < _MOST_DEATHS:
                        waiting.extendleft(each.rest())
                    else:
                        waiting = deque(each for each in waiting if each.target != death.target)
                    _replace(each, workers, waiting)
                    continue
                result.inputs[chunk.target] += chunk.inputs
                _add(result, faults, faulty)
                is_over = time.monotonic() >= end or len(result.faults) >= MOST_FAULTS
                if waiting and not is_over:
                    each.send(waiting.popleft())
                else:
                    each.stop()
                    del workers[each.connection]
            result.seconds = time.monotonic() - begun
            report(result, total)
    except KeyboardInterrupt:
        result.seconds = time.monotonic() - begun
    finally:
        for each in workers.values():
            each.process.terminate()
            each.process.join()
    return result


def _replace(dead: _Worker, workers: dict[Connection, _Worker], waiting: deque[Chunk]) -> None:
    """Start a worker in place of one that has died."""
    del workers[dead.connection]
    if waiting:
        started = _Worker.start()
        workers[started.connection] = started
        started.send(waiting.popleft())


def _add(result: Result, faults: Iterable[Fault], faulty: int) -> None:
    result.faulty += faulty
    known = {(each.target, each.where, each.error.partition(":")[0]) for each in result.faults}
    for fault in faults:
        key = fault.target, fault.where, fault.error.partition(":")[0]
        if key not in known:
            known.add(key)
            result.faults.append(fault)


@dataclass
class _Worker:
    """Process that runs chunks, the connection to it, and its present chunk."""

    process: SpawnProcess
    connection: Connection
    progress: Any
    chunk: Chunk | None = None

    @classmethod
    def start(cls) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        progress = context.RawValue("q", -1)
        process = context.Process(target=worker.serve, args=(theirs, progress))
        process.start()
        theirs.close()
        return cls(process, ours, progress)

    def send(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self.progress.value = -1
        self.connection.send(chunk)

    def stop(self) -> None:
        self.connection.send(None)
        self.process.join()

    def death(self) -> Fault:
        """Return the fault that ended the process: a crash in native code, or a lack of memory."""
        self.process.join()
        chunk = self.chunk
        assert chunk is not None
        sentence = f"the process ended with code {self.process.exitcode}"
        return Fault(chunk.target, chunk.campaign, int(self.progress.value), sentence, "native", "")

    def rest(self) -> list[Chunk]:
        """Return the inputs after the fatal one; none if it died before its first input."""
        chunk = self.chunk
        assert chunk is not None
        done = int(self.progress.value) + 1 - chunk.first
        if done <= 0 or done >= chunk.inputs:
            return []
        return [Chunk(chunk.target, chunk.campaign, chunk.first + done, chunk.inputs - done)]


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def describe(fault: Fault) -> Iterator[str]:
    """Yield the lines of a report about a fault."""
    yield f"FAULT {fault.target}: {fault.error}"
    yield f"  at {fault.where}"
    shown = fault.data if len(fault.data) <= _SHOWN else f"{fault.data[:_SHOWN]}…"
    yield f"  target={fault.target} seed={fault.campaign} number={fault.number} hex={shown}"
