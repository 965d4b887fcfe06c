"""Success rate and duration of each attribution method."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from unittest import mock

from bench import calling, stage
from bench.subject import Subject, milliseconds, percentile
from bench.usual_lookup import UsualLookup
from ocsf_nft.attribution.fallback_chain import FallbackChain
from ocsf_nft.sources.nflog import Nflog

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from bench.stage import Fenced
    from ocsf_nft.attribution.fallback_chain import TopMethod
    from ocsf_nft.attribution.socket_lookups import AttachedNamespace
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Record

_STAYING: Final = 100
_TIMEOUT_S: Final = 20.0
_NO_FILE: Final = Path("/nonexistent")
_VERDICTS: Final = ("right", "several", "unknown", "wrong")


class _Attributing(Protocol):
    async def attributions(
        self, attached: AttachedNamespace | None, records: Sequence[Record], since_ns: int
    ) -> list[Attribution]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """A method to attribute attempts.

    ``attempts`` of each kind are made by processes that exit at once, ``a_second`` in all.
    ``_STAYING`` more are made by processes that stay, one process after the other. The exiting
    ones have the same order if ``a_second`` is ``AFTER_ANOTHER``. It is our method if it has a
    ``top``. It then works for a quarter of the time: ``rest`` is the ratio of pause and work.
    """

    name: str
    top: TopMethod | None
    knows_types: bool = True
    attempts: int = 2_000
    a_second: int = 1_500
    rest: int = 3

    @contextlib.asynccontextmanager
    async def at_work(
        self, fenced: Fenced
    ) -> AsyncIterator[tuple[_Attributing, AttachedNamespace | None]]:
        if self.top is None:
            yield UsualLookup(fenced.namespace), None
            return
        with contextlib.ExitStack() as stack:
            if not self.knows_types:
                stack.enter_context(mock.patch("ocsf_nft.attribution.bpf_capture._TYPES", _NO_FILE))
            async with FallbackChain(top=self.top) as chain:
                attached = await chain.attach(fenced.namespace)
                if chain.method != self.top:
                    raise stage.BenchError(f"{self.name}: {chain.reason}")
                yield chain, attached


_WAYS: Final = (
    _Way(name="capture", top="capture"),
    _Way(name="capture, no BTF", top="capture", knows_types=False),
    _Way(name="socket", top="socket"),
    _Way(name="user", top="user", attempts=500),
    _Way(name="the reference", top=None, attempts=100, a_second=calling.AFTER_ANOTHER, rest=0),
)


@dataclass(slots=True, kw_only=True)
class _Found:
    """Results of a method for the attempts of one kind, and their durations."""

    way: _Way
    kind: str
    ending: str
    attempts: int
    verdicts: Counter[str] = field(default_factory=Counter)
    took_ns: list[int] = field(default_factory=list)

    def row(self) -> tuple[str, ...]:
        shown = (f"{self.verdicts[each]:,}" for each in _VERDICTS)
        times = (
            milliseconds(percentile(self.took_ns, each)) if self.took_ns else "-"
            for each in (50, 99)
        )
        return self.way.name, self.kind, self.ending, f"{self.attempts:,}", *shown, *times

    def failures(self) -> Iterator[str]:
        which = f"{self.way.name}, {self.kind}, {self.ending}"
        if missing := self.attempts - self.verdicts.total():
            yield f"{which}: {missing} attempts have no record"
        if self.way.top is not None and self.verdicts["wrong"]:
            yield f"{which}: {self.verdicts['wrong']} were attributed to another process"


def run() -> Subject:
    """Measure each method; raise an OcsfNftError if the system does not permit it."""
    found: list[_Found] = []
    with calling.built() as program:
        for way in _WAYS:
            for ending, stays in (("exits", False), ("stays", True)):
                found += asyncio.run(_find(way, program, ending, stays=stays))
    return Subject(
        title="Attribution, by processes of one attempt each",
        columns=("by", "protocol", "process", "tries", *_VERDICTS, "ms: p50", "p99"),
        rows=tuple(each.row() for each in found),
        notes=(
            "Exits: the process ends at once. Several: it is one of several candidates, or the",
            "only candidate. In ms: from the arrival of a packet's record to its attribution.",
            "The reference: a search for the record's port in /proc/net/tcp, state ESTABLISHED,",
            "then for its socket in /proc/*/fd; only for TCP. Fewer tries, as a search is slow.",
        ),
        failures=tuple(failure for each in found for failure in each.failures()),
    )


async def _find(way: _Way, program: Path, ending: str, *, stays: bool) -> list[_Found]:
    attempts = _STAYING if stays else way.attempts
    rate = calling.AFTER_ANOTHER if stays else way.a_second
    number = attempts * len(calling.KINDS)
    with _frozen(), stage.fenced("nflog", ipv6=False) as fenced:
        started = fenced.folder / "started"
        async with (
            way.at_work(fenced) as (attributing, attached),
            Nflog(fenced.namespace, stage.GROUP) as source,
        ):
            with started.open("wb") as file:
                swarm = calling.swarm(fenced, program, (number, rate, 1, int(stays)), file)
            with stage.ending(swarm):
                results = await _attribute(
                    attributing, attached, source, number, swarm, rest=way.rest
                )
                stage.wait_for(
                    "the start of all", lambda: started.read_bytes().count(b"\n") == number, swarm
                )
        lines = [line.split() for line in started.read_text("ascii").splitlines()]
    pids = {int(port): int(pid) for port, pid in lines}
    found = [_Found(way=way, kind=kind, ending=ending, attempts=attempts) for kind in calling.KINDS]
    for port, result in results.items():
        if port in pids:
            of = found[(port - calling.FIRST_PORT) % len(calling.KINDS)]
            of.verdicts[result.verdict(pids[port], str(program))] += 1
            of.took_ns.append(result.took_ns)
    return found


@contextlib.contextmanager
def _frozen() -> Iterator[None]:
    """Exclude all existing objects from garbage collection, as a run does."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Attributed(NamedTuple):
    """The needed part of an attribution: small, so that there is little garbage to collect."""

    took_ns: int
    pid: int | None
    path: str | None
    among: tuple[int, ...]
    unnamed: int

    def verdict(self, pid: int, program: str) -> str:
        if self.pid is not None:
            return "right" if self.pid == pid and self.path in {None, program} else "wrong"
        if not self.among:
            return "unknown"
        return "several" if self.unnamed or pid in self.among else "wrong"


