"""A permissive fence at the command line: with each transport, and without log rules."""

from __future__ import annotations

import dataclasses
import re
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.fence import installer, verification
from ocsf_nft.lab import GATEWAY4, PROXY_PORT
from ocsf_nft.validation import EventValidator
from tests.kernel import accounts, attempts, command, conftest, far_side, written
from tests.kernel.journald import in_journal, journald
from tests.kernel.test_run import OF_RECORDS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.kernel_log]

_PROXY = ("--proxy", f"{GATEWAY4}:{PROXY_PORT}")


def _named(lab: Lab, state: StateDirectory) -> tuple[str, ...]:
    name = conftest.SANDBOX
    return ("--sandbox", name, "--netns", lab.sandbox, "--state-dir", str(state.path))


def _attempts(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["class_uid"] == 4001 and "actor" in event]


@pytest.mark.parametrize("source", ["nflog", "kmsg", "journal"])
def test_each_transport_reports_allowed_packets_as_permissive(
    lab: Lab,
    state: StateDirectory,
    tmp_path: Path,
    source: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab.sandbox_namespace.call(conftest.without_ipv6)
    output = tmp_path / "events.jsonl"
    options = (*_named(lab, state), *_PROXY, "--output", str(output), "--install", "--permissive",
               "--source", source)  # fmt: skip
    for name, value in OF_RECORDS.items():
        monkeypatch.setattr(name, value)
    if source == "journal":
        with journald(tmp_path / "journald"):
            _run(lab, options, output, in_journal(tmp_path / "journald"))
    else:
        _run(lab, options, output, ())
    events = accounts.events_of(output)
    assert not [fault for event in events for fault in EventValidator().faults(event)]
    found = _attempts(events)
    assert sum(event["count"] for event in found) == 3
    for event in found:
        assert (event["activity_name"], event["disposition"]) == ("Open", "Logged")
        assert (event["status"], event["status_code"]) == ("Success", "permissive")
        assert event["unmapped"]["prefix"] == "ocsf-nft:lab:egress:permissive:"
    states = [event["state"] for event in events if event["class_uid"] == 5019]
    assert states == ["Permissive", "Disabled"]
    # A later conversion of the log line gives the same.
    raw = next(e["raw_data"] for e in found if e["metadata"]["log_format"] != "nf_tables")
    (event,) = command.run("explain", raw).events
    assert (event["disposition"], event["status_code"]) == ("Logged", "permissive")


def _run(lab: Lab, options: Sequence[str], output: Path, under: Sequence[str]) -> None:
    with command.running(*options, under=under, constants=OF_RECORDS) as running:
        with far_side.watch(lab) as far:
            attempts.attempt(lab.sandbox_namespace, 1000, 3, "udp4")
            accounts.until(lambda: any(17 in far_side.protocols(each) for each in far.strays()))
        # It has an event of a record before the counters are read at the stop.
        accounts.until(lambda: bool(_attempts(written.so_far(output))))
        code, errors = running.stop(signal.SIGTERM)
    assert code == 0, errors


def test_allowed_packets_are_counted_and_reported_without_log_rules(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    lab.sandbox_namespace.call(conftest.without_ipv6)
    output = tmp_path / "events.jsonl"
    options = (*_named(lab, state), *_PROXY, "--output", str(output), "--install", "--permissive")
    with command.running(*options, "--transport", "none") as running:
        attempts.attempt(lab.sandbox_namespace, 1000, 3, "udp4")
        assert running.stop(signal.SIGTERM)[0] == 0
    found = _attempts(accounts.events_of(output))
    # On a busy machine the counters may be read between two packets, which gives more events.
    assert sum(event["count"] for event in found) == 3
    assert {event["disposition"] for event in found} == {"Logged"}
    assert {event["metadata"]["log_source"] for event in found} == {
        "nftables flows4_egress_permissive"
    }


def test_command_line_calls_a_permissive_fence_permissive(lab: Lab, state: StateDirectory) -> None:
    lab.sandbox_namespace.call(conftest.without_ipv6)
    where = ("--state-dir", str(state.path))
    done = command.run("install", "--json", *_named(lab, state), *_PROXY, "--permissive")
    assert done.code == 0
    (event,) = done.events
    assert (event["state"], event["security_level"]) == ("Permissive", "At Risk")
    assert (event["severity"], event["status"]) == ("Low", "Success")
    assert event["unmapped"]["previous_state"] == "Absent"
    assert "permissive fence: it refuses nothing" in done.stderr
    assert command.run("verify", "--sandbox", conftest.SANDBOX, *where).code == 0
    attempts.attempt(lab.sandbox_namespace, 1000, 5, "udp4")
    shown = command.run("status", *where)
    assert shown.code == 0
    assert "its fence is permissive and refuses nothing" in shown.stderr
    assert re.search(r"rule +allowed", shown.stderr)
    assert "refused" not in shown.stderr
    metrics = command.run("status", *where, "--metrics").stdout
    of_rule = r'\{mode="permissive",rule="egress",sandbox="lab"\}'
    assert re.search(rf"allowed_packets_total{of_rule} 5\.0", metrics)
    assert re.search(rf"refused_packets_total{of_rule} 0\.0", metrics)

    enforcing = command.run("install", "--json", *_named(lab, state), *_PROXY)
    (event,) = enforcing.events
    assert (event["state"], event["unmapped"]["previous_state"]) == ("Enabled", "Permissive")
    attempts.attempt(lab.sandbox_namespace, 1000, 2, "udp4")
    shown = accounts.status(state)
    numbers = {
        (each["rule"], each["mode"]): (each["refused"], each["allowed"]) for each in shown.events
    }
    assert numbers["egress", "enforcing"] == (2, 0)
    assert numbers["egress", "permissive"] == (0, 5)
    assert {each["fence"] for each in shown.events} == {"enforcing"}
    again = command.run("install", "--json", *_named(lab, state), *_PROXY, "--permissive")
    (event,) = command.run("remove", "--json", "--sandbox", conftest.SANDBOX, *where).events
    assert again.code == 0
    assert event["unmapped"]["previous_state"] == "Permissive"


def test_run_reports_an_existing_fence_as_permissive(
    lab: Lab, spec: FenceSpec, state: StateDirectory, tmp_path: Path
) -> None:
    requested = dataclasses.replace(spec, is_permissive=True)
    installer.install(requested, lab.sandbox_namespace, state, "nflog")
    output = tmp_path / "events.jsonl"
    with command.running(*accounts.options(state, output)) as running:
        assert running.stop(signal.SIGTERM)[0] == 0
    (event,) = (each for each in accounts.events_of(output) if each["class_uid"] == 5019)
    assert (event["state"], event["unmapped"]["previous_state"]) == ("Permissive", "Permissive")


def test_run_that_enforces_a_permissive_fence_reports_the_change(
    lab: Lab, spec: FenceSpec, state: StateDirectory, tmp_path: Path
) -> None:
    requested = dataclasses.replace(spec, is_permissive=True)
    installer.install(requested, lab.sandbox_namespace, state, "nflog")
    output = tmp_path / "events.jsonl"
    options = [*_named(lab, state), *_PROXY, "--output", str(output), "--install"]
    with command.running(*options) as running:
        assert running.stop(signal.SIGTERM)[0] == 0
    (event,) = (each for each in accounts.events_of(output) if each["class_uid"] == 5019)
    assert (event["state"], event["unmapped"]["previous_state"]) == ("Enabled", "Permissive")


def test_log_line_carries_the_mode_of_its_fence(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    """Each line has the mode, so that its conversion needs no knowledge of the fence."""
    lines = []
    for is_permissive in (True, False):
        requested = dataclasses.replace(spec, is_permissive=is_permissive)
        installer.install(requested, lab.sandbox_namespace, state, "nflog")
        text = conftest.nft(lab.sandbox_namespace, "-t", "list", "table", "inet", "ocsf_nft")
        (prefix,) = set(re.findall(r'log prefix "(ocsf-nft:lab:egress:[^"]*)"', text))
        lines.append(
            f"{prefix}IN= OUT=sb0 SRC=10.200.0.2 DST=203.0.113.7 LEN=60 TOS=0x00 PREC=0x00 TTL=64 "
            "ID=1 DF PROTO=TCP SPT=41254 DPT=443 WINDOW=64240 RES=0x00 SYN URGP=0 "
        )
    events = command.run("convert", stdin="".join(f"{line}\n" for line in lines)).events
    assert [event["disposition"] for event in events] == ["Logged", "Blocked"]


def test_enforcing_again_refuses_at_once(lab: Lab, spec: FenceSpec, state: StateDirectory) -> None:
    for is_permissive in (True, False, True, False):
        requested = dataclasses.replace(spec, is_permissive=is_permissive)
        installer.install(requested, lab.sandbox_namespace, state, "nflog")
        assert verification.verify(spec.sandbox, state).verdict == "as installed"
        text = conftest.nft(lab.sandbox_namespace, "-t", "list", "ruleset")
        assert ("drop" in text, "reject" in text) == (not is_permissive,) * 2
        with lab.sandbox_namespace.call(socket.socket) as sock:
            sock.settimeout(0.2)
            refused = OSError if is_permissive else ConnectionRefusedError
            with pytest.raises(refused):
                sock.connect(("203.0.113.7", 443))
