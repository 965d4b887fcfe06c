"""Accounting of every attempt in a flood of the log, also if the reader is stopped or killed."""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.counters import Counters
from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.values import endpoint
from ocsf_nft.lab import ip, new_namespace
from ocsf_nft.netns import named
from tests.kernel import accounts, attempts, command, conftest, flooding, written

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence

    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.flow import Element
    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace

pytestmark = pytest.mark.kernel

_WHOLE = (pytest.mark.slow, pytest.mark.alone)
#: The pause of a flood after each thousand packets: for a tenth of its speed, or none.
_PAUSES = pytest.mark.parametrize("pause", [0.1, pytest.param(0.0, marks=_WHOLE)])
#: How old a reading of the counters may be in a flood, on a busy machine.
_BEFORE_MS = 30_000
#: An event that is later waited for the end of the flood, or for another report. Most need less
#: than a second, but a busy machine may stop each process for some seconds.
_LATEST_MS = 20_000
#: Stops of a reader. A reading is reported as late after five seconds. It is planned up to two
#: seconds after the one before it, or up to 30 if a busy machine needs more than a second for one
#: (``service/reading_schedule.py``). At least one stop is not in the middle of a reading.
_GAPS_SECONDS = (8.0, 8.0, 40.0, 40.0)
#: The number of packets that one flow of a flood may have logged at once.
_BURST = 100
#: The size of a rule's sets of flows, in rules/accounting.nft.
_SET_SIZE = 32_768


@pytest.fixture
def more_namespaces() -> Iterator[tuple[str, str]]:
    """Create two more sandboxes with a default route."""
    token = secrets.token_hex(3)
    names = (f"ocsf-nft-{token}-one", f"ocsf-nft-{token}-two")
    with contextlib.ExitStack() as cleanup:
        for name in names:
            cleanup.enter_context(new_namespace(name)).call(conftest.without_ipv6)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "add", "out0", "type", "veth", "peer", "name", "out1")
            for device in ("out0", "out1"):
                ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "address", "add", "10.200.0.2/24", "dev", "out0")
            ip("-n", name, "route", "add", "default", "via", "10.200.0.1")
        yield names


def _delay_of_own_event(events: list[dict[str, Any]], rare: flooding.Rare) -> int | None:
    """Return the milliseconds until an attempt had a separate event; None without one."""
    for event in events:
        if event["class_uid"] == 4001 and "unmapped" in event and event["count"] == 1:
            where = event.get("dst_endpoint", {})
            if (
                event.get("actor", {}).get("user", {}).get("uid") == str(rare["uid"])
                and event["connection_info"].get("protocol_num") == rare["protocol"]
                and where.get("ip") == rare["destination"]
                and where.get("port") == rare["port"]
            ):
                return int(event["metadata"]["processed_time"]) - rare["time"]
    return None


def _without_event_in_time(
    output: Path, sandbox: str, tried: list[flooding.Rare]
) -> list[tuple[flooding.Rare, int | None]]:
    """Return the attempts in a sandbox without an own event in time, and the delays of events."""
    events = [e for e in written.so_far(output) if e.get("src_endpoint", {}).get("name") == sandbox]
    delays = ((rare, _delay_of_own_event(events, rare)) for rare in tried)
    return [(rare, ms) for rare, ms in delays if ms is None or ms > _LATEST_MS]


def _wait_for_events(output: Path, sandbox: str, tried: list[flooding.Rare]) -> None:
    """Wait until each attempt in a sandbox has its own event; none needs the end of the run."""
    end = time.monotonic() + 60
    while missing := _without_event_in_time(output, sandbox, tried):
        assert time.monotonic() < end, missing
        time.sleep(0.05)


