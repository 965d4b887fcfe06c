"""Comparison of reported packet counts with the counters of the kernel."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import orjson

from ocsf_nft.fence.counters import Counters
from tests.kernel import command, conftest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.flow import Element, Kind, RuleReading


def events_of(path: Path) -> list[dict[str, Any]]:
    """Return the events of a file; an event that was written twice appears once."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_bytes().splitlines():
        event = orjson.loads(line)
        assert found.setdefault(event["metadata"]["uid"], event) == event
    return list(found.values())


def refused_by(installed: InstalledFence) -> Counter[str]:
    """Return the packets that the kernel counted, by rule."""
    with Counters(installed) as counters:
        reading = counters.read()
    return +Counter({rule: each.refused.packets for rule, each in reading.rules.items()})


def elements_of(rule: RuleReading) -> Mapping[Kind, Sequence[Element]]:
    """Return the flows of a rule; a reading with all flows is required."""
    assert rule.elements is not None
    return rule.elements


def reported_by_rule(
    events: Iterable[dict[str, Any]], sandbox: str = conftest.SANDBOX
) -> Counter[str]:
    """Return the sums of the events' counts, by rule."""
    reported: Counter[str] = Counter()
    for event in events:
        if event["class_uid"] == 4001 and event["src_endpoint"].get("name") == sandbox:
            assert event["count"] == event["traffic"]["packets"] > 0
            reported[event["firewall_rule"]["name"]] += event["count"]
    return reported


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
