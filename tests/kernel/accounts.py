"""How an account is checked against the kernel: what events told, and what it refused."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import orjson

from ocsf_nft.fence.counters import Counters
from tests.kernel import command, conftest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from ocsf_nft.fence.state import InstalledFence, StateDirectory


def events_of(path: Path) -> list[dict[str, Any]]:
    """The events in a file; one that was told twice, word for word, once."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_bytes().splitlines():
        event = orjson.loads(line)
        assert found.setdefault(event["metadata"]["uid"], event) == event
    return list(found.values())


def refused_by(installed: InstalledFence) -> Counter[str]:
    """The kernel's own totals, by rule."""
    with Counters(installed) as counters:
        reading = counters.read()
    return +Counter({rule: each.refused.packets for rule, each in reading.rules.items()})


def told(events: Iterable[dict[str, Any]], sandbox: str = conftest.SANDBOX) -> Counter[str]:
    """The sums of the events' counts, by rule."""
    told: Counter[str] = Counter()
    for event in events:
        if event["class_uid"] == 4001 and event["src_endpoint"].get("name") == sandbox:
            assert event["count"] == event["traffic"]["packets"] > 0
            told[event["firewall_rule"]["name"]] += event["count"]
    return told


def status(state: StateDirectory) -> command.Outcome:
    return command.run("status", "--state-dir", str(state.path), "--json")


def options(state: StateDirectory, output: Path) -> tuple[str, ...]:
    name = conftest.SANDBOX
    return ("--sandbox", name, "--state-dir", str(state.path), "--output", str(output))


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