def _flood_of_two_flows(
    namespace: Namespace, packets: int, pause: float = 0
) -> list[subprocess.Popen[bytes]]:
    """Start two programs, each of which floods with one flow."""
    return [
        flooding.start(namespace, "same", address, str(packets // 2), str(pause))
        for address in flooding.FLOODED
    ]


@pytest.mark.alone
@pytest.mark.parametrize(
    ("packets", "times"), [(100_000, 40), pytest.param(1_000_000, 80, marks=pytest.mark.slow)]
)
def test_each_rare_attempt_in_a_flood_has_its_event_and_the_counts_add_up(
    fenced: Lab,
    installed: InstalledFence,
    state: StateDirectory,
    tmp_path: Path,
    packets: int,
    times: int,
) -> None:
    output = tmp_path / "events.jsonl"
    with command.running(*accounts.options(state, output)) as running:
        floods = _flood_of_two_flows(fenced.sandbox_namespace, packets)
        tried = flooding.made(flooding.start(fenced.sandbox_namespace, "rare", str(times)))
        _wait_for_events(output, conftest.SANDBOX, tried)
        assert [flood.wait(300) for flood in floods] == [0, 0]
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    events = accounts.events_of(output)
    refused = accounts.refused_by(installed)
    assert refused["egress"] >= packets + len(tried)
    assert accounts.reported_by_rule(events) == refused
    assert len(tried) == times
    assert accounts.status(state).code == 0


@pytest.mark.alone
@pytest.mark.parametrize(
    ("flows", "times"), [(100_000, 40), pytest.param(1_000_000, 100, marks=pytest.mark.slow)]
)
def test_a_flood_of_distinct_flows_is_bounded_and_counted_and_hides_no_other_sandbox(
    lab: Lab,
    state: StateDirectory,
    tmp_path: Path,
    more_namespaces: tuple[str, str],
    flows: int,
    times: int,
) -> None:
    # With IPv6, the sandbox would send router solicitations after the last event.
    lab.sandbox_namespace.call(conftest.without_ipv6)
    namespaces = dict(zip(("flooded", "one", "two"), (lab.sandbox, *more_namespaces), strict=True))
    fences = {
        name: installer.install(
            FenceSpec(sandbox=name, proxies=(endpoint("10.200.0.9:1"),)), named(netns), state
        )
        for name, netns in namespaces.items()
    }
    output = tmp_path / "events.jsonl"
    config = tmp_path / "ocsf-nft.toml"
    config.write_text(
        f'output = "{output}"\nstate_dir = "{state.path}"\n'
        + "".join(f'[[sandbox]]\nname = "{name}"\n' for name in namespaces)
    )
    with command.running("--config", str(config), under=command.FRESH) as running:
        floods = [
            flooding.start(lab.sandbox_namespace, "distinct", octet, str(flows // 2))
            for octet in ("20", "21")
        ]
        trying = {
            name: flooding.start(named(namespaces[name]), "rare", str(times))
            for name in ("one", "two")
        }
        tried = {name: flooding.made(program) for name, program in trying.items()}
        for name, rare in tried.items():
            assert len(rare) == times
            _wait_for_events(output, name, rare)
        assert [flood.wait(300) for flood in floods] == [0, 0]
        peak_kb = _peak_memory_kb(running.process.pid)
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    events = accounts.events_of(output)
    refused = {name: accounts.refused_by(fence) for name, fence in fences.items()}
    assert refused["flooded"]["egress"] >= flows
    for name, by_rule in refused.items():
        assert accounts.reported_by_rule(events, name) == by_rule
    assert all(len(found) <= _SET_SIZE for found in _elements(fences["flooded"]))
    together = [e["count"] for e in events if "aggregation" in e.get("unmapped", {})]
    assert sum(together) > flows - 3 * _SET_SIZE
    # A busy kernel drops some records; the process of their packets is unknown.
    assert max(e["count"] for e in events if e["class_uid"] == 2004) > 0.999 * flows
    assert len(events) < 3_000
    assert peak_kb < 150_000
    assert accounts.status(state).code == 0


@_PAUSES
@pytest.mark.parametrize("kind", ["same", "distinct"])
def test_reader_stopped_in_a_flood_reports_the_gap_and_all_counts(
    fenced: Lab,
    installed: InstalledFence,
    state: StateDirectory,
    tmp_path: Path,
    kind: str,
    pause: float,
) -> None:
    output = tmp_path / "events.jsonl"
    with command.running(*accounts.options(state, output)) as running:
        for seconds in _GAPS_SECONDS:
            flood = _long_flood(fenced.sandbox_namespace, kind, pause)
            reported = _total(output)
            accounts.until(lambda reported=reported: _total(output) > reported + _BURST)  # type: ignore[misc]
            running.process.send_signal(signal.SIGSTOP)
            os.waitpid(running.process.pid, os.WUNTRACED)
            stopped_ms, before = _now_ms(), accounts.refused_by(installed).total()
            time.sleep(seconds)
            flood.kill()
            flood.wait()
            during = accounts.refused_by(installed).total() - before
            running.process.send_signal(signal.SIGCONT)
            # The gap is reported before its packets. Without one, the reading was not late.
            accounts.until(lambda total=before + during: _total(output) >= total)  # type: ignore[misc]
            # A reading that was interrupted by the stop also counts the packets during the stop.
            if any(gap["count"] >= during for gap in _gaps_over(output, stopped_ms)):
                break
        code, messages = running.stop(signal.SIGTERM)
        ended_ms = _now_ms()
    assert code == 0, messages
    events = accounts.events_of(output)
    assert accounts.reported_by_rule(events) == accounts.refused_by(installed)
    # A busy machine may delay the reader and cause other gaps.
    (gap,) = _gaps_over(output, stopped_ms)
    # One reading is some time before the stop, and one after it.
    assert during <= gap["count"] <= accounts.refused_by(installed).total()
    assert gap["end_time"] - gap["start_time"] > seconds * 1000 - 500
    assert stopped_ms - _BEFORE_MS <= gap["start_time"]
    assert gap["end_time"] <= ended_ms
    assert accounts.status(state).code == 0


@_PAUSES
def test_reader_killed_in_a_flood_reports_the_gap_and_all_counts(
    fenced: Lab, installed: InstalledFence, state: StateDirectory, tmp_path: Path, pause: float
) -> None:
    output = tmp_path / "events.jsonl"
    flood = _long_flood(fenced.sandbox_namespace, "same", pause)
    killed_ms: list[int] = []
    for seconds_down in (2.0, 0.0, 0.3, 0.0):
        with command.running(*accounts.options(state, output)) as running:
            # A run that was killed before it stored a reading leaves no gap.
            accounts.until(lambda: _total(output) > _BURST)
            time.sleep(random.uniform(0.2, 1.5))
            before = accounts.refused_by(installed).total()
            killed_ms.append(_now_ms())
            running.process.kill()
            running.process.wait()
        if seconds_down:
            time.sleep(seconds_down)
            during = accounts.refused_by(installed).total() - before
            assert accounts.status(state).code == 0
            assert during > 0
    flood.kill()
    flood.wait()
    with command.running(*accounts.options(state, output)) as running:
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    events = accounts.events_of(output)
    assert accounts.reported_by_rule(events) == accounts.refused_by(installed)
    assert any(
        gap["end_time"] - gap["start_time"] > 1_500
        and killed_ms[0] - _BEFORE_MS <= gap["start_time"] <= killed_ms[0]
        and killed_ms[0] + 1_500 < gap["end_time"] <= _now_ms()
        for gap in _gaps(events)
    )
    assert accounts.status(state).code == 0


def test_each_flow_has_a_log_budget_of_its_own_and_no_more(
    fenced: Lab, state: StateDirectory
) -> None:
    """Four records at once, and one a second after that."""
    installed = state.read(conftest.SANDBOX)
    assert installed is not None
    with Counters(installed) as counters:
        for kind in ("tcp4", "tcp6", "udp4", "udp6", "raw4", "raw6"):
            before, began = counters.read().rules["egress"], time.monotonic()
            attempts.attempt(fenced.sandbox_namespace, 0, 200, kind)
            after, took = counters.read().rules["egress"], time.monotonic() - began
            assert after.refused.packets - before.refused.packets >= 200, kind
            # IPv6 sends router solicitations meanwhile.
            assert 4 <= after.logged - before.logged <= 4 + took + 8, kind


def test_packets_refused_without_a_run_are_reported_by_the_next_run(
    fenced: Lab, installed: InstalledFence, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    attempts.attempt(fenced.sandbox_namespace, 1000, 7, "tcp4", "udp4")
    tried_ms = time.time_ns() // 1_000_000
    assert accounts.status(state).code == 0
    for _ in range(2):
        with command.running(*accounts.options(state, output)) as running:
            assert running.stop(signal.SIGTERM)[0] == 0
        firsts = [e["start_time"] for e in accounts.events_of(output) if "actor" in e]
        assert min(firsts) <= tried_ms
        assert accounts.reported_by_rule(accounts.events_of(output)) == accounts.refused_by(
            installed
        )
        attempts.attempt(fenced.sandbox_namespace, 1000, 5, "tcp4", "udp4")
    seen = {
        (event["connection_info"]["protocol_name"], event["dst_endpoint"]["port"]): event["count"]
        for event in accounts.events_of(output)
        if event["class_uid"] == 4001 and "actor" in event
    }
    assert {("tcp", 443): 5, ("udp", 443): 5}.items() <= seen.items()


@pytest.mark.parametrize(
    ("packets", "pause"), [(25_000, 0.1), pytest.param(250_000, 0.0, marks=_WHOLE)]
)
def test_fence_reinstalled_under_a_run_does_not_change_the_counts(
    fenced: Lab,
    installed: InstalledFence,
    spec: FenceSpec,
    state: StateDirectory,
    tmp_path: Path,
    packets: int,
    pause: float,
) -> None:
    output = tmp_path / "events.jsonl"
    with command.running(*accounts.options(state, output)) as running:
        floods = _flood_of_two_flows(fenced.sandbox_namespace, packets, pause)
        for number in range(8):
            more = endpoint(f"10.200.0.{100 + number}:3128")
            changed = FenceSpec(sandbox=spec.sandbox, proxies=(*spec.proxies, more))
            installer.install(changed, fenced.sandbox_namespace, state, "nflog")
        assert [flood.wait(300) for flood in floods] == [0, 0]
        assert running.stop(signal.SIGTERM)[0] == 0
    refused = accounts.refused_by(installed)
    assert refused["egress"] >= packets
    assert accounts.reported_by_rule(accounts.events_of(output)) == refused


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _long_flood(namespace: Namespace, kind: str, pause: float) -> subprocess.Popen[bytes]:
    """Start a flood that goes on until it is killed."""
    argument = flooding.FLOODED[0] if kind == "same" else "20"
    return flooding.start(namespace, kind, argument, "100000000", str(pause))


def _total(output: Path) -> int:
    """Return the sum of the packet counts of all events so far."""
    return accounts.reported_by_rule(written.so_far(output)).total()


def _gaps_over(output: Path, at_ms: int) -> list[dict[str, Any]]:
    """Return the gaps so far that enclose a time."""
    found = _gaps(written.so_far(output))
    return [gap for gap in found if gap["start_time"] <= at_ms < gap["end_time"]]


def _gaps(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event.get("activity_name") == "Collection Gap"]


def _elements(installed: InstalledFence) -> list[Sequence[Element]]:
    with Counters(installed) as counters:
        reading = counters.read()
    return [
        found for each in reading.rules.values() for found in accounts.elements_of(each).values()
    ]


def _peak_memory_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(peak)
