"""Cost of the capture: calls in a sandbox with it and without it, and calls elsewhere."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bench import calling, stage
from bench.subject import Subject, percentile
from ocsf_nft.attribution.bpf_capture import Capture, cookie
from ocsf_nft.fence import nft

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from bench.stage import Fenced

#: Rounds with and without the capture, in turn.
_ROUNDS: Final = 8
_BOUND_US: Final = 2.0
_CORE: Final = 1
_REFUSED: Final = "sandbox, refused"
_ALLOWED: Final = "sandbox, allowed"
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
    """Work of ``calling.c`` by its name, repeated ``times`` in each of some batches.

    ``calls`` is the number of measured calls of one repetition; None if it is not meaningful.
    """

    where: str
    name: str
    what: str
    calls: int | None = 1
    times: int = 60
    batches: int = 12


def _process(where: str, name: str, what: str, calls: int | None = 1) -> _Work:
    """Return a work that takes long, and is therefore disturbed more often."""
    return _Work(where=where, name=name, what=what, calls=calls, times=1, batches=100)


_WORKS: Final = (
    _Work(where=_REFUSED, name="connect", what="connect(), TCP"),
    _Work(where=_REFUSED, name="attempt", what="socket(), connect(), close(), TCP", calls=3),
    _Work(where=_REFUSED, name="sendto", what="sendto(), UDP, each to another port"),
    _Work(where=_REFUSED, name="sendto-again", what="sendto(), UDP, again and again"),
    _Work(where=_REFUSED, name="send", what="send(), connected UDP, a socket each"),
    _Work(where=_REFUSED, name="send-again", what="send(), connected UDP, again and again"),
    _process(_REFUSED, "start", "fork, exec, connect(), exit", calls=None),
    _Work(where=_ALLOWED, name="proxy", what="connect() to the proxy, TCP"),
    _Work(where=_ALLOWED, name="stream", what="send() and recv(), TCP, to the proxy"),
    _Work(where=_ALLOWED, name="local", what="send() and recv(), connected UDP, loopback"),
    _Work(where=_OUTSIDE, name="local-sendto", what="sendto() and recv(), UDP, loopback"),
    _Work(where=_OUTSIDE, name="local-connect", what="connect() and close(), TCP, loopback"),
    _Work(where=_OUTSIDE, name="dropped", what="sendto(), UDP, dropped by other rules"),
    _process(_OUTSIDE, "fork", "fork, exit"),
    _process(_OUTSIDE, "exec", "fork, exec, exit"),
)
#: Fills the kernel's maps of calls: from then on each new entry replaces an old one.
_FILLING: Final = _Work(where=_REFUSED, name="send", what="", times=1000, batches=9)


@dataclass(slots=True)
class _Cost:
    """Durations of a work in each round, in µs."""

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


def run() -> Subject:
    """Measure each call; raise an OcsfNftError if the system does not permit it."""
    costs = [_Cost(work) for work in _WORKS]
    dropped = 0
    with stage.fenced("none", ipv6=False) as fenced, calling.built() as program:
        nft.load(fenced.lab.gateway_namespace, _DROPPING)
        number = cookie(fenced.namespace)
        for _ in range(_ROUNDS):
            for each in costs:
                each.without.append(_took(fenced, program, each.work))
            with Capture() as capture:
                capture.watch(number)
                _took(fenced, program, _FILLING)
                _read_all(capture)
                before = sum(capture.dropped())
                for each in costs:
                    each.captured.append(_took(fenced, program, each.work))
                    _read_all(capture)
                dropped += sum(capture.dropped()) - before
    failures = [failure for each in costs for failure in each.failures()]
    if dropped:
        failures.append(
            f"{dropped:,} calls and processes were dropped: the measured cost is too low"
        )
    return Subject(
        title="What the capture costs, in µs (one process, one core)",
        columns=("where", "calls", "without", "with", "more", "noise"),
        rows=tuple(each.row() for each in costs),
        notes=(
            f"{_ROUNDS} rounds without and with it, in turn. Of each round the quickest batch",
            "counts, as other load disturbs it least; the figures are medians of these. Noise: the",
            "width of the middle half of the rounds, without it or with it. Each refused packet is",
            "reported, except repetitions of the same one, and the kernel's map of these is full.",
            "Elsewhere: in a network namespace that is not monitored. Without the reader's time.",
        ),
        failures=tuple(failures),
    )


def _took(fenced: Fenced, program: Path, work: _Work) -> float:
    """Return the duration of a work, in µs, without disturbance."""
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
    while capture.read()[1]:
        pass
