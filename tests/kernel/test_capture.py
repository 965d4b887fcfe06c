"""Attribution by capture: many processes send, and exit before any lookup could find them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.attribution.bpf_capture import Call, Capture, ProcessSnapshot, cookie
from ocsf_nft.libbpf import RingBuffer
from tests.kernel import scripted, swarm
from tests.kernel.swarm import CONNECTED, FIRST, IPV6, NONBLOCKING, UDP
from tests.kernel.watching import fence, watching

if TYPE_CHECKING:
    from ocsf_nft.attribution.bpf_capture import ProcessImage
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.process import Attribution
    from tests.kernel.swarm import Swarm, Truth

pytestmark = pytest.mark.kernel

_PROGRAMS = 50
_ENOUGH = 0.999
_ATTEMPTS_A_SECOND = 333
_FORKS_AN_ATTEMPT = 15
_AT_ONCE = 1500
#: A flood without the limit would have reports each half second. A pause is over after a second.
_FLOOD_SECONDS = 3.0
_PAUSE_SECONDS = 1.5


@pytest.fixture(scope="module")
def attackers(tmp_path_factory: pytest.TempPathFactory) -> Swarm:
    return swarm.build(tmp_path_factory.mktemp("swarm"), _PROGRAMS)


@pytest.mark.parametrize(
    "attempts", [1000, pytest.param(10_000, marks=(pytest.mark.slow, pytest.mark.alone))]
)
@pytest.mark.parametrize(
    ("flags", "mask"),
    [(0, IPV6 | NONBLOCKING), (UDP, IPV6 | NONBLOCKING | CONNECTED)],
    ids=["tcp", "udp"],
)
async def test_each_of_many_short_processes_is_named(
    lab: Lab,
    state: StateDirectory,
    attackers: Swarm,
    monkeypatch: pytest.MonkeyPatch,
    flags: int,
    mask: int,
    attempts: int,
) -> None:
    fence(lab, state, monkeypatch)
    middle, end = FIRST + attempts // 2, FIRST + attempts
    async with watching(lab) as watched:
        assert watched.chain.method == "capture", watched.chain.reason
        began_ns = time.time_ns()
        # Two launchers at the same time, so that the parents differ too.
        running = [
            attackers.start(lab.sandbox_namespace, numbers, flags, mask=mask)
            for numbers in (range(FIRST, middle), range(middle, end))
        ]
        truths = await asyncio.gather(
            *(asyncio.to_thread(attackers.truth, each) for each in running)
        )
        await watched.until(attempts, protocol=17 if flags & UDP else 6)
        ended_ns = time.time_ns()
        dropped = watched.chain.dropped
    truth = truths[0] | truths[1]
    verdicts = Counter(
        _verdict(by, truth[number], str(attackers.launcher))
        for record, by in watched.found
        if (number := swarm.number_of(record)) in truth
    )
    assert verdicts.total() == attempts
    for _, by in watched.found:
        if by.method == "capture" and by.process is not None:
            assert (by.sent_ns or 0) in range(began_ns, ended_ns)
    assert verdicts["right"] >= _ENOUGH * attempts, (verdicts, dropped)
    assert set(verdicts) <= {"right", "unknown"}


def test_many_events_are_read_in_parts(
    lab: Lab, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fence(lab, state, monkeypatch)
    with Capture() as capture:
        capture.watch(cookie(lab.sandbox_namespace))
        program = f"""
            print_pid()
            for port in range(1, {_AT_ONCE} + 1):
                with refused: udp().sendto(b"x", (TO4[0], port))
            """
        (pid,) = scripted.run(lab, program)
        read = [capture.read()]
        while read[-1][1]:
            read.append(capture.read())
    assert len(read) > 2
    sent = [
        each.destination_port
        for events, _ in read
        for each in events
        if isinstance(each, Call) and each.image.pid == pid
    ]
    assert sent == list(range(1, _AT_ONCE + 1))


def test_details_of_a_caller_are_read_with_its_call(
    lab: Lab, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that begins and sends between the reads of two rings is known, too."""
    fence(lab, state, monkeypatch)
    read = RingBuffer.read

    def read_and_send(ring: RingBuffer, most: int) -> list[bytes]:
        samples = read(ring, most)
        scripted.run(lab, 'print_pid()\nwith refused: udp().sendto(b"x", TO4)')
        return samples

    with Capture() as capture:
        capture.watch(cookie(lab.sandbox_namespace))
        monkeypatch.setattr(RingBuffer, "read", read_and_send)
        events = capture.read()[0] + capture.read()[0]
    known: set[ProcessImage] = set()
    callers: list[ProcessImage] = []
    for each in events:
        if isinstance(each, ProcessSnapshot):
            known.add(each.image)
        elif isinstance(each, Call):
            callers.append(each.image)
            assert each.image in known
    assert callers


