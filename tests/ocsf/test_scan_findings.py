"""Processes, related events and texts of scan findings."""

from __future__ import annotations

import json
from typing import Any

from ocsf_nft.attempt import FanOut, ScanSender
from ocsf_nft.flow import Flow
from ocsf_nft.ocsf.identifiers import event_uid
from ocsf_nft.ocsf.scan_findings import fan_out
from ocsf_nft.process import Process
from tests.conformance.attributed import PROCESSES
from tests.conformance.corpus import CONTEXT, NOW_NS, SAMPLE
from tests.conformance.incidents import fan_out_of

_FLOW = Flow(uid=1000, protocol=6, destination="203.0.113.9", port=22)


def rendered(found: FanOut) -> Any:
    return json.loads(fan_out(CONTEXT, found, processed_ns=NOW_NS).to_json())


def _senders(number: int) -> tuple[ScanSender, ...]:
    bash = Process(pid=4100, name="bash", path="/usr/bin/bash")
    return tuple(
        ScanSender(
            process=Process(pid=5000 + each, path="/usr/bin/nc", uid=1000, ancestors=(bash,)),
            attempts=1,
            flow=_FLOW,
        )
        for each in range(number)
    )


def test_sole_process_is_the_actor_of_a_scan() -> None:
    curl = ScanSender(process=PROCESSES["all of it"], attempts=3, flow=_FLOW)
    event = rendered(fan_out_of(senders=(curl,), sample=(_FLOW,)))
    assert event["actor"]["process"]["pid"] == 4242
    assert event["actor"]["user"]["uid"] == "1000"
    assert event["finding_info"]["title"] == "Scan blocked: curl[4242] (uid 1000) in sandbox sb1"
    assert "Its command line is `curl https://example.com/`." in event["finding_info"]["desc"]
    assert event["remediation"]["desc"].startswith("1. Check if curl[4242] (/usr/bin/curl) should")
    assert "stop process 4242" in event["remediation"]["desc"]
    (evidence,) = event["evidences"]
    assert evidence["process"]["pid"] == 4242
    assert evidence["dst_endpoint"]["ip"] == "203.0.113.9"
    assert event["unmapped"]["processes"] == 1
    assert "Process ID" in {each["type"] for each in event["observables"]}


def test_each_process_of_a_scan_is_an_evidence() -> None:
    event = rendered(fan_out_of(senders=_senders(25)))
    pids = [each["process"]["pid"] for each in event["evidences"] if "process" in each]
    assert pids == list(range(5000, 5025))
    assert len(event["evidences"]) == 25 + len(SAMPLE)
    assert "process" not in event["actor"]
    title = "Scan blocked: 25 processes of uid 1000 in sandbox sb1"
    assert event["finding_info"]["title"] == title
    assert (
        "Processes: nc[5000], nc[5001], nc[5002], nc[5003], nc[5004], nc[5005], nc[5006], "
        "nc[5007] and 17 more. Started by: bash[4100]."
    ) in event["finding_info"]["desc"]
    assert event["unmapped"]["processes"] == 25
    assert event["remediation"]["desc"].startswith(
        "1. Check if nc[5000], nc[5001], nc[5002], nc[5003], nc[5004], nc[5005], nc[5006], "
        "nc[5007] and 17 more should do this, and what started them. 2. "
    )


def test_scan_with_processes_that_are_not_listed_names_no_actor() -> None:
    event = rendered(fan_out_of(senders=_senders(1), unnamed=3))
    assert "process" not in event["actor"]
    title = "Scan blocked: at least 4 processes of uid 1000 in sandbox sb1"
    assert event["finding_info"]["title"] == title
    assert event["unmapped"]["processes"] == 4


def test_scan_refers_to_its_events() -> None:
    info = rendered(fan_out_of(latest=("a", "b"), windows=30))["finding_info"]
    assert [each["uid"] for each in info["related_events"]] == [event_uid("a"), event_uid("b")]
    assert {each["type_name"] for each in info["related_events"]} == {"Network Activity: Refuse"}
    assert info["related_events_count"] == 30
    allowed = rendered(fan_out_of(latest=("a",), windows=1, verdict="permit"))["finding_info"]
    assert allowed["related_events"][0]["type_uid"] == 400101


def test_hostile_names_in_a_description_are_visible_and_short() -> None:
    evil = Process(
        pid=1, path="/\x1b[2J" + "x" * 5000, cmd_line="\u202e" * 5000, working_directory="\n" * 5000
    )
    event = rendered(fan_out_of(senders=(ScanSender(process=evil, attempts=1, flow=_FLOW),)))
    info = event["finding_info"]
    assert (info["title"] + info["desc"]).isprintable()
    assert len(info["title"]) < 200
    assert len(info["desc"]) < 3000
