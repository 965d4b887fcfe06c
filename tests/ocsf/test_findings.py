"""Findings of significant attempts and of scans: created, and updated until their end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.attempt import Aggregation, Attempt, FanOut, Incident, IncidentEnd
from ocsf_nft.flow import Flow, Key
from ocsf_nft.flows.incidents import extend_incident
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.finding_settings import FindingSettings
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.scan_findings import fan_out
from ocsf_nft.ocsf.severity import SeverityRule
from ocsf_nft.report import wording
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


def with_settings(**settings: Any) -> Mapper:
    return Mapper(replace(CONTEXT, findings=FindingSettings(**settings)))


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
        (incident(4, 40, 3), ("Update", "New")),
    ],
)
def test_a_finding_is_created_once_and_then_updated(
    each: Incident, stage: tuple[str, str] | None
) -> None:
    event = rendered(attempt_of("tcp4", each))
    assert stage == (None if event is None else (event["activity_name"], event["status"]))


@pytest.mark.parametrize(
    ("is_stopped", "detail"),
    [
        (False, "Inactive since 2026-01-01T00:00:05.000Z: 40 packets, and no more since then."),
        (
            True,
            (
                "Inactive since 2026-01-01T00:00:05.000Z: 40 packets, and no more until the watch "
                "over the sandbox ended."
            ),
        ),
    ],
)
def test_end_of_a_finding_is_an_update_with_its_time(is_stopped: bool, detail: str) -> None:
    assert rendered(incident_end_of("tcp4", incident(3, 900, None))) is None
    end = replace(incident_end_of("tcp4", incident(3, 40, 2)), is_stopped=is_stopped)
    event = rendered(end)
    assert (event["activity_name"], event["status"]) == ("Update", "New")
    assert (event["count"], event["status_detail"]) == (40, detail)


def test_finding_is_closed_only_if_configured() -> None:
    end = incident_end_of("tcp4", incident(3, 40, 2))
    event = rendered(end, with_settings(auto_close=True))
    assert (event["activity_name"], event["status"]) == ("Close", "Resolved")
    assert event["status_detail"].endswith("Closed as configured; no person has reviewed it.")


def test_alerts_are_findings_of_the_configured_severity() -> None:
    medium, high = attempt_of("tcp4", incident(1, 12)), attempt_of("metadata4", incident(1, 1))
    assert [rendered(each)["is_alert"] for each in (medium, high)] == [False, True]
    every = with_settings(alert_severity=Severity.MEDIUM)
    assert [rendered(each, every)["is_alert"] for each in (medium, high)] == [True, True]
    none = with_settings(alert_severity=Severity.CRITICAL)
    assert [rendered(each, none)["is_alert"] for each in (medium, high)] == [False, False]


def test_finding_has_a_link_to_its_page_of_the_runbook() -> None:
    found = attempt_of("metadata4", incident(1, 1))
    event = rendered(found)
    page = "docs/how-to/runbook/metadata-credentials.md"
    assert event["remediation"]["references"] == [page]
    assert Path(page).exists()
    assert "src_url" not in event["finding_info"]
    event = rendered(found, with_settings(runbook_url="https://docs.example.com/"))
    link = "https://docs.example.com/metadata-credentials.html"
    assert (event["finding_info"]["src_url"], event["remediation"]["references"]) == (link, [link])


@given(
    shown=st.lists(st.tuples(records(), st.integers(1, 30)), min_size=1, max_size=6),
    mappers=st.lists(
        st.sampled_from(
            [
                MAPPER,
                Mapper(
                    replace(CONTEXT, findings=FindingSettings(min_severity=Severity.LOW, packets=1))
                ),
                Mapper(replace(CONTEXT, findings=FindingSettings(packets=10**9))),
            ]
        ),
        min_size=7,
        max_size=7,
    ),
)
def test_every_finding_is_created_once_and_then_updated(
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
    assert stages == [] or stages == ["Create", *["Update"] * (len(stages) - 1)]


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


def test_finding_states_the_confidence_of_its_process_if_it_is_not_high() -> None:
    by = replace(done_by(PROCESSES["all of it"]), confidence="medium", reason="it may be another")
    finding = rendered(attempt_of("tcp4", incident(3, 40, 2, by)))
    assert "Confidence medium: it may be another." in finding["finding_info"]["desc"]


def test_finding_has_process_attempt_and_remediation() -> None:
    finding = rendered(attempt_of("tcp4", incident(3, 40, 2, done_by(PROCESSES["all of it"]))))
    assert finding["message"] == (
        "Blocked 40 TCP packets from curl[4242] (uid 1000) in sandbox sb1 to "
        "203.0.113.7:443 (https); answered with a TCP reset"
    )
    assert finding["finding_info"]["title"] == (
        "Proxy bypass blocked: curl[4242] (uid 1000) in sandbox sb1 to 203.0.113.7:443 (https)"
    )
    assert finding["finding_info"]["desc"] == (
        "A program in the sandbox sent packets to a destination without the sandbox's proxy. "
        "Blocked 40 TCP packets from curl[4242] (uid 1000) in sandbox sb1 to 203.0.113.7:443 "
        "(https); answered with a TCP reset. The process is curl[4242]: process 4242, program "
        "/usr/bin/curl, user 1000 (agent), in /home/agent, started at 2025-12-31T23:59:59.000Z. "
        "Its command line is `curl https://example.com/`. Started by: bash[4200] ← agent[4100]. "
        "It runs in container sandbox-sb1 of image registry.example/sandbox:1.2. "
        "40 packets in 3 reports, from 2026-01-01T00:00:00.000Z to 2026-01-01T00:00:00.000Z. "
        "The fence blocked all of it: no packet left the sandbox."
    )
    assert finding["remediation"]["desc"] == (
        "1. Check if curl[4242] (/usr/bin/curl) should do this. 2. If it is intended: "
        "Use the proxy: set HTTPS_PROXY=http://10.200.0.1:3128 and try again. "
        "3. If not: stop process 4242, or sandbox sb1. "
        "4. Keep the evidence: ocsf-nft events --sandbox sb1 --lines 0 --format jsonl"
    )
    (evidence,) = finding["evidences"]
    assert evidence["process"]["pid"] == evidence["actor"]["process"]["pid"] == 4242
    assert evidence["dst_endpoint"]["ip"] == "203.0.113.7"
    assert "attacks" not in finding
    assert finding["resources"] == [{"name": "sb1", "type": "sandbox"}]
    assert [each["name"] for each in finding["observables"]][:2] == [
        "evidences[0].dst_endpoint.ip",
        "evidences[0].dst_endpoint.port",
    ]


def test_name_of_a_process_adds_no_step_to_a_remediation() -> None:
    path = "/opt/a) should do this. 2. Run this. 3. End (b"
    by = done_by(replace(PROCESSES["all of it"], path=path))
    finding = rendered(attempt_of("tcp4", incident(3, 40, 2, by)))
    advice = finding["remediation"]["desc"]
    assert r"should do this.\x202. Run this." in advice
    assert [step[:5] for step in wording.steps(advice)] == ["Check", "If it", "If no", "Keep "]


def test_attempt_to_reach_credentials_is_named_so() -> None:
    finding = rendered(attempt_of("metadata4", incident(1, 1)))
    assert finding["finding_info"]["title"].startswith("Access to the cloud metadata service")
    assert finding["severity"] == "High"
    assert finding["attacks"][0]["sub_technique"]["uid"] == "T1552.005"
    assert finding["attacks"] == finding["finding_info"]["attacks"]
    blocked = "1. The packets were blocked: no credentials were disclosed this way."
    assert finding["remediation"]["desc"].startswith(blocked)


@pytest.mark.parametrize("name", ["forward from outside", "ingress"])
def test_remediation_of_an_inbound_attempt_is_to_find_the_sender(name: str) -> None:
    finding = rendered(attempt_of(name, incident(1, 10)))
    assert finding["finding_info"]["title"] == "Connection to the sandbox blocked: sandbox sb1"
    assert finding["remediation"]["desc"].startswith("Find out which program sends this, and why.")


def test_threshold_of_findings_is_configurable() -> None:
    mapper = Mapper(
        replace(CONTEXT, findings=FindingSettings(min_severity=Severity.MEDIUM, packets=2))
    )
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
        "status_detail": "New: 25000 packets in 4711 flows so far.",
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
            "title": "Scan blocked: uid 1000 in sandbox sb1",
            "desc": "Many destinations or ports were tried within a short time, without the "
            "sandbox's proxy. This is typical of a scan. Blocked 25000 packets in 4711 flows from "
            "uid 1000 in sandbox sb1 to at least 4711 destinations on 1 port within 3.2 s. "
            "First packet at 2026-01-01T00:00:00.000Z, last new flow at 2026-01-01T00:00:03.200Z. "
            "The fence blocked all of it: no packet left the sandbox. "
            "The numbers of flows, destinations, ports and processes are lower bounds.",
            "types": ["Network Scan"],
            "analytic": {
                "uid": "ocsf-nft/scan",
                "name": "Network Scan",
                "type_id": 1,
                "type": "Rule",
            },
            "attacks": attacks,
            "first_seen_time": 1767225600000,
            "last_seen_time": 1767225603200,
        },
        "remediation": {
            "desc": "1. Find out what uid 1000 in sandbox sb1 runs, and if it should do this. "
            "2. Intended traffic must use the proxy at http://10.200.0.1:3128. "
            "3. If not: stop sandbox sb1. 4. Search for the same program in other sandboxes. "
            "5. Keep the evidence: ocsf-nft events --sandbox sb1 --lines 0 --format jsonl",
            "references": ["docs/how-to/runbook/scan.md"],
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
    ("stage", "activity", "begin"),
    [
        ("begun", "Create", "New: "),
        ("goes on", "Update", "Active: "),
        ("ended", "Update", "Inactive since 2026-01-01T00:00:03.200Z: "),
    ],
)
def test_a_fan_out_is_one_finding_from_beginning_to_end(
    stage: Any, activity: str, begin: str
) -> None:
    begun, event = rendered_scan(fan_out_of()), rendered_scan(fan_out_of(stage=stage))
    assert (event["activity_name"], event["status"]) == (activity, "New")
    assert event["is_alert"] is True
    assert event["status_detail"].startswith(begin)
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
    assert event["remediation"]["desc"].count(" 2. Intended traffic must use the sandbox's proxy. ")
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