@pytest.mark.alone  # it must be a flood
def test_flood_gets_fewer_and_fewer_reports_until_it_pauses(
    lab: Lab, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that goes on has 2,000 reports at first, a quarter of it after half a second."""
    fence(lab, state, monkeypatch)
    program = f"""
        sock, port, end = udp(), 1, time.monotonic() + {_FLOOD_SECONDS}
        print_pid()
        while time.monotonic() < end:
            port = port % 30_000 + 1
            with refused: sock.sendto(b"x", (TO4[0], port))
        time.sleep({_PAUSE_SECONDS})
        for port in range(40_000, 40_000 + {_AT_ONCE}):
            with refused: sock.sendto(b"x", (TO4[0], port))
    """
    reports: list[Call] = []
    with Capture() as capture:
        capture.watch(cookie(lab.sandbox_namespace))
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(scripted.run, lab, program)
            is_over = False
            while not is_over:
                is_over = running.done()
                events, has_more = capture.read()
                reports += [each for each in events if isinstance(each, Call)]
                is_over = is_over and not has_more
                time.sleep(0.001)
        (pid,) = running.result()
    ports = [each.destination_port for each in reports if each.image.pid == pid]
    in_flood = [port for port in ports if port < 40_000]
    assert 2000 <= len(in_flood) < 3500
    assert ports[len(in_flood) :] == list(range(40_000, 40_000 + _AT_ONCE))


@pytest.mark.alone  # it must be a flood
@pytest.mark.parametrize("seconds", [1.0, pytest.param(3.0, marks=pytest.mark.slow)])
async def test_flood_of_forks_causes_no_wrong_attribution(
    lab: Lab,
    state: StateDirectory,
    attackers: Swarm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
) -> None:
    fence(lab, state, monkeypatch)
    forks = tmp_path / "forks"
    source = Path(__file__).with_name("forks.c")
    # A small process forks faster.
    command = ["cc", "-O2", "-static", "-o", str(forks), str(source)]
    await asyncio.to_thread(lambda: subprocess.run(command, check=True))
    attempts = int(_ATTEMPTS_A_SECOND * seconds)
    forked = await _named_in_a_flood(lab, attackers, forks, attempts)
    # Not a number a second: other programs slow down the flood and the attempts alike.
    assert forked >= _FORKS_AN_ATTEMPT * attempts


async def _named_in_a_flood(lab: Lab, attackers: Swarm, forks: Path, attempts: int) -> int:
    """Make attempts during a flood of forks; return the number of the flood's children."""
    numbers = range(FIRST, FIRST + attempts)
    async with watching(lab) as watched:
        flood = [
            lab.sandbox_namespace.call(
                lambda: subprocess.Popen([forks, "60"], stdout=subprocess.PIPE, text=True)
            )
            for _ in os.sched_getaffinity(0)
        ]
        for each in flood:
            assert each.stdout is not None
            await asyncio.to_thread(each.stdout.readline)
        running = attackers.start(lab.sandbox_namespace, numbers, UDP, mask=1)
        truth = await asyncio.to_thread(attackers.truth, running)
        for each in flood:
            each.terminate()
        children = [int((await asyncio.to_thread(each.communicate))[0]) for each in flood]
        await watched.until(len(numbers), protocol=17)
    named = [
        (by.process, truth[number])
        for record, by in watched.found
        if (number := swarm.number_of(record)) in truth and by.process is not None
    ]
    assert len(named) >= 0.99 * len(numbers)
    for process, true in named:
        assert process.pid == true.pid
        assert process.path in {true.path, None}
    return sum(children)


def _verdict(by: Attribution, truth: Truth, launcher: str) -> str:
    process = by.process
    if process is None:
        return "unknown"
    if process.pid != truth.pid:
        return "another process"
    if process.path != truth.path:
        return "unknown" if process.path is None else "another program"
    parent = process.ancestors[0] if process.ancestors else None
    if parent is None or parent.path is None:
        return "unknown"
    if (parent.pid, parent.path) != (truth.parent, launcher):
        return "another parent"
    return "right"
