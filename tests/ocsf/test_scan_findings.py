from __future__ import annotations

import json
from typing import Any

import pytest

from ocsf_nft.attempt import Aggregation, FanOut
from ocsf_nft.flow import Flow
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.scan_findings import fan_out
from tests.conformance.corpus import CONTEXT, NOW_NS, SAMPLE, counter, window
from tests.conformance.incidents import fan_out_of
from tests.ocsf.mapped import MAPPER


def rendered(found: FanOut, context: Context = CONTEXT) -> Any:
    return json.loads(fan_out(context, found, processed_ns=NOW_NS).to_json())


def test_finding_of_a_fan_out_has_all_attributes() -> None:
    attacks = [
        {
            "version": "18.0",
            "tactic": {"uid": "TA0007", "name": "Discovery"},
            "technique": {"uid": "T1046", "name": "Network Service Discovery"},
        }
    ]
    event = rendered(fan_out_of(sample=SAMPLE[:1]))
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
            "condition": 'log prefix "ocsf-nft:sb1:egress:" group 4001',
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
    begun, event = rendered(fan_out_of()), rendered(fan_out_of(stage=stage))
    assert (event["activity_name"], event["status"]) == (activity, status)
    assert event["is_alert"] is is_alert
    assert event["finding_info"]["uid"] == begun["finding_info"]["uid"]


def test_another_fan_out_is_another_finding() -> None:
    one, other = rendered(fan_out_of()), rendered(fan_out_of(identity="1f0c/egress/1000/2"))
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
    uids = [rendered(event)["metadata"]["uid"] for event in events]
    assert len(set(uids)) == len(uids)
    assert [rendered(event, Context())["metadata"]["uid"] for event in events] == uids


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
    assert rendered(fan_out_of(**facts))["message"] == message


def test_evidence_of_an_inbound_fan_out_has_no_source() -> None:
    event = rendered(fan_out_of(rule="ingress", uid=None, sample=SAMPLE[:1]))
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
    event = rendered(fan_out_of(sample=(), uid=None), Context())
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
    event = rendered(fan_out_of(sample=sample))
    addresses = [one for one in event["observables"] if one["type_id"] == 2]
    assert [one["value"] for one in addresses] == [f"203.0.113.{n}" for n in range(10)]
    assert [one["name"] for one in addresses][:2] == [
        "evidences[0].dst_endpoint.ip",
        "evidences[2].dst_endpoint.ip",
    ]
    assert len(event["evidences"]) == 30


def test_a_fan_out_without_length_has_no_duration() -> None:
    assert "duration" not in rendered(fan_out_of(end_ns=fan_out_of().start_ns))