def _attributed(by: Attribution, took_ns: int) -> _Attributed:
    process = by.process
    return _Attributed(
        took_ns=took_ns,
        pid=None if process is None else process.pid,
        path=None if process is None else process.path,
        among=tuple(each.process.pid for each in by.seen),
        unnamed=by.unnamed,
    )


async def _attribute(  # noqa: PLR0913 - the parts of a measurement
    attributing: _Attributing,
    attached: AttachedNamespace | None,
    source: Nflog,
    number: int,
    swarm: subprocess.Popen[bytes],
    *,
    rest: int,
) -> Mapping[int, _Attributed]:
    """Return the attribution of the attempts, by port."""
    found: dict[int, _Attributed] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_TIMEOUT_S):
            await _start_next(swarm, after_s=0)
            async for batch in source.batches():
                begun = time.monotonic()
                attributions = await attributing.attributions(
                    attached, batch.records, batch.since_ns
                )
                now_ns, took_s = time.time_ns(), time.monotonic() - begun
                for record, by in zip(batch.records, attributions, strict=True):
                    if record.destination_port is not None:
                        attributed = _attributed(by, now_ns - record.received_ns)
                        found[record.destination_port] = attributed
                if len(found) >= number:
                    break
                await _start_next(swarm, after_s=rest * took_s)
    return found


async def _start_next(swarm: subprocess.Popen[bytes], *, after_s: float) -> None:
    if swarm.stdin is not None:
        await asyncio.sleep(after_s)
        swarm.stdin.write(b"\n")
        swarm.stdin.flush()
