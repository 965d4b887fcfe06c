"""Every attempt is counted, whatever floods the log, and whoever reads it is stopped or killed."""

from __future__ import annotations

import random
import re
import secrets
import signal
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.counters import Counters
from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.values import endpoint
from ocsf_nft.lab import ip
from ocsf_nft.netns import named
from tests.kernel import attempts, command, conftest, flooding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ocsf_nft.fence.state import Installed, StateDirectory
    from ocsf_nft.flow import Element
    from ocsf_nft.lab import Lab
    from ocsf_nft.netns import Namespace

pytestmark = pytest.mark.kernel

_PACKETS = 1_000_000
#: The size of a rule's sets of flows, in rules/accounting.nft.
_PLACES = 16_384


@pytest.fixture
def more_namespaces() -> Iterator[tuple[str, str]]:
    """Two more sandboxes, which have a way to the internet, as far as they know."""
    token = secrets.token_hex(3)
    names = (f"ocsf-nft-{token}-one", f"ocsf-nft-{token}-two")
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "add", "out0", "type", "veth", "peer", "name", "out1")
            for device in ("out0", "out1"):
                ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "address", "add", "10.200.0.2/24", "dev", "out0")
            ip("-n", name, "route", "add", "default", "via", "10.200.0.1")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


@pytest.fixture
def installed(fenced: Lab, state: StateDirectory) -> Installed:
    found = state.read(conftest.SANDBOX)
    assert fenced is not None
    assert found is not None
    return found


def _events(path: Path) -> list[dict[str, Any]]:
    """The events in a file; one that was told twice, word for word, once."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_bytes().splitlines():
        event = orjson.loads(line)
        assert found.setdefault(event["metadata"]["uid"], event) == event
    return list(found.values())


def _refused_by(installed: Installed) -> Counter[str]:
    """The kernel's own totals, by rule."""
    with Counters(installed) as counters:
        reading = counters.read()
    return +Counter({rule: each.refused.packets for rule, each in reading.rules.items()})


def _told(events: Iterable[dict[str, Any]], sandbox: str = conftest.SANDBOX) -> Counter[str]:
    """The sums of the events' counts, by rule."""
    told: Counter[str] = Counter()
    for event in events:
        if event["class_uid"] == 4001 and event["src_endpoint"].get("name") == sandbox:
            assert event["count"] == event["traffic"]["packets"] > 0
            told[event["firewall_rule"]["name"]] += event["count"]
    return told


def _told_by_itself(events: list[dict[str, Any]], rare: flooding.Rare) -> int | None:
    """After how many milliseconds an attempt had an event of its own."""
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


def _status(state: StateDirectory) -> command.Outcome:
    return command.run("status", "--state-dir", str(state.path), "--json")


def _options(state: StateDirectory, output: Path) -> tuple[str, ...]:
    name = conftest.SANDBOX
    return ("--sandbox", name, "--state-dir", str(state.path), "--output", str(output))


