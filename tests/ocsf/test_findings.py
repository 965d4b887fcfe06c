"""An attempt that matters is a finding: created, updated as its count grows, closed at its end."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.attempt import Attempt, Ended, Merged, Streak
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.severity import SeverityRule, Threshold
from tests.conformance.corpus import (
    CONTEXT,
    GOING_ON,
    NOW_NS,
    PROCESSES,
    RECORDS,
    TIME_NS,
    streak,
)
from tests.strategies import records

if TYPE_CHECKING:
    from ocsf_nft.record import Record

MAPPER = Mapper(CONTEXT)


def told(found: Attempt | Ended, mapper: Mapper = MAPPER) -> Any:
    event = mapper.finding(found, processed_ns=NOW_NS)
    return None if event is None else json.loads(event.to_json())


def of(name: str, each: Streak) -> Attempt:
    return replace(Attempt.of(RECORDS[name]), streak=each)


def end_of(name: str, each: Streak) -> Ended:
    return Ended(record=RECORDS[name], streak=each, end_ns=TIME_NS + 5_000_000_000)


@pytest.mark.parametrize(
    ("name", "each", "stage"),
    [
        ("tcp4", streak(1, 1), None),
        ("tcp4", streak(2, 9, 1), None),
        ("tcp4", streak(3, 10, 9), ("Create", "New")),
        ("tcp4", streak(1, 500), ("Create", "New")),
        ("tcp4", streak(4, 11, 10), ("Update", "In Progress")),
        ("metadata4", streak(1, 1), ("Create", "New")),
        ("metadata4", streak(2, 2, 1), ("Update", "In Progress")),
        ("udp dns", streak(9, 5000, 4000), None),
        ("igmp", streak(9, 5000, 4000), None),
        ("link arp", streak(9, 5000, 4000), None),
        ("ingress", streak(1, 10), ("Create", "New")),
        ("foreign", streak(1, 10), None),
        ("foreign, of a sandbox", streak(1, 10), None),
    ],
)
def test_what_matters_is_a_finding(name: str, each: Streak, stage: tuple[str, str] | None) -> None:
    event = told(of(name, each))
    assert stage == (None if event is None else (event["activity_name"], event["status"]))


@pytest.mark.parametrize(("each", "is_told"), [(streak(3, 9, 2), False), (streak(3, 10, 2), True)])
def test_what_was_a_finding_is_closed_and_nothing_else(each: Streak, is_told: bool) -> None:
    event = told(end_of("tcp4", each))
    assert (event is not None) == is_told
    if event is not None:
        assert (event["activity_name"], event["status"]) == ("Close", "Resolved")
        assert event["is_alert"] is False
        assert event["count"] == each.packets


@given(record=records(), windows=st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_every_finding_begins_once_goes_on_and_ends_once(
    record: Record, windows: list[int]
) -> None:
    """Whatever the records of a flow look like: some have no details, none, or others."""
    stages: list[str] = []
    packets = 0
    for number, fresh in enumerate(windows, 1):
        shown = record if number % 2 else replace(record, details={}, source_port=None)
        each = replace(streak(number, packets + fresh, packets), start_ns=record.time_ns)
        packets += fresh
        found = replace(Attempt.of(shown), packets=fresh, streak=each)
        event = told(found)
        stages += [] if event is None else [event["activity_name"]]
    ended = told(Ended(record=record, streak=each, end_ns=record.time_ns))
    stages += [] if ended is None else [ended["activity_name"]]
    assert stages == [] or stages == ["Create", *["Update"] * (len(stages) - 2), "Close"]


def test_the_attempt_and_its_finding_find_each_other() -> None:
    identities = [f"kmsg:boot:{number}" for number in (1, 2, 3)]
    events = []
    for number, identity in enumerate(identities, 1):
        said = replace(RECORDS["tcp4"], origin=replace(RECORDS["tcp4"].origin, identity=identity))
        each = replace(
            streak(number, 20 * number, 20 * number - 20), latest=tuple(identities[:number])
        )
        attempt = replace(Attempt.of(said), packets=20, streak=each)
        events.append(json.loads(MAPPER.network_activity(attempt, processed_ns=NOW_NS).to_json()))
    finding = told(attempt)
    info = finding["finding_info"]
    assert [one["uid"] for one in info["related_events"]] == [
        event["metadata"]["uid"] for event in events
    ]
    assert {one["type_uid"] for one in info["related_events"]} == {400105}
    assert info["related_events_count"] == 3
    assert finding["count"] == sum(event["count"] for event in events)
    assert {event["metadata"]["correlation_uid"] for event in events} == {
        finding["metadata"]["correlation_uid"]
    }
    assert finding["metadata"]["correlation_uid"] == info["uid"]
    assert finding["metadata"]["uid"] not in {event["metadata"]["uid"] for event in events}


def test_all_that_is_told_of_one_finding_has_its_uid_and_events_of_their_own() -> None:
    stages = (
        of("tcp4", streak(1, 12)),
        of("tcp4", streak(2, 40, 12)),
        end_of("tcp4", streak(2, 40, 12)),
    )
    findings = [told(found) for found in stages]
    assert len({finding["finding_info"]["uid"] for finding in findings}) == 1
    assert len({finding["metadata"]["uid"] for finding in findings}) == 3
    another = told(of("tcp4", replace(streak(1, 12), identity="another")))
    assert another["finding_info"]["uid"] != findings[0]["finding_info"]["uid"]
    assert told(stages[0])["metadata"]["uid"] == findings[0]["metadata"]["uid"]


def test_a_finding_says_who_did_what_and_what_to_do() -> None:
    found = replace(of("tcp4", streak(3, 40, 12)), process=PROCESSES["all of it"])
    finding = told(found)
    assert finding["message"] == (
        "curl[4242] (uid 1000) in sandbox sb1 tried TCP to 203.0.113.7:443 (https) directly, "
        "40 times; refused with a reset"
    )
    assert finding["remediation"]["desc"] == (
        "Find out what uid 1000 in sandbox sb1 runs, and stop it unless somebody wants it to do "
        "this. Use the proxy: set HTTPS_PROXY=http://10.200.0.1:3128 and try again."
    )
    (evidence,) = finding["evidences"]
    assert evidence["process"]["pid"] == evidence["actor"]["process"]["pid"] == 4242
    assert evidence["dst_endpoint"]["ip"] == "203.0.113.7"
    assert finding["attacks"] == finding["finding_info"]["attacks"]
    assert finding["resources"] == [{"name": "sb1", "type": "sandbox"}]
    assert [each["name"] for each in finding["observables"]][:2] == [
        "evidences[0].dst_endpoint.ip",
        "evidences[0].dst_endpoint.port",
    ]


def test_credentials_are_called_by_their_name() -> None:
    finding = told(of("metadata4", streak(1, 1)))
    assert finding["finding_info"]["title"].startswith("Attempt to reach the cloud's metadata")
    assert finding["severity"] == "High"


@pytest.mark.parametrize("name", ["forward from outside", "ingress"])
def test_who_comes_from_outside_is_to_be_found(name: str) -> None:
    finding = told(of(name, streak(1, 10)))
    assert finding["finding_info"]["title"] == "Attempt to get into the sandbox was refused"
    assert finding["remediation"]["desc"] == "Find out who sends this, and why."


def test_when_it_is_a_finding_can_be_set() -> None:
    threshold = Threshold(at_once=Severity.MEDIUM, repeats=2)
    mapper = Mapper(replace(CONTEXT, threshold=threshold))
    assert told(of("tcp4", streak(1, 1)), mapper)["activity_name"] == "Create"
    assert told(of("udp dns", streak(1, 100)), mapper) is None
    names = SeverityRule(severity=Severity.HIGH, port=53)
    mapper = Mapper(replace(CONTEXT, severities=(names,)))
    assert told(of("udp dns", streak(1, 1)), mapper)["severity"] == "High"


def test_what_has_no_streak_is_none() -> None:
    assert told(Attempt.of(RECORDS["metadata4"])) is None
    merged = replace(Attempt.of(RECORDS["metadata4"]), merged=Merged(why="many"))
    assert told(merged) is None


def test_a_finding_is_told_without_a_host() -> None:
    finding = told(GOING_ON["metadata4, first"], Mapper(Context()))
    assert "device" not in finding
