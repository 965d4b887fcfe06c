"""Findings of significant attempts: created, updated as the count grows, closed at the end."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.attempt import Aggregation, Attempt, Incident, IncidentEnd
from ocsf_nft.flow import Key
from ocsf_nft.flows.incidents import extend_incident
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.severity import SeverityRule, Threshold
from tests.conformance.attributed import PROCESSES, done_by
from tests.conformance.corpus import CONTEXT, NOW_NS, RECORDS, TIME_NS
from tests.conformance.incidents import GOING_ON, incident
from tests.strategies import records

if TYPE_CHECKING:
    from ocsf_nft.record import Record

MAPPER = Mapper(CONTEXT)


def rendered(found: Attempt | IncidentEnd, mapper: Mapper = MAPPER) -> Any:
    event = mapper.finding(found, processed_ns=NOW_NS)
    return None if event is None else json.loads(event.to_json())


def attempt_of(name: str, each: Incident) -> Attempt:
    return replace(Attempt.of(RECORDS[name]), incident=each)


def incident_end_of(name: str, each: Incident) -> IncidentEnd:
    return IncidentEnd(record=RECORDS[name], incident=each, end_ns=TIME_NS + 5_000_000_000)


@pytest.mark.parametrize(
    ("name", "packets", "is_found"),
    [
        ("tcp4", 9, False),
        ("tcp4", 10, True),
        ("metadata4", 1, True),
        ("udp dns", 5000, False),
        ("igmp", 5000, False),
        ("link arp", 5000, False),
        ("router solicitation", 5000, False),
        ("ingress", 10, True),
        ("forward", 10, True),
    ],
)
def test_significant_attempt_is_a_finding(name: str, packets: int, is_found: bool) -> None:
    assert MAPPER.is_finding(RECORDS[name], packets) == is_found


@pytest.mark.parametrize("name", ["router solicitation", "igmp", "icmp error"])
def test_packet_of_the_kernel_known_from_a_counter_is_no_finding(name: str) -> None:
    counted = replace(RECORDS[name], details={}, source=None, out_interface=None)
    assert not MAPPER.is_finding(counted, 1_000_000)
    assert MAPPER.is_finding(replace(counted, uid=1000), 1_000_000)


@pytest.mark.parametrize(
    ("each", "stage"),
    [
        (incident(1, 12, None), None),
        (incident(1, 12, 1), ("Create", "New")),
        (incident(3, 12, 3), ("Create", "New")),
        (incident(4, 40, 3), ("Update", "In Progress")),
    ],
)
def test_a_finding_is_created_once_and_then_updated(
    each: Incident, stage: tuple[str, str] | None
) -> None:
    event = rendered(attempt_of("tcp4", each))
    assert stage == (None if event is None else (event["activity_name"], event["status"]))


def test_only_a_created_finding_is_closed() -> None:
    assert rendered(incident_end_of("tcp4", incident(3, 900, None))) is None
    event = rendered(incident_end_of("tcp4", incident(3, 40, 2)))
    assert (event["activity_name"], event["status"]) == ("Close", "Resolved")
    assert event["is_alert"] is False
    assert event["count"] == 40


@given(
    shown=st.lists(st.tuples(records(), st.integers(1, 30)), min_size=1, max_size=6),
    mappers=st.lists(
        st.sampled_from(
            [
                MAPPER,
                Mapper(replace(CONTEXT, threshold=Threshold(min_severity=Severity.LOW, packets=1))),
                Mapper(replace(CONTEXT, threshold=Threshold(packets=10**9))),
            ]
        ),
        min_size=7,
        max_size=7,
    ),
)
def test_every_finding_is_created_once_and_closed_once(
    shown: list[tuple[Record, int]], mappers: list[Mapper]
) -> None:
    """This holds for all records of a flow, and if the configuration changes meanwhile."""
    stages: list[str] = []
    end: IncidentEnd | None = None
    for (record, packets), mapper in zip(shown, mappers, strict=False):
        attempt = replace(Attempt.of(record), packets=packets)
        end = extend_incident(end, Key("flows4", b"\0"), attempt, mapper.is_finding)
        event = rendered(replace(attempt, incident=end.incident), mapper)
        stages += [] if event is None else [event["activity_name"]]
    assert end is not None
    ended = rendered(end, mappers[-1])
    stages += [] if ended is None else [ended["activity_name"]]
    assert stages == [] or stages == ["Create", *["Update"] * (len(stages) - 2), "Close"]


def test_finding_begins_with_its_first_attempt_and_ends_with_the_last() -> None:
    began_ns, ended_ns = TIME_NS - 3_600_000_000_000, TIME_NS + 5_000_000_000
    each = replace(incident(2, 40, 1), start_ns=began_ns)
    for found, end_ns in (
        (attempt_of("tcp4", each), TIME_NS),
        (incident_end_of("tcp4", each), ended_ns),
    ):
        event = rendered(found)
        span = (began_ns // 1_000_000, end_ns // 1_000_000)
        assert (event["start_time"], event["end_time"]) == span
        info = event["finding_info"]
        assert (info["first_seen_time"], info["last_seen_time"]) == span
        assert event["duration"] == span[1] - span[0]


def test_two_events_of_a_finding_with_one_count_have_two_uids() -> None:
    most = 1 << 62
    first, second = (rendered(attempt_of("tcp4", incident(number, most, 1))) for number in (5, 6))
    assert first["metadata"]["uid"] != second["metadata"]["uid"]


def test_attempt_and_finding_refer_to_each_other() -> None:
    identities = [f"kmsg:boot:{number}" for number in (1, 2, 3)]
    events = []
    for number, identity in enumerate(identities, 1):
        logged = replace(RECORDS["tcp4"], origin=replace(RECORDS["tcp4"].origin, identity=identity))
        each = replace(incident(number, 20 * number, 1), latest=tuple(identities[:number]))
        attempt = replace(Attempt.of(logged), packets=20, incident=each)
        events.append(json.loads(MAPPER.network_activity(attempt, processed_ns=NOW_NS).to_json()))
    finding = rendered(attempt)
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


def test_events_of_one_finding_share_its_uid_and_have_unique_event_uids() -> None:
    stages = (
        attempt_of("tcp4", incident(1, 12)),
        attempt_of("tcp4", incident(2, 40, 1)),
        incident_end_of("tcp4", incident(2, 40, 1)),
    )
    findings = [rendered(found) for found in stages]
    assert len({finding["finding_info"]["uid"] for finding in findings}) == 1
    assert len({finding["metadata"]["uid"] for finding in findings}) == 3
    another = rendered(attempt_of("tcp4", replace(incident(1, 12), identity="another")))
    assert another["finding_info"]["uid"] != findings[0]["finding_info"]["uid"]
    assert rendered(stages[0])["metadata"]["uid"] == findings[0]["metadata"]["uid"]


def test_finding_has_process_attempt_and_remediation() -> None:
    finding = rendered(attempt_of("tcp4", incident(3, 40, 2, done_by(PROCESSES["all of it"]))))
    assert finding["message"] == (
        "Blocked 40 TCP packets from curl[4242] (uid 1000) in sandbox sb1 to "
        "203.0.113.7:443 (https); answered with a TCP reset"
    )
    assert finding["remediation"]["desc"] == (
        "Find out what uid 1000 in sandbox sb1 runs, and stop it unless this is intended. "
        "Use the proxy: set HTTPS_PROXY=http://10.200.0.1:3128 and try again."
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


def test_attempt_to_reach_credentials_is_named_so() -> None:
    finding = rendered(attempt_of("metadata4", incident(1, 1)))
    assert finding["finding_info"]["title"].startswith("Attempt to reach the cloud metadata")
    assert finding["severity"] == "High"


@pytest.mark.parametrize("name", ["forward from outside", "ingress"])
def test_remediation_of_an_inbound_attempt_is_to_find_the_sender(name: str) -> None:
    finding = rendered(attempt_of(name, incident(1, 10)))
    assert finding["finding_info"]["title"] == "Attempt to connect to the sandbox was blocked"
    assert finding["remediation"]["desc"] == "Find out which program sends this, and why."


def test_threshold_of_findings_is_configurable() -> None:
    mapper = Mapper(replace(CONTEXT, threshold=Threshold(min_severity=Severity.MEDIUM, packets=2)))
    assert mapper.is_finding(RECORDS["tcp4"], 1)
    assert not mapper.is_finding(RECORDS["udp dns"], 100)
    names = SeverityRule(severity=Severity.HIGH, port=53)
    mapper = Mapper(replace(CONTEXT, severities=(names,)))
    assert mapper.is_finding(RECORDS["udp dns"], 1)
    assert rendered(attempt_of("udp dns", incident(1, 1)), mapper)["severity"] == "High"


def test_attempt_without_an_incident_is_no_finding() -> None:
    assert rendered(Attempt.of(RECORDS["metadata4"])) is None
    merged = replace(Attempt.of(RECORDS["metadata4"]), aggregation=Aggregation(reason="many"))
    assert rendered(merged) is None


def test_finding_without_a_host_is_rendered() -> None:
    finding = rendered(GOING_ON["metadata4, first"], Mapper(Context()))
    assert "device" not in finding
