"""Rare attempts of a user while other users flood: each keeps its destination, port and process."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft.fence.counters import Counters
from tests.kernel import accounts, command, flooding, written

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.netns import Namespace

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.alone]

_TIMES: Final = 12
#: Longest delays of events: of half of them, and of all. A busy machine may stop each process for
#: some seconds.
_USUAL_MS, _LATEST_MS = 2_000, 20_000
#: So many packets of new flows fill the sets, if a user has no quota.
_FILLING: Final = 60_000
_FOREVER: Final = "100000000"
#: A user of a flood, and the first user of rare attempts.
_USER, _RARE_USER = 3000, 4000
#: Floods by their name: how many packets are refused before the rare attempts, and the programs.
_FLOODS: Final = {
    "idle": (0, ()),
    "one flow": (10_000, (("same", flooding.FLOODED[0], _FOREVER),)),
    "new flows of a user": (_FILLING, (("distinct", "20", _FOREVER),)),
    "new flows of two users": (
        _FILLING,
        (("distinct", "21", _FOREVER), ("distinct", "22", _FOREVER, "0", str(_USER))),
    ),
    "forks": (0, ()),
}
#: With _FLOWS of each, these users need more slots than all users share.
_USERS, _FLOWS = 1800, 12


@contextlib.contextmanager
def _flood(
    name: str, namespace: Namespace, installed: InstalledFence, forks: Path
) -> Iterator[None]:
    packets, programs = _FLOODS[name]
    with contextlib.ExitStack() as cleanup:
        started = [flooding.start(namespace, *each) for each in programs]
        if name == "forks":
            started += [subprocess.Popen([forks, "60"]) for _ in os.sched_getaffinity(0)]
        for each in started:
            cleanup.callback(each.wait)
            cleanup.callback(each.kill)
        with Counters(installed) as counters:
            begun = counters.read().rules["egress"].refused.packets
            accounts.until(
                lambda: counters.read().rules["egress"].refused.packets >= begun + packets
            )
        yield


def _try(namespace: Namespace, number: int, times: int) -> tuple[int, list[flooding.Rare]]:
    """Make rare attempts; return the pid of their process, and the attempts."""
    arguments = (str(_RARE_USER + number), str(10_000 + 100 * number), str(times))
    program = flooding.start(namespace, "quiet", *arguments)
    return program.pid, flooding.made(program)


def _event_of(rare: flooding.Rare, events: list[dict[str, Any]]) -> dict[str, Any] | None:
    wanted = rare["protocol"], rare["destination"], rare["port"]
    for event in events:
        if event["class_uid"] == 4001:
            where = event.get("dst_endpoint", {})
            protocol = event["connection_info"].get("protocol_num")
            if (protocol, where.get("ip"), where.get("port")) == wanted:
                return event
    return None


def _wait_for_all(output: Path, rare: list[flooding.Rare]) -> list[dict[str, Any]]:
    """Return the event of each attempt, in the order of the attempts."""
    end = time.monotonic() + 60
    while True:
        events = written.so_far(output)
        found = [_event_of(each, events) for each in rare]
        missing = [each for each, event in zip(rare, found, strict=True) if event is None]
        if not missing:
            return [each for each in found if each is not None]
        assert time.monotonic() < end, missing
        time.sleep(0.1)


@pytest.fixture
def forks(tmp_path: Path) -> Path:
    program = tmp_path / "forks"
    source = Path(__file__).with_name("forks.c")
    subprocess.run(["cc", "-O2", "-static", "-o", program, source], check=True)
    return program


def test_rare_attempts_in_each_flood_keep_destination_port_and_process(
    installed: InstalledFence, state: StateDirectory, tmp_path: Path, forks: Path
) -> None:
    output, namespace = tmp_path / "events.jsonl", installed.namespace
    delays: list[int] = []
    unnamed: list[tuple[str, str]] = []
    with command.running(*accounts.options(state, output), under=command.FRESH) as running:
        for number, name in enumerate(_FLOODS):
            with _flood(name, namespace, installed, forks):
                pid, rare = _try(namespace, number, _TIMES)
                events = _wait_for_all(output, rare)
            assert [each["count"] for each in events] == [1] * _TIMES, name
            pids = [each["actor"].get("process", {}).get("pid") for each in events]
            assert set(pids) <= {pid, None}
            unnamed += [
                (name, each["enrichments"][0]["data"]["reason"])
                for each, found in zip(events, pids, strict=True)
                if found is None
            ]
            delays += [
                each["metadata"]["processed_time"] - attempt["time"]
                for each, attempt in zip(events, rare, strict=True)
            ]
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    assert not unnamed
    assert statistics.median(delays) <= _USUAL_MS
    assert max(delays) <= _LATEST_MS
    events = accounts.events_of(output)
    assert accounts.reported_by_rule(events) == accounts.refused_by(installed)
    assert accounts.status(state).code == 0


def test_rare_attempts_keep_their_process_while_the_reader_is_stopped_in_each_flood(
    installed: InstalledFence, state: StateDirectory, tmp_path: Path, forks: Path
) -> None:
    output, namespace = tmp_path / "events.jsonl", installed.namespace
    with command.running(*accounts.options(state, output), under=command.FRESH) as running:
        for number, name in enumerate(_FLOODS):
            with _flood(name, namespace, installed, forks):
                running.process.send_signal(signal.SIGSTOP)
                (pid, rare), (other, more) = (
                    _try(namespace, 2 * number + each, _TIMES) for each in range(2)
                )
                running.process.send_signal(signal.SIGCONT)
                events = _wait_for_all(output, rare + more)
            pids = [each["actor"].get("process", {}).get("pid") for each in events]
            assert pids == [pid] * _TIMES + [other] * _TIMES, name
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    assert accounts.reported_by_rule(accounts.events_of(output)) == accounts.refused_by(installed)


def test_first_attempts_of_a_user_keep_their_destination_while_many_users_flood(
    installed: InstalledFence, state: StateDirectory, tmp_path: Path
) -> None:
    output, namespace = tmp_path / "events.jsonl", installed.namespace
    with command.running(*accounts.options(state, output), under=command.FRESH) as running:
        flood = ("users", "10000", str(_USERS), str(_FLOWS))
        assert flooding.start(namespace, *flood).wait(60) == 0
        _, rare = _try(namespace, 0, 4)
        _wait_for_all(output, rare)
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    with Counters(installed) as counters:
        reading = counters.read().rules["egress"]
    assert len(accounts.elements_of(reading)["flows4"]) > 20_480
    events = accounts.events_of(output)
    assert accounts.reported_by_rule(events) == accounts.refused_by(installed)
    assert accounts.status(state).code == 0
