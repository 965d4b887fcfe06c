"""Who did it: what the capture costs, how often each way finds it, and what memory that takes.

``python -m bench.attributing`` measures this alone, in less than a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple, Protocol
from unittest import mock

from bench import disk, stage
from bench.subject import Subject, machine, milliseconds, percentile, show
from ocsf_nft import netns
from ocsf_nft.attribution.capture import Capture, cookie
from ocsf_nft.attribution.ladder import Ladder
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence import nft
from ocsf_nft.process import Attribution, Process
from ocsf_nft.sources.nflog import Nflog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from bench.stage import Fenced
    from ocsf_nft.attribution.ladder import Top
    from ocsf_nft.netns import Namespace
    from ocsf_nft.record import Record

_SOURCE: Final = Path(__file__).with_name("calling.c")

# What it costs.

#: In turn, with the capture and without.
_ROUNDS: Final = 8
_BOUND_US: Final = 2.0
_CORE: Final = 1
_REFUSED: Final = "sandbox, refused"
_PASSED: Final = "sandbox, let pass"
_OUTSIDE: Final = "elsewhere"
_DROPPING: Final = """
table inet dropping {
    chain output {
        type filter hook output priority 0;
        udp dport 9 drop
    }
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What ``calling.c`` does by a name, so often in each of some batches.

    ``calls``: each time it makes so many that are bound; None where that says nothing.
    """

    where: str
    name: str
    what: str
    calls: int | None = 1
    times: int = 60
    batches: int = 12


def _process(where: str, name: str, what: str, calls: int | None = 1) -> _Work:
    """One that takes long, and so is disturbed more often."""
    return _Work(where=where, name=name, what=what, calls=calls, times=1, batches=100)


_WORKS: Final = (
    _Work(where=_REFUSED, name="connect", what="connect(), TCP"),
    _Work(where=_REFUSED, name="attempt", what="socket(), connect(), close(), TCP", calls=3),
    _Work(where=_REFUSED, name="sendto", what="sendto(), UDP, each to another port"),
    _Work(where=_REFUSED, name="sendto-again", what="sendto(), UDP, again and again"),
    _Work(where=_REFUSED, name="send", what="send(), connected UDP, a socket each"),
    _Work(where=_REFUSED, name="send-again", what="send(), connected UDP, again and again"),
    _process(_REFUSED, "start", "fork, exec, connect(), exit", calls=None),
    _Work(where=_PASSED, name="proxy", what="connect() to the proxy, TCP"),
    _Work(where=_PASSED, name="stream", what="send() and recv(), TCP, to the proxy"),
    _Work(where=_PASSED, name="local", what="send() and recv(), connected UDP, loopback"),
    _Work(where=_OUTSIDE, name="local-sendto", what="sendto() and recv(), UDP, loopback"),
    _Work(where=_OUTSIDE, name="local-connect", what="connect() and close(), TCP, loopback"),
    _Work(where=_OUTSIDE, name="dropped", what="sendto(), UDP, dropped by other rules"),
    _process(_OUTSIDE, "fork", "fork, exit"),
    _process(_OUTSIDE, "exec", "fork, exec, exit"),
)
#: Fills what the kernel keeps of calls: from then on something old has to go for each new one.
_FILLING: Final = _Work(where=_REFUSED, name="send", what="", times=1000, batches=9)


@dataclass(slots=True)
class _Cost:
    """What it took in each round, in µs."""

    work: _Work
    without: list[float] = field(default_factory=list)
    captured: list[float] = field(default_factory=list)

    @property
    def more(self) -> float:
        return percentile(self.captured, 50) - percentile(self.without, 50)

    @property
    def noise(self) -> float:
        return max(_spread(self.without), _spread(self.captured))

    def row(self) -> tuple[str, ...]:
        shown = (percentile(self.without, 50), percentile(self.captured, 50), self.more, self.noise)
        return self.work.where, self.work.what, *(f"{each:.2f}" for each in shown)

    def failures(self) -> Iterator[str]:
        calls = self.work.calls
        if calls is not None and self.more > _BOUND_US * calls + self.noise:
            yield f"{self.work.what} ({self.work.where}): {self.more:.2f} µs more"


def _spread(values: Sequence[float]) -> float:
    return percentile(values, 75) - percentile(values, 25)


def cost() -> Subject:
    """Measure what the capture costs; raises an OcsfNftError when the system doesn't let us."""
    costs = [_Cost(work) for work in _WORKS]
    lost = 0
    with stage.fenced("none", ipv6=False) as fenced, _program() as program:
        nft.load(fenced.lab.gateway_namespace, _DROPPING)
        number = cookie(fenced.namespace)
        for _ in range(_ROUNDS):
            for each in costs:
                each.without.append(_took(fenced, program, each.work))
            with Capture([number]) as capture:
                _took(fenced, program, _FILLING)
                _read_all(capture)
                before = sum(capture.lost())
                for each in costs:
                    each.captured.append(_took(fenced, program, each.work))
                    _read_all(capture)
                lost += sum(capture.lost()) - before
    failures = [failure for each in costs for failure in each.failures()]
    if lost:
        failures.append(f"{lost:,} calls and processes were lost: what was measured is less")
    return Subject(
        title="What the capture costs, in µs (one process, one core)",
        columns=("where", "calls", "without", "with", "more", "noise"),
        rows=tuple(each.row() for each in costs),
        notes=(
            f"{_ROUNDS} rounds without and with it, in turn: of each the quickest of some batches,",
            "so that what else goes on is left out; of these the medians. Noise: so far apart is",
            "the middle half of the rounds, without it or with it. Each call is told of, but for",
            "the same again and again, and what the kernel keeps of calls is full. Elsewhere: in a",
            "network namespace that is not watched. Whoever reads what is told is not in it.",
        ),
        failures=tuple(failures),
    )


def _took(fenced: Fenced, program: Path, work: _Work) -> float:
    """What a work takes, in µs, while nothing gets in the way."""
    made = fenced.lab
    namespace = made.gateway_namespace if work.where == _OUTSIDE else made.sandbox_namespace
    with stage.on_core(_CORE):
        caller = namespace.call(
            lambda: subprocess.Popen(
                [program, "time", work.name, str(work.batches), str(work.times),
                 str(made.gateway_namespace.path)],
                stdout=subprocess.PIPE,
            )
        )  # fmt: skip
    return min(stage.sent(caller)) / work.times / 1e3


def _read_all(capture: Capture) -> None:
    while capture.read():
        pass


# What each way finds.

#: In turn, as ``calling.c`` has them.
_KINDS: Final = ("TCP", "UDP", "connected UDP")
_STAYING: Final = 100
_AFTER_ANOTHER: Final = -1
_USER: Final = 1000
_FIRST_PORT: Final = 20_000
_PATIENCE_S: Final = 20.0
_NO_FILE: Final = Path("/nonexistent")
_TCP: Final = 6
_ESTABLISHED: Final = "01"
_VERDICTS: Final = ("right", "several", "unknown", "wrong")


class _Attributing(Protocol):
    async def attributions(self, sandbox: str, records: Sequence[Record]) -> list[Attribution]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """A way to find out who did it.

    ``attempts`` of each kind are made by processes that are gone at once, and some by such that
    stay, which come one after the other; those that are gone too, where ``a_second`` doesn't say
    how many there are in all. It is ours where it has a ``top``; then it looks for a quarter of the
    time, and ``rest`` is how much longer than looking that is.
    """

    name: str
    top: Top | None
    knows_types: bool = True
    attempts: int = 2_000
    a_second: int = 1_500
    rest: int = 3

    @contextlib.asynccontextmanager
    async def at_work(self, fenced: Fenced) -> AsyncIterator[_Attributing]:
        if self.top is None:
            yield _Reference(fenced.namespace)
            return
        with contextlib.ExitStack() as stack:
            if not self.knows_types:
                stack.enter_context(mock.patch("ocsf_nft.attribution.capture._TYPES", _NO_FILE))
            async with Ladder({stage.SANDBOX: fenced.namespace}, top=self.top) as ladder:
                if ladder.rung != self.top:
                    raise stage.BenchError(f"{self.name}: {ladder.reason}")
                yield ladder


_WAYS: Final = (
    _Way(name="capture", top="capture"),
    _Way(name="capture, no BTF", top="capture", knows_types=False),
    _Way(name="socket", top="socket"),
    _Way(name="user", top="user", attempts=500),
    _Way(name="the reference", top=None, attempts=100, a_second=_AFTER_ANOTHER, rest=0),
)


class _Reference:
    """What is usual: the socket of an established connection, and who has that."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    async def attributions(self, _: str, records: Sequence[Record]) -> list[Attribution]:
        return [
            Attribution(rung="none", reason="", process=self._process(record)) for record in records
        ]

    def _process(self, record: Record) -> Process | None:
        if record.protocol != _TCP:
            return None
        inode = self._namespace.call(lambda: _inode(record.source_port))
        return None if inode is None else _owner(f"socket:[{inode}]")


def _inode(port: int | None) -> int | None:
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/thread-self/net", table).read_text("ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == _ESTABLISHED and int(fields[1].rpartition(":")[2], 16) == port:
                return int(fields[9])
    return None


def _owner(link: str) -> Process | None:
    for each in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(each.readlink()) == link:
                pid = int(each.parts[2])
                return Process(pid=pid, path=str(Path(f"/proc/{pid}/exe").readlink()))
    return None


@dataclass(slots=True, kw_only=True)
class _Found:
    """What a way has found of the attempts of one kind, and how long that took it."""

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
            yield f"{which}: {self.verdicts['wrong']} were said to be somebody else's"


def finding() -> Subject:
    """Measure what each way finds; raises an OcsfNftError when the system doesn't let us."""
    found: list[_Found] = []
    with _program() as program:
        for way in _WAYS:
            for ending, stays in (("gone", False), ("stays", True)):
                found += asyncio.run(_find(way, program, ending, stays=stays))
    return Subject(
        title="Who did it, by processes of one attempt each",
        columns=("by", "protocol", "process", "tries", *_VERDICTS, "ms: p50", "p99"),
        rows=tuple(each.row() for each in found),
        notes=(
            "Gone: the process ends at once. Several: it is among those that it may have been, or",
            "the only such. In ms: from the arrival of a packet's record until that is said.",
            "The reference: a look for the record's port in /proc/net/tcp, state ESTABLISHED, then",
            "for its socket in /proc/*/fd; of TCP alone. Of fewer: a look takes so long.",
        ),
        failures=tuple(failure for each in found for failure in each.failures()),
    )


async def _find(way: _Way, program: Path, ending: str, *, stays: bool) -> list[_Found]:
    attempts = _STAYING if stays else way.attempts
    rate = _AFTER_ANOTHER if stays else way.a_second
    number = attempts * len(_KINDS)
    with _frozen(), stage.fenced("nflog", ipv6=False) as fenced:
        told = fenced.folder / "started"
        async with (
            way.at_work(fenced) as attributing,
            Nflog(fenced.namespace, stage.GROUP) as source,
        ):
            with told.open("wb") as file:
                swarm = _swarm(fenced, program, (number, rate, 1, int(stays)), file)
            with stage.ending(swarm):
                told_of = await _told(attributing, source, number, swarm, rest=way.rest)
                stage.wait_for(
                    "the start of all", lambda: told.read_bytes().count(b"\n") == number, swarm
                )
        lines = [line.split() for line in told.read_text("ascii").splitlines()]
    pids = {int(port): int(pid) for port, pid in lines}
    found = [_Found(way=way, kind=kind, ending=ending, attempts=attempts) for kind in _KINDS]
    for port, said in told_of.items():
        if port in pids:
            of = found[(port - _FIRST_PORT) % len(_KINDS)]
            of.verdicts[said.verdict(pids[port], str(program))] += 1
            of.took_ns.append(said.took_ns)
    return found


@contextlib.contextmanager
def _frozen() -> Iterator[None]:
    """Collect no garbage of what there is already, as a run doesn't."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Said(NamedTuple):
    """Who is said to have tried: no more of it, so that there is little garbage to collect."""

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


def _said(by: Attribution, took_ns: int) -> _Said:
    process = by.process
    return _Said(
        took_ns=took_ns,
        pid=None if process is None else process.pid,
        path=None if process is None else process.path,
        among=tuple(each.process.pid for each in by.seen),
        unnamed=by.unnamed,
    )


async def _told(
    attributing: _Attributing,
    source: Nflog,
    number: int,
    swarm: subprocess.Popen[bytes],
    *,
    rest: int,
) -> Mapping[int, _Said]:
    """Who is said to have tried each of so many ports."""
    found: dict[int, _Said] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            await _start_next(swarm, after_s=0)
            async for batch in source.batches():
                begun = time.monotonic()
                told = await attributing.attributions(stage.SANDBOX, batch.records)
                now_ns, took_s = time.time_ns(), time.monotonic() - begun
                for record, by in zip(batch.records, told, strict=True):
                    if record.destination_port is not None:
                        said = _said(by, now_ns - record.received_ns)
                        found[record.destination_port] = said
                if len(found) >= number:
                    break
                await _start_next(swarm, after_s=rest * took_s)
    return found


async def _start_next(swarm: subprocess.Popen[bytes], *, after_s: float) -> None:
    if swarm.stdin is not None:
        await asyncio.sleep(after_s)
        swarm.stdin.write(b"\n")
        swarm.stdin.flush()


# What memory it takes.

_PROCESSES: Final = 5_000
_ATTEMPTS: Final = 10
_FLOODS: Final = 2
#: What may come and go once all that is kept is full.
_FLAT_BYTES: Final = 3_000_000
_TOPS: Final[tuple[Top, ...]] = ("socket", "capture")


@dataclass(slots=True, kw_only=True)
class _Holder:
    """A program that has a ladder and nothing else, and its memory so far."""

    top: Top
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


def memory() -> Subject:
    """Measure what memory it takes; raises an OcsfNftError when the system doesn't let us."""
    with contextlib.ExitStack() as stack:
        program = stack.enter_context(_program())
        fenced = stack.enter_context(stage.fenced("none", ipv6=False))
        holders = [stack.enter_context(_holder(top, fenced)) for top in _TOPS]
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
    swarm = _swarm(fenced, program, (_PROCESSES, 0, _ATTEMPTS, 0), subprocess.DEVNULL)
    with stage.ending(swarm):
        stage.wait_for("the end of a flood", lambda: swarm.poll() == 0, swarm, seconds=30)


@contextlib.contextmanager
def _holder(top: Top, fenced: Fenced) -> Iterator[_Holder]:
    command = [sys.executable, "-m", "bench.attributing", top, fenced.lab.sandbox]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with stage.ending(child):
        holder = _Holder(top=top, child=child)
        holder.said()
        yield holder


async def _hold(top: Top, sandbox: str) -> None:
    """Have a ladder; goes on whenever there is a line to read, for :class:`_Holder`."""

    async def fell(reason: str) -> None:
        raise stage.BenchError(reason)

    print(0, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    async with Ladder({stage.SANDBOX: netns.named(sandbox)}, top=top) as ladder:
        if ladder.rung != top:
            raise stage.BenchError(f"{top}: {ladder.reason}")
        print(0, flush=True)
        keeping = asyncio.create_task(ladder.keep(fell))
        await asyncio.to_thread(sys.stdin.readline)
        keeping.cancel()
        print(ladder.lost, flush=True)


def _swarm(
    fenced: Fenced, program: Path, wanted: tuple[int, int, int, int], told: IO[bytes] | int
) -> subprocess.Popen[bytes]:
    """Start in the sandbox so many processes, at so many a second, of so many attempts each.

    The last number is whether they stay.
    """
    arguments = map(str, (_USER, _FIRST_PORT, *wanted))
    _, rate, *_ = wanted
    return fenced.namespace.call(
        lambda: subprocess.Popen(
            [program, "swarm", *arguments],
            stdin=subprocess.PIPE if rate == _AFTER_ANOTHER else None,
            stdout=told,
        )
    )


@contextlib.contextmanager
def _program() -> Iterator[Path]:
    """Compile ``calling.c``, where every user gets to it."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise stage.BenchError("cc is missing: install gcc and libc6-dev")
    with disk.folder() as folder:
        Path(folder).chmod(0o755)
        program = Path(folder) / "calling"
        subprocess.run([compiler, "-O2", "-static", "-o", program, _SOURCE], check=True)
        yield program


#: What is measured, a table each.
SUBJECTS: Final[tuple[Callable[[], Subject], ...]] = (cost, finding, memory)


def main() -> int:
    """Measure it; with the name of a rung and of a sandbox, be one whose memory is measured."""
    if len(sys.argv) > 1:
        top, sandbox = sys.argv[1:]
        asyncio.run(_hold(_TOPS[_TOPS.index(top)], sandbox))
        return 0
    print(machine())
    begun = time.monotonic()
    failed = False
    for subject in SUBJECTS:
        measured = subject()
        show(measured)
        failed = failed or bool(measured.failures)
    print(f"\n{time.monotonic() - begun:.0f} s")
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OcsfNftError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
