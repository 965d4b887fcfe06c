"""Processes, related events and texts of scan findings."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ocsf_nft.attempt import FanOut, ScanSender
from ocsf_nft.flow import Flow
from ocsf_nft.ocsf.identifiers import event_uid
from ocsf_nft.ocsf.lean import lean
from ocsf_nft.ocsf.oneline import sender
from ocsf_nft.ocsf.scan_findings import fan_out
from ocsf_nft.process import Process
from tests.conformance.attributed import PROCESSES
from tests.conformance.corpus import CONTEXT, NOW_NS, SAMPLE
from tests.conformance.incidents import fan_out_of

_FLOW = Flow(uid=1000, protocol=6, destination="203.0.113.9", port=22)


def rendered(found: FanOut) -> Any:
    return json.loads(fan_out(CONTEXT, found, processed_ns=NOW_NS).to_json())


def senders(number: int) -> tuple[ScanSender, ...]:
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


def test_process_of_few_attempts_of_a_scan_is_not_its_actor() -> None:
    found = fan_out_of(senders=senders(1), unknown=2, windows=3)
    event = rendered(found)
    assert "process" not in event["actor"]
    assert event["evidences"][0]["process"]["pid"] == 5000
    info = event["finding_info"]
    assert info["title"] == "Scan blocked: uid 1000 in sandbox sb1"
    assert "nc[5000] made 1 of 3 reported attempts." in info["desc"]
    assert "stop process" not in event["remediation"]["desc"]


@pytest.mark.parametrize("shorten", [dict, lean])
@pytest.mark.parametrize(
    ("number", "unknown", "expected"),
    [
        (1, 0, "uid 1000 nc[5000]"),
        (1, 2, "uid 1000"),
        (25, 0, "25 processes of uid 1000"),
    ],
)
def test_line_of_a_scan_names_a_process_only_if_it_is_the_sole_one(
    shorten: Any, number: int, unknown: int, expected: str
) -> None:
    event = shorten(rendered(fan_out_of(senders=senders(number), unknown=unknown)))
    assert sender(event) == expected


def test_each_process_of_a_scan_is_an_evidence() -> None:
    event = rendered(fan_out_of(senders=senders(25)))
    pids = [each["process"]["pid"] for each in event["evidences"] if "process" in each]
    assert pids == list(range(5000, 5025))
    assert len(event["evidences"]) == 25 + len(SAMPLE)
    assert "process" not in event["actor"]
    title = "Scan blocked: 25 processes of uid 1000 in sandbox sb1"
    assert event["finding_info"]["title"] == title
    assert (
        "Processes seen to send: nc[5000], nc[5001], nc[5002], nc[5003], nc[5004], nc[5005], "
        "nc[5006], nc[5007] and 17 more. Started by: bash[4100]."
    ) in event["finding_info"]["desc"]
    assert event["unmapped"]["processes"] == 25
    assert event["remediation"]["desc"].startswith(
        "1. Check if nc[5000], nc[5001], nc[5002], nc[5003], nc[5004], nc[5005], nc[5006], "
        "nc[5007] and 17 more should do this, and what started them. 2. "
    )


def test_scan_with_processes_that_are_not_listed_names_no_actor() -> None:
    event = rendered(fan_out_of(senders=senders(1), unnamed=3))
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


@pytest.mark.parametrize("folders", [3, 15])
@pytest.mark.parametrize("number", [1, 32])
def test_long_texts_of_processes_do_not_make_a_scan_too_large(number: int, folders: int) -> None:
    """A program chooses them. Receivers accept 200,000 bytes or more."""
    long = ("/" + "\x01" * 255) * folders
    processes = [
        Process(pid=5000 + each, name="nc", path=long, working_directory=long, cmd_line=long)
        for each in range(number)
    ]
    found = fan_out_of(
        senders=tuple(
            ScanSender(process=each, attempts=1, flow=replace(_FLOW, port=each.pid))
            for each in processes
        )
    )
    assert len(json.dumps(rendered(found))) < 200_000
    evidences = rendered(found)["evidences"]
    assert [each["process"]["pid"] for each in evidences[:number]] == [
        each.pid for each in processes
    ]
    assert ("path" in evidences[0]["process"]) == (folders == 3)
    assert "path" not in evidences[-1 if number == 1 else number - 1]["process"]
