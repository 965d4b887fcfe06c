"""Findings of significant attempts, from first packet to end, also if a run is killed."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.lab import GATEWAY4, PROXY_PORT
from tests.kernel import attempts, command, conftest, written

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.lab import Lab

    Judge = Callable[[Any, str], list[str]]

pytestmark = pytest.mark.kernel

METADATA = "169.254.169.254"


def ask_for_credentials() -> None:
    for _ in range(3):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.connect((METADATA, 80))


def _findings(events: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the findings of attempts by their uid, without duplicates."""
    found = defaultdict(list)
    seen: set[str] = set()
    for event in events:
        uid = event["metadata"]["uid"]
        types = event.get("finding_info", {}).get("types", [])
        is_of_attempt = types in (["Proxy Bypass"], ["Cloud Metadata Access"])
        if is_of_attempt and uid not in seen:
            seen.add(uid)
            found[event["finding_info"]["uid"]].append(event)
    return found


def _check_consistency(events: list[dict[str, Any]]) -> None:
    """Check that each finding begins and ends once, grows, and refers to its events and back."""
    of_uid = {event["metadata"]["uid"]: event for event in events if event["class_uid"] == 4001}
    for finding_events in _findings(events).values():
        stages = [event["activity_name"] for event in finding_events]
        assert stages == ["Create", *["Update"] * (len(finding_events) - 1)]
        assert {event["status"] for event in finding_events} == {"New"}
        *going_on, last = (event["status_detail"] for event in finding_events)
        assert last.startswith("Inactive since ")
        assert not any(detail.startswith("Inactive") for detail in going_on)
        counts = [event["count"] for event in finding_events]
        assert counts == sorted(counts)
        correlation = finding_events[0]["metadata"]["correlation_uid"]
        attempted = [
            event for event in of_uid.values()
            if event["metadata"]["correlation_uid"] == correlation
        ]  # fmt: skip
        assert counts[-1] == sum(event["count"] for event in attempted)
        assert finding_events[-1]["finding_info"]["related_events_count"] == len(attempted)
        for event in finding_events:
            assert event["metadata"]["correlation_uid"] == correlation
            for related in event["finding_info"]["related_events"]:
                assert of_uid[related["uid"]]["metadata"]["correlation_uid"] == correlation


def _wait_for(path: Path, holds: Callable[[list[dict[str, Any]]], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds(written.so_far(path)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_significant_attempts_are_findings_and_each_sink_gets_its_version(
    lab: Lab, state: StateDirectory, tmp_path: Path, judge: Judge
) -> None:
    siem, lake = tmp_path / "siem.jsonl", tmp_path / "lake.jsonl"
    config = tmp_path / "ocsf-nft.toml"
    config.write_text(
        f"""
        state_dir = "{state.path}"
        [[sandbox]]
        name = "{conftest.SANDBOX}"
        netns = "{lab.sandbox}"
        proxy = ["{GATEWAY4}:{PROXY_PORT}"]
        install = true
        [sandbox.container]
        uid = "3f4e0c2c9d1a"
        [[sink]]
        path = "{siem}"
        [[sink]]
        path = "{lake}"
        ocsf_version = "1.1"
        classes = ["network_activity", "detection_finding"]
        [[severity]]
        severity = "critical"
        protocol = 253
        """
    )
    with command.running("--config", str(config)) as running:
        lab.sandbox_namespace.call(ask_for_credentials)
        attempts.attempt(lab.sandbox_namespace, 1000, 20, "udp4")
        attempts.attempt(lab.sandbox_namespace, 1000, 2, "udp6")
        attempts.attempt(lab.sandbox_namespace, 0, 1, "raw4")
        assert running.stop(signal.SIGTERM)[0] == 0
    events = written.events(siem)
    assert [fault for event in events for fault in judge(event, "1.8.0")] == []
    _check_consistency(events)
    assert {finding_events[-1]["dst_endpoint"]["ip"] for finding_events in _evidences(events)} == {
        METADATA,
        attempts.INTERNET4,
    }
    severities = {finding_events[-1]["severity"] for finding_events in _findings(events).values()}
    assert severities == {"High", "Medium", "Critical"}
    assert all(
        event["src_endpoint"]["container"] == {"uid": "3f4e0c2c9d1a"}
        for event in events
        if event["class_uid"] == 4001 and "actor" in event
    )
    then = written.events(lake)
    assert [fault for event in then for fault in judge(event, "1.1.0")] == []
    refused = [event for event in events if event["class_uid"] in {4001, 2004}]
    assert [e["metadata"]["uid"] for e in then] == [e["metadata"]["uid"] for e in refused]


def _evidences(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    return [finding_events[-1]["evidences"] for finding_events in _findings(events).values()]


def test_finding_continues_and_ends_after_its_first_run_was_killed(
    installed: InstalledFence, lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    options = (
        "--sandbox", conftest.SANDBOX, "--state-dir", str(state.path), "--output", str(output),
    )  # fmt: skip
    assert installed.transport == "nflog"
    with command.running(*options) as running:
        lab.sandbox_namespace.call(ask_for_credentials)
        _wait_for(output, lambda events: bool(_findings(events)))
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
    lab.sandbox_namespace.call(ask_for_credentials)
    with command.running(*options) as running:
        _wait_for(
            output,
            lambda events: any(
                finding_events[-1]["count"] == 6 for finding_events in _findings(events).values()
            ),
        )
        assert running.stop(signal.SIGTERM)[0] == 0
    events = written.events(output)
    (finding_events,) = _findings(events).values()
    assert finding_events[-1]["status_detail"].startswith("Inactive since ")
    assert finding_events[-1]["count"] == 6
    _check_consistency(events)
