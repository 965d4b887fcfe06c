"""Findings of significant attempts and of scans: created, updated, closed at the end."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.attempt import Aggregation, Attempt, FanOut, Incident, IncidentEnd
from ocsf_nft.flow import Flow, Key
from ocsf_nft.flows.incidents import extend_incident
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.findings import fan_out
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.severity import SeverityRule, Threshold
from tests.conformance.attributed import PROCESSES, done_by
from tests.conformance.corpus import CONTEXT, NOW_NS, RECORDS, SAMPLE, TIME_NS, counter, window
from tests.conformance.incidents import GOING_ON, fan_out_of, incident
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


def rendered_scan(found: FanOut, context: Context = CONTEXT) -> Any:
    return json.loads(fan_out(context, found, processed_ns=NOW_NS).to_json())


def test_finding_of_a_fan_out_has_all_attributes() -> None:
    attacks = [
        {
            "version": "18.0",
            "tactic": {"uid": "TA0007", "name": "Discovery"},
            "technique": {"uid": "T1046", "name": "Network Service Discovery"},
        }
    ]
    event = rendered_scan(fan_out_of(sample=SAMPLE[:1]))
    assert event.pop("device")["hostname"] == "host-1"
    assert event.pop("metadata")["profiles"] == ["host", "security_control"]
    assert event == {
        "class_uid": 2004,
        "class_name": "Detection Finding",
        "category_uid": 2,
        "category_name": "Findings",
        "activity_id": 1,
        "activity_name": "Create",
        "type_uid": 200401,
        "type_name": "Detection Finding: Create",
        "time": 1767225603200,
        "start_time": 1767225600000,
        "end_time": 1767225603200,
        "duration": 3200,
        "timezone_offset": 0,
        "count": 25_000,
        "severity_id": 4,
        "severity": "High",
        "status_id": 1,
        "status": "New",
        "status_detail": "New.",
        "message": "Blocked 25000 packets in 4711 flows from uid 1000 in sandbox sb1 to at "
        "least 4711 destinations on 1 port within 3.2 s",
        "action_id": 2,
        "action": "Denied",
        "disposition_id": 2,
        "disposition": "Blocked",
        "is_alert": True,
        "confidence_id": 3,
        "confidence": "High",
        "finding_info": {
            "uid": "346319a8-ab72-5bac-b6a6-5500b2eac5fe",
            "title": "Fan-out to many destinations or ports was blocked",
            "desc": "One user tried many destinations or ports within a short time, without the "
            "sandbox's proxy. This is typical of a scan. The fence blocked all of it. "
            "The numbers of flows, destinations and ports are lower bounds.",
            "types": ["Fan-out"],
            "analytic": {
                "uid": "ocsf-nft/fan-out",
                "name": "Fan-out",
                "type_id": 1,
                "type": "Rule",
            },
            "attacks": attacks,
            "first_seen_time": 1767225600000,
            "last_seen_time": 1767225603200,
        },
        "remediation": {
            "desc": "Find out what uid 1000 in sandbox sb1 runs, and stop it unless this is "
            "intended. Intended traffic must use the proxy at http://10.200.0.1:3128."
        },
        "firewall_rule": {
            "name": "egress",
            "uid": "inet/ocsf_nft/refuse_egress/14",
            "type": "nftables",
            "desc": "the sandbox may send only to its proxy",
            "condition": "no rule of the chain output accepts the packet",
        },
        "attacks": attacks,
        "evidences": [
            {
                "actor": {"user": {"uid": "1000"}},
                "src_endpoint": {"name": "sb1"},
                "dst_endpoint": {
                    "ip": "198.51.100.0",
                    "port": 443,
                    "network_scope_id": 2,
                    "network_scope": "External",
                },
                "connection_info": {
                    "direction_id": 2,
                    "direction": "Outbound",
                    "protocol_num": 6,
                    "protocol_name": "tcp",
                    "protocol_ver_id": 4,
                    "protocol_ver": "Internet Protocol version 4 (IPv4)",
                },
            }
        ],
        "resources": [{"name": "sb1", "type": "sandbox"}],
        "actor": {"user": {"uid": "1000"}},
        "observables": [
            {
                "name": "evidences[0].dst_endpoint.ip",
                "type_id": 2,
                "type": "IP Address",
                "value": "198.51.100.0",
            },
            {
                "name": "actor.user.uid",
                "type_id": 31,
                "type": "User Object: uid",
                "value": "1000",
            },
            {"name": "device.hostname", "type_id": 1, "type": "Hostname", "value": "host-1"},
        ],
        "unmapped": {"sandbox": "sb1", "flows": 4711, "destinations": 4711, "ports": 1},
    }


@pytest.mark.parametrize(
    ("stage", "activity", "status", "is_alert"),
    [
        ("begun", "Create", "New", True),
        ("goes on", "Update", "In Progress", True),
        ("ended", "Close", "Resolved", False),
    ],
)
def test_a_fan_out_is_one_finding_from_beginning_to_end(
    stage: Any, activity: str, status: str, *, is_alert: bool
) -> None:
    begun, event = rendered_scan(fan_out_of()), rendered_scan(fan_out_of(stage=stage))
    assert (event["activity_name"], event["status"]) == (activity, status)
    assert event["is_alert"] is is_alert
    assert event["finding_info"]["uid"] == begun["finding_info"]["uid"]


def test_another_fan_out_is_another_finding() -> None:
    one, other = (
        rendered_scan(fan_out_of()),
        rendered_scan(fan_out_of(identity="1f0c/egress/1000/2")),
    )
    assert one["finding_info"]["uid"] != other["finding_info"]["uid"]
    assert one["metadata"]["uid"] != other["metadata"]["uid"]


def test_events_of_a_fan_out_have_unique_uids() -> None:
    events = [
        fan_out_of(),
        fan_out_of(stage="goes on"),
        fan_out_of(stage="goes on", packets=25_001),
        fan_out_of(stage="goes on", flows=4712),
        fan_out_of(stage="ended"),
    ]
    uids = [rendered_scan(event)["metadata"]["uid"] for event in events]
    assert len(set(uids)) == len(uids)
    assert [rendered_scan(event, Context())["metadata"]["uid"] for event in events] == uids


def test_fan_out_and_its_aggregated_flows_share_a_correlation_uid() -> None:
    merged = window(counter(uid=1000), aggregation=Aggregation(reason="many"))
    event = MAPPER.network_activity(merged, processed_ns=NOW_NS)
    finding = fan_out(CONTEXT, fan_out_of(), processed_ns=NOW_NS)
    assert finding.metadata.correlation_uid == event.metadata.correlation_uid
    other = fan_out(CONTEXT, fan_out_of(uid=1001), processed_ns=NOW_NS)
    assert other.metadata.correlation_uid != event.metadata.correlation_uid


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {"uid": None, "ports": 0, "packets": 1, "flows": 1, "destinations": 1},
            ("Blocked 1 packet in 1 flow from sandbox sb1 to at least 1 destination within 3.2 s"),
        ),
        (
            {"rule": "ingress", "uid": None, "destinations": 1, "ports": 300},
            (
                "Dropped 25000 packets in 4711 flows to at least 1 destination on 300 "
                "ports in sandbox sb1 within 3.2 s"
            ),
        ),
        (
            {"rule": "forward", "uid": None, "end_ns": fan_out_of().start_ns + 20_000_000},
            (
                "Blocked 25000 packets in 4711 flows through sandbox sb1 to at least 4711 "
                "destinations on 1 port within 20 ms"
            ),
        ),
    ],
)
def test_message_has_actor_and_numbers(facts: dict[str, Any], message: str) -> None:
    assert rendered_scan(fan_out_of(**facts))["message"] == message


def test_evidence_of_an_inbound_fan_out_has_no_source() -> None:
    event = rendered_scan(fan_out_of(rule="ingress", uid=None, sample=SAMPLE[:1]))
    (evidence,) = event["evidences"]
    assert evidence.keys() == {"dst_endpoint", "connection_info"}
    assert (evidence["dst_endpoint"]["name"], evidence["dst_endpoint"]["port"]) == ("sb1", 443)
    assert event["disposition"] == "Dropped"
    assert event["finding_info"]["desc"].startswith("Many ports or addresses of the sandbox were")
    assert event["remediation"]["desc"] == (
        "Find out which program sends this, and why. The sandbox may receive only replies "
        "of its proxy."
    )


def test_without_a_sample_the_sandbox_is_the_evidence() -> None:
    event = rendered_scan(fan_out_of(sample=(), uid=None), Context())
    assert event["evidences"] == [
        {
            "src_endpoint": {"name": "sb1"},
            "connection_info": {"direction_id": 2, "direction": "Outbound"},
        }
    ]
    assert event["remediation"]["desc"].endswith("Intended traffic must use the sandbox's proxy.")
    assert {"observables", "actor", "device", "duration"} & event.keys() == {"duration"}


def test_at_most_ten_addresses_are_observables_without_duplicates() -> None:
    sample = tuple(
        Flow(uid=1000, protocol=6, destination=f"203.0.113.{number // 2}", port=number)
        for number in range(30)
    )
    event = rendered_scan(fan_out_of(sample=sample))
    addresses = [one for one in event["observables"] if one["type_id"] == 2]
    assert [one["value"] for one in addresses] == [f"203.0.113.{n}" for n in range(10)]
    assert [one["name"] for one in addresses][:2] == [
        "evidences[0].dst_endpoint.ip",
        "evidences[2].dst_endpoint.ip",
    ]
    assert len(event["evidences"]) == 30


def test_a_fan_out_without_length_has_no_duration() -> None:
    assert "duration" not in rendered_scan(fan_out_of(end_ns=fan_out_of().start_ns))