def _same_flood(namespace: Namespace, packets: int) -> list[subprocess.Popen[bytes]]:
    """Two programs that flood one flow each."""
    return [
        flooding.start(namespace, "same", address, str(packets // 2))
        for address in flooding.FLOODED
    ]


def test_each_rare_attempt_in_a_flood_has_its_event_and_the_counts_add_up(
    fenced: Lab, installed: Installed, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    with command.running(*_options(state, output)) as running:
        floods = _same_flood(fenced.sandbox_namespace, _PACKETS)
        tried = flooding.made(flooding.start(fenced.sandbox_namespace, "rare", "4"))
        assert [flood.wait(60) for flood in floods] == [0, 0]
        code, said = running.stop(signal.SIGTERM)
    assert code == 0, said
    events = _events(output)
    refused = _refused_by(installed)
    assert refused["egress"] >= _PACKETS + len(tried)
    assert _told(events) == refused
    took = [_told_by_itself(events, rare) for rare in tried]
    assert len(tried) > 20
    assert all(ms is not None and ms <= 1000 for ms in took), list(zip(tried, took, strict=True))
    assert _status(state).code == 0


def test_a_million_distinct_flows_are_bounded_and_counted_and_hide_no_other_sandbox(
    lab: Lab, state: StateDirectory, tmp_path: Path, more_namespaces: tuple[str, str]
) -> None:
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
    with command.running("--config", str(config)) as running:
        floods = [
            flooding.start(lab.sandbox_namespace, "distinct", octet, str(_PACKETS // 2))
            for octet in ("20", "21")
        ]
        trying = {
            name: flooding.start(named(namespaces[name]), "rare", "5") for name in ("one", "two")
        }
        tried = {name: flooding.made(program) for name, program in trying.items()}
        assert [flood.wait(60) for flood in floods] == [0, 0]
        peak_kb = _peak_memory_kb(running.process.pid)
        code, said = running.stop(signal.SIGTERM)
    assert code == 0, said
    events = _events(output)
    refused = {name: _refused_by(fence) for name, fence in fences.items()}
    assert refused["flooded"]["egress"] >= _PACKETS
    for name, by_rule in refused.items():
        assert _told(events, name) == by_rule
    for name, rare in tried.items():
        of_it = [e for e in events if e.get("src_endpoint", {}).get("name") == name]
        took = [_told_by_itself(of_it, each) for each in rare]
        assert len(rare) > 20
        assert all(ms is not None and ms <= 1000 for ms in took), list(zip(rare, took, strict=True))
    assert all(len(found) <= _PLACES for found in _elements(fences["flooded"]))
    together = [e["count"] for e in events if "merged" in e.get("unmapped", {})]
    assert sum(together) > _PACKETS - 3 * _PLACES
    assert max(e["count"] for e in events if e["class_uid"] == 2004) > _PACKETS - 10
    assert len(events) < 3_000
    assert peak_kb < 150_000
    assert _status(state).code == 0


@pytest.mark.parametrize("kind", ["same", "distinct"])
def test_a_reader_that_is_stopped_in_a_flood_tells_the_gap_and_the_account_closes(
    fenced: Lab, installed: Installed, state: StateDirectory, tmp_path: Path, kind: str
) -> None:
    output = tmp_path / "events.jsonl"
    with command.running(*_options(state, output)) as running:
        flood = _long_flood(fenced.sandbox_namespace, kind)
        time.sleep(1)
        before = _refused_by(installed).total()
        running.process.send_signal(signal.SIGSTOP)
        time.sleep(10)
        flood.kill()
        flood.wait()
        during = _refused_by(installed).total() - before
        running.process.send_signal(signal.SIGCONT)
        time.sleep(2)
        code, said = running.stop(signal.SIGTERM)
    assert code == 0, said
    events = _events(output)
    assert _told(events) == _refused_by(installed)
    (gap,) = (event for event in events if event.get("activity_name") == "Not Reading")
    # The readings are some tenths of a second before the stop, and after it.
    assert during <= gap["count"] <= _refused_by(installed).total()
    assert 9_500 < gap["end_time"] - gap["start_time"] < 14_000
    assert _status(state).code == 0


def test_a_reader_that_is_killed_in_a_flood_tells_the_gap_and_the_account_closes(
    fenced: Lab, installed: Installed, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    flood = _long_flood(fenced.sandbox_namespace, "same")
    for seconds_down in (10.0, 0.0, 0.3, 0.0):
        with command.running(*_options(state, output)) as running:
            time.sleep(random.uniform(0.7, 2))
            before = _refused_by(installed).total()
            running.process.kill()
            running.process.wait()
        if seconds_down:
            time.sleep(seconds_down)
            during = _refused_by(installed).total() - before
            assert _status(state).code == 0
            assert during > 0
    flood.kill()
    flood.wait()
    with command.running(*_options(state, output)) as running:
        code, said = running.stop(signal.SIGTERM)
    assert code == 0, said
    events = _events(output)
    assert _told(events) == _refused_by(installed)
    gaps = [event for event in events if event.get("activity_name") == "Not Reading"]
    assert any(9_500 < gap["end_time"] - gap["start_time"] < 16_000 for gap in gaps)
    assert _status(state).code == 0


def test_what_is_refused_while_nobody_runs_is_told_by_the_next_run(
    fenced: Lab, installed: Installed, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    attempts.attempt(fenced.sandbox_namespace, 1000, 7, "tcp4", "udp6")
    assert _status(state).code == 0
    for _ in range(2):
        with command.running(*_options(state, output)) as running:
            assert running.stop(signal.SIGTERM)[0] == 0
        assert _told(_events(output)) == _refused_by(installed)
        attempts.attempt(fenced.sandbox_namespace, 1000, 5, "tcp4", "udp4")
    seen = {
        (event["connection_info"]["protocol_name"], event["dst_endpoint"]["port"]): event["count"]
        for event in _events(output)
        if event["class_uid"] == 4001 and "actor" in event
    }
    assert seen == {("tcp", 443): 5, ("udp", 443): 5} | seen


def test_a_fence_that_is_installed_anew_under_a_run_keeps_the_account(
    fenced: Lab, installed: Installed, spec: FenceSpec, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    with command.running(*_options(state, output)) as running:
        floods = _same_flood(fenced.sandbox_namespace, _PACKETS // 4)
        for number in range(8):
            more = endpoint(f"10.200.0.{100 + number}:3128")
            changed = FenceSpec(sandbox=spec.sandbox, proxies=(*spec.proxies, more))
            installer.install(changed, fenced.sandbox_namespace, state, "nflog")
        assert [flood.wait(60) for flood in floods] == [0, 0]
        assert running.stop(signal.SIGTERM)[0] == 0
    refused = _refused_by(installed)
    assert refused["egress"] >= _PACKETS // 4
    assert _told(_events(output)) == refused


def test_counters_that_somebody_replaced_are_told_as_a_gap(
    fenced: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    proxies = ("--proxy", "10.200.0.1:3128", "--proxy", "[fd00:200::1]:3128")
    options = (*_options(state, output), "--netns", fenced.sandbox, *proxies, "--install")
    attempts.attempt(fenced.sandbox_namespace, 1000, 9, "udp4")
    with command.running(*options) as running:
        conftest.nft(fenced.sandbox_namespace, "flush", "ruleset")
        _until(lambda: b"made anew" in output.read_bytes())
        attempts.attempt(fenced.sandbox_namespace, 1000, 5, "udp4")
        assert running.stop(signal.SIGTERM)[0] == 0
    events = _events(output)
    assert _told(e for e in events if "actor" in e)["egress"] == 9 + 5
    (gap,) = (e for e in events if "made anew" in e.get("status_detail", ""))
    assert (gap["activity_name"], gap["severity"]) == ("Records Lost", "High")
    assert gap["start_time"] <= gap["end_time"]


def test_a_namespace_with_sets_that_cannot_be_read_does_not_end_the_run(
    fenced: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    """Who has CAP_NET_ADMIN in the sandbox may put others in the place of ours."""
    output = tmp_path / "events.jsonl"
    many = ", ".join(f"10.{number >> 8}.{number & 255}.1" for number in range(40_000))
    with command.running(*_options(state, output)) as running:
        conftest.nft(fenced.sandbox_namespace, "flush", "ruleset")
        conftest.load(
            fenced.sandbox_namespace,
            "table inet ocsf_nft {\n counter refused_egress { }\n counter overflow_egress { }\n"
            " counter logged_egress { }\n"
            + "".join(f" set {kind}_egress {{ type ipv4_addr; elements = {{ {many} }}\n }}\n"
                      for kind in ("flows4", "flows6", "others"))
            + "}\n",
        )  # fmt: skip
        _until(lambda: b"has more than" in output.read_bytes())
        assert running.process.poll() is None
        assert running.stop(signal.SIGTERM)[0] == 0
    assert sum(b"has more than" in line for line in output.read_bytes().splitlines()) == 1


def test_a_record_that_the_kernel_never_counted_shows_as_an_imbalance(
    fenced: Lab, installed: Installed, state: StateDirectory, tmp_path: Path
) -> None:
    """Who may load rules in the namespace may log under our prefix as well."""
    output = tmp_path / "events.jsonl"
    conftest.nft(
        fenced.sandbox_namespace,
        "add table inet mine; add chain inet mine o { type filter hook output priority -10; }; "
        'add rule inet mine o ip daddr 10.200.0.1 log prefix "ocsf-nft:lab:egress:" group 4001',
    )
    with command.running(*_options(state, output)) as running:
        fenced.sandbox_namespace.call(_connect_to_the_proxy)
        _until(lambda: b'"10.200.0.1"' in output.read_bytes())
        time.sleep(2)
        assert running.stop(signal.SIGTERM)[0] == 0
    assert _told(_events(output))["egress"] > _refused_by(installed)["egress"]
    assert _status(state).code == 1


def test_status_says_how_each_rule_stands_for_people_and_for_prometheus(
    fenced: Lab, state: StateDirectory
) -> None:
    attempts.attempt(fenced.sandbox_namespace, 1000, 11, "udp4")
    where = ("--state-dir", str(state.path))
    shown = command.run("status", *where)
    assert (shown.code, shown.stdout) == (0, "")
    (line,) = (line for line in shown.stderr.splitlines() if "egress" in line)
    refused, reported, *_, imbalance = re.findall(r"[\d,]+", line)
    assert int(refused) >= 11
    assert (reported, imbalance) == ("0", "0")
    assert "no run watches it now" in shown.stderr
    metrics = command.run("status", *where, "--metrics").stdout
    (in_flight,) = re.findall(r'in_flight_packets{rule="egress",sandbox="lab"} (\d+)', metrics)
    assert int(in_flight) >= int(refused)
    assert 'ocsf_nft_watched{sandbox="lab"} 0.0' in metrics
    assert command.run("status", *where, "--sandbox", "nobody").code == 2
    assert command.run("status", "--state-dir", str(state.path / "none")).code == 2


def _connect_to_the_proxy() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        sock.connect_ex(("10.200.0.1", 3128))


def _long_flood(namespace: Namespace, kind: str) -> subprocess.Popen[bytes]:
    """One that goes on until it is killed."""
    argument = flooding.FLOODED[0] if kind == "same" else "20"
    return flooding.start(namespace, kind, argument, "100000000")


def _elements(installed: Installed) -> list[Sequence[Element]]:
    with Counters(installed) as counters:
        reading = counters.read()
    return [found for each in reading.rules.values() for found in each.elements.values()]


def _peak_memory_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(peak)


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
