"""Soak: a service with 6 and with 50 sandboxes through bursts, faults and quiet phases.

``python -m bench.soak [MINUTES]``, as ``make soak`` runs it; both services run at the same time. At
the end every refused packet must be in an event, and each service must use no more than at the
begin. The kernel keeps each flow for ten minutes, so nothing happens in the last eleven.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from bench import command, host, soak_works, stage
from bench.soak_receiver import Receiver
from bench.soak_watch import Watch
from bench.soak_works import Soak
from bench.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.host import Use

_NUMBERS: Final = (6, 50)
_MINUTES: Final = 30.0
_LEAST_MINUTES: Final = 15.0
_SETTLE_S: Final = 30.0
_CALM_S: Final = 60.0
_SAMPLE_S: Final = 2.0
#: Time for which the kernel keeps a flow, and some more.
_FLOW_S: Final = 630.0
#: What the service may use more at the end than at the begin.
_MORE_BYTES: Final = 10_000_000
_MORE_CPU_PERCENT: Final = 1.0
_NETWORK_ACTIVITY: Final = 4001


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    sandboxes: int
    begin: Use
    begin_percent: float
    end: Use
    end_percent: float
    state_bytes: int
    refused: int
    reported: int
    events: int
    rounds: int
    failures: tuple[str, ...]

    def row(self) -> tuple[str, ...]:
        return (
            f"{self.sandboxes}",
            f"{self.rounds}",
            f"{self.refused:,}",
            f"{self.reported:,}",
            f"{self.events:,}",
            f"{self.begin.bytes / 1e6:.1f} / {self.end.bytes / 1e6:.1f}",
            f"{self.begin_percent:.2f} / {self.end_percent:.2f}",
            f"{self.begin.descriptors} / {self.end.descriptors}",
            f"{self.begin.threads} / {self.end.threads}",
            f"{self.state_bytes / 1e6:.1f}",
        )


def run(minutes: float = _MINUTES) -> Subject:
    """Soak all numbers of sandboxes at the same time; raise BenchError if there is no time."""
    if minutes < _LEAST_MINUTES:
        raise stage.BenchError(f"a soak takes at least {_LEAST_MINUTES:.0f} minutes")
    with ThreadPoolExecutor(len(_NUMBERS)) as pool:
        measured = list(pool.map(lambda number: _measure(number, 60 * minutes), _NUMBERS))
    return Subject(
        title=f"Soak of {minutes:.0f} minutes: at the begin / at the end",
        columns=("sandboxes", "rounds", "refused", "reported", "events", "Pss, MB", "idle, CPU %",
                 "descriptors", "threads", "state, MB"),
        rows=tuple(each.row() for each in measured),
        notes=(
            "Both processes of the service, which was killed and started again in between.",
            "A round has each burst and each fault once, in a random order.",
        ),
        failures=tuple(failure for each in measured for failure in each.failures),
    )  # fmt: skip


def _measure(number: int, seconds: float) -> _Measured:
    ending = time.monotonic() + seconds - 2 * _CALM_S - _SETTLE_S - _FLOW_S
    with _soaking(number) as soak:
        try:
            soak.start()
            time.sleep(_SETTLE_S)
            begin, begin_percent = _idle(soak)
            while time.monotonic() < ending:
                _round(soak, ending)
            time.sleep(_FLOW_S + _CALM_S)
            end, end_percent = _idle(soak)
            soak.failures += soak.watch.mismatches
            _stop(soak)
        finally:
            if soak.service is not None and soak.service.poll() is None:
                soak.service.kill()
                soak.service.wait()
        reported, events, doubled = _reported(soak)
        for name in soak.names:
            if soak.refused[name] != reported[name]:
                soak.failures.append(
                    f"{name}: {soak.refused[name]} packets refused, {reported[name]} reported"
                )
        if events != soak.receiver.uids:
            soak.failures.append(
                f"{len(events - soak.receiver.uids)} events are in the file alone, "
                f"{len(soak.receiver.uids - events)} at the receiver alone"
            )
        state_bytes = sum(each.stat().st_size for each in soak.state.rglob("*") if each.is_file())
        _compare(soak, begin, end, begin_percent, end_percent)
        if doubled:
            print(f"{doubled} events are twice in the file, after kills", file=sys.stderr)
        return _Measured(
            sandboxes=number, begin=begin, begin_percent=begin_percent, end=end,
            end_percent=end_percent, state_bytes=state_bytes, refused=soak.refused.total(),
            reported=reported.total(), events=len(events), rounds=soak.rounds,
            failures=tuple(f"{number} sandboxes: {each}" for each in soak.failures),
        )  # fmt: skip


def _compare(soak: Soak, begin: Use, end: Use, begin_percent: float, end_percent: float) -> None:
    if end.bytes > begin.bytes + _MORE_BYTES:
        soak.failures.append(f"memory: {begin.bytes:,} bytes, then {end.bytes:,}")
    if end_percent > begin_percent + _MORE_CPU_PERCENT:
        soak.failures.append(f"CPU: {begin_percent:.2f}%, then {end_percent:.2f}%")
    # The HTTP sink keeps a connection from its first batch on.
    if end.descriptors > begin.descriptors + 1 or end.threads > begin.threads:
        soak.failures.append(
            f"descriptors and threads: {begin.descriptors} and {begin.threads}, "
            f"then {end.descriptors} and {end.threads}"
        )


@contextlib.contextmanager
def _soaking(number: int) -> Iterator[Soak]:
    with (
        host.sandboxes(number) as (names, folder),
        host.sockets(names) as sockets,
        Receiver() as receiver,
        Watch(names) as watch,
    ):
        soak = Soak(
            names=names, folder=folder, sockets=sockets, receiver=receiver, watch=watch,
            dice=random.Random(number),
        )  # fmt: skip
        soak.configure()
        yield soak


def _idle(soak: Soak) -> tuple[Use, float]:
    service = soak.running()
    with soak.watch.paused():
        begin, began = host.use(service), time.monotonic()
        descriptors = begin.descriptors
        while time.monotonic() < began + _CALM_S:
            time.sleep(_SAMPLE_S)
            # A reading that goes on has some sockets more.
            descriptors = min(descriptors, host.use(service).descriptors)
        end, ended = host.use(service), time.monotonic()
    percent = 100 * (end.cpu_s - begin.cpu_s) / (ended - began)
    return replace(end, descriptors=descriptors), percent


def _round(soak: Soak, ending: float) -> None:
    """Carry out each burst and each fault once."""
    soak.rounds += 1
    works = [*soak_works.WORKS]
    soak.dice.shuffle(works)
    for work in works:
        if time.monotonic() >= ending:
            return
        print(f"{soak.names[0]}: round {soak.rounds}, {work.__name__[1:]}", file=sys.stderr)
        work(soak)
        soak.running()


def _stop(soak: Soak) -> None:
    soak.shown("all events delivered", lambda: soak.watch.waiting == 0, 60.0)
    service = soak.running()
    service.terminate()
    if code := service.wait(60):
        soak.failures.append(f"the service ended with {code}")


def _reported(soak: Soak) -> tuple[Counter[str], set[str], int]:
    """Return the packets by sandbox, the uids, and the number of doubled lines."""
    packets: Counter[str] = Counter()
    uids: set[str] = set()
    doubled = 0
    for line in soak.output.read_bytes().splitlines():
        event = json.loads(line)
        uid = event["metadata"]["uid"]
        if uid in uids:
            doubled += 1
            continue
        uids.add(uid)
        if event["class_uid"] == _NETWORK_ACTIVITY:
            packets[event["unmapped"]["sandbox"]] += event["count"]
    return packets, uids, doubled


def main(arguments: Sequence[str]) -> None:
    """Soak for the given minutes, and exit."""
    minutes = float(arguments[0]) if arguments else _MINUTES
    command.run((lambda: run(minutes),))


if __name__ == "__main__":
    main(sys.argv[1:])
