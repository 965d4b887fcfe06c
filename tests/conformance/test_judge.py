"""The judge catches what is wrong: an event, one thing spoilt, must not pass."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf import enums
from ocsf_nft.ocsf.findings import fan_out
from ocsf_nft.ocsf.mapper import Mapper
from tests.conformance import judge as judge_module
from tests.conformance.corpus import ATTEMPTS, CONTEXT, NOW_NS, RECORDS, fan_out_of

if TYPE_CHECKING:
    from collections.abc import Callable

    Judge = Callable[[Any], list[str]]

DELETE = object()
GOOD = json.loads(
    Mapper(CONTEXT).network_activity(Attempt.of(RECORDS["tcp4"]), processed_ns=NOW_NS).to_json()
)

#: What is spoilt, where, and with what.
MUTATIONS: dict[str, tuple[str, Any]] = {
    "type_uid of another activity": ("type_uid", 400106),
    "type_uid of another class": ("type_uid", 600205),
    "unknown class": ("class_uid", 4999),
    "class as text": ("class_uid", "4001"),
    "category of another class": ("category_uid", 6),
    "activity that doesn't exist": ("activity_id", 42),
    "activity missing": ("activity_id", DELETE),
    "severity missing": ("severity_id", DELETE),
    "time missing": ("time", DELETE),
    "time as text": ("time", "2026-01-01T00:00:00Z"),
    "time as a fraction": ("time", 1767225600000.0),
    "time past 64 bits": ("time", 1 << 63),
    "caption in lower case": ("severity", "medium"),
    "caption of another id": ("disposition", "Dropped"),
    "caption missing": ("action", DELETE),
    "caption without its id": ("status_id", DELETE),
    "nested caption of another id": ("connection_info.direction", "Inbound"),
    "class name misspelt": ("class_name", "Network activity"),
    "type name misspelt": ("type_name", "Network Activity: Refused"),
    "id 99 without a text": ("disposition_id", 99),
    "another version": ("metadata.version", "1.7.0"),
    "no version": ("metadata.version", DELETE),
    "no product": ("metadata.product", DELETE),
    "profile not listed": ("metadata.profiles", ["host", "security_control"]),
    "no profile listed": ("metadata.profiles", DELETE),
    "profile listed in vain": (
        "metadata.profiles",
        ["cloud", "host", "network_proxy", "security_control"],
    ),
    "profile that doesn't exist": (
        "metadata.profiles",
        ["host", "network_proxy", "security_control", "firewall"],
    ),
    "profile listed twice": (
        "metadata.profiles",
        ["host", "host", "network_proxy", "security_control"],
    ),
    "profiles no list": ("metadata.profiles", "host"),
    "profile whose attributes are gone": ("proxy_endpoint", DELETE),
    "deprecated attribute": ("proxy", {"ip": "10.200.0.1"}),
    "deprecated attribute below": ("actor.invoked_by", "cron"),
    "unknown attribute": ("engine", "nftables"),
    "unknown attribute below": ("firewall_rule.engine", "nftables"),
    "container at the top": ("container", {"uid": "3f4e0c2c9d1a"}),
    "address that is none": ("dst_endpoint.ip", "example"),
    "hardware address that is none": ("src_endpoint.mac", "02:00"),
    "port out of range": ("dst_endpoint.port", 65536),
    "port as text": ("dst_endpoint.port", "443"),
    "endpoint that is nobody": ("dst_endpoint", {"port": 443}),
    "no direction": ("connection_info.direction_id", DELETE),
    "device without a type": ("device.type_id", DELETE),
    "system without a name": ("device.os.name", DELETE),
    "actor that is nobody": ("actor", {}),
    "attack without anything": ("attacks", [{"version": "18.0"}]),
    "null": ("status_detail", None),
    "null below": ("unmapped.ttl", None),
    "lone surrogate": ("message", "\ud800"),
    "lone surrogate in a name": ("unmapped.\ud800", 1),
    "number past 64 bits below": ("unmapped.mark", 1 << 64),
    "not a number": ("unmapped.mark", float("nan")),
    "observable of nothing": ("observables.0.name", "dst_endpoint.hostname"),
    "observable below a scalar": ("observables.0.name", "dst_endpoint.ip.text"),
    "observable without a name": ("observables.0.name", DELETE),
    "observable with another value": ("observables.0.value", "203.0.113.8"),
    "observable of another type": ("observables.0.type_id", 3),
    "end before start": ("end_time", 1),
}
SCAN = json.loads(fan_out(CONTEXT, fan_out_of(), processed_ns=NOW_NS).to_json())
#: The same for a finding.
MUTATIONS_OF_A_FINDING: dict[str, tuple[str, Any]] = {
    "nothing found": ("finding_info", DELETE),
    "finding without a uid": ("finding_info.uid", DELETE),
    "status of another class": ("status", "Success"),
    "status of a network activity": ("status_id", 2),
    "activity of another class": ("activity_name", "Refuse"),
    "type_uid of another activity": ("type_uid", 200402),
    "category of another class": ("category_name", "Network Activity"),
    "analytic without a type": ("finding_info.analytic.type_id", DELETE),
    "analytic without a caption": ("finding_info.analytic.type", DELETE),
    "analytic of another type": ("finding_info.analytic.type", "Behavioral"),
    "seen as text": ("finding_info.first_seen_time", "2026-01-01"),
    "one type": ("finding_info.types", "Fan-out"),
    "evidence of nothing": ("evidences.0", {}),
    "evidence as text": ("evidences.0", "203.0.113.7"),
    "evidence of an unknown kind": ("evidences.0.destination", "203.0.113.7"),
    "evidence without a direction": ("evidences.0.connection_info.direction_id", DELETE),
    "evidence that points nowhere": ("evidences.0.dst_endpoint", {"port": 443}),
    "observable of another evidence": ("observables.1.name", "evidences[0].dst_endpoint.ip"),
    "observable of no evidence": ("observables.1.name", "evidences[99].dst_endpoint.ip"),
    "remediation without a word": ("remediation", {}),
    "resource that is nothing": ("resources.0", {"type": "sandbox"}),
    "source at the top": ("src_endpoint", {"name": "sb1"}),
    "profile not listed": ("metadata.profiles", ["security_control"]),
    "profile that its attributes don't need": ("actor", DELETE),
    "duration of another time": ("duration", 1),
    "duration without a start": ("start_time", DELETE),
}


def spoilt(path: str, value: Any, good: Any = GOOD) -> Any:
    event = deepcopy(good)
    *parents, last = path.split(".")
    where = event
    for parent in parents:
        where = where[int(parent) if isinstance(where, list) else parent]
    key = int(last) if isinstance(where, list) else last
    if value is DELETE:
        del where[key]
    else:
        where[key] = value
    return event


def test_the_events_that_are_spoilt_below_have_no_fault(judge: Judge) -> None:
    assert judge(GOOD) == []
    assert judge(SCAN) == []


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_spoilt_event_is_caught(judge: Judge, mutation: str) -> None:
    assert judge(spoilt(*MUTATIONS[mutation])) != []


@pytest.mark.parametrize("mutation", MUTATIONS_OF_A_FINDING)
def test_a_spoilt_finding_is_caught(judge: Judge, mutation: str) -> None:
    assert judge(spoilt(*MUTATIONS_OF_A_FINDING[mutation], SCAN)) != []


@pytest.mark.parametrize(
    "mutation",
    [
        ("duration", 4999),
        ("src_endpoint", DELETE),
        ("unmapped.merged.flows", 1 << 63),
        ("unmapped.merged.sample.0.uid", None),
        ("unmapped.merged.sample.0.destination", "\ud800"),
    ],
)
def test_a_spoilt_event_of_several_flows_is_caught(judge: Judge, mutation: tuple[str, Any]) -> None:
    attempt = ATTEMPTS["many of egress, in full"]
    good = json.loads(Mapper(CONTEXT).network_activity(attempt, processed_ns=NOW_NS).to_json())
    assert judge(good) == []
    assert judge(spoilt(*mutation, good)) != []


@pytest.mark.parametrize("event", [None, [], "event", 1])
def test_what_is_no_object_is_caught(judge: Judge, event: Any) -> None:
    assert judge(event) != []


@pytest.mark.parametrize(
    "path", ["observables[0].type_id", "observables[].type_id", "observables.type_id"]
)
def test_an_observable_may_point_into_an_array(judge: Judge, path: str) -> None:
    event = deepcopy(GOOD)
    event["observables"].append({"name": path, "type_id": 99, "type": "id", "value": "2"})
    assert judge(event) == []


def test_what_the_schema_recommends_and_we_know_is_there() -> None:
    """What is left out is what a record doesn't say."""
    left_out = set(judge_module.left_out(GOOD))
    assert not left_out & {
        "action_id",
        "connection_info",
        "connection_info.boundary_id",
        "connection_info.protocol_name",
        "connection_info.protocol_num",
        "connection_info.protocol_ver_id",
        "device",
        "device.hostname",
        "device.type",
        "disposition_id",
        "confidence_id",
        "dst_endpoint.ip",
        "dst_endpoint.port",
        "firewall_rule.name",
        "firewall_rule.uid",
        "is_alert",
        "is_src_dst_assignment_known",
        "message",
        "metadata.log_name",
        "metadata.original_time",
        "observables",
        "src_endpoint.interface_name",
        "src_endpoint.name",
        "status",
        "status_code",
        "status_detail",
        "timezone_offset",
        "traffic.bytes",
    }


#: Our enumeration, the schema's object or class, and its attribute.
ENUMERATIONS = [
    (enums.NetworkActivityId, "classes", "network_activity", "activity_id"),
    (enums.FindingActivityId, "classes", "detection_finding", "activity_id"),
    (enums.FindingStatus, "classes", "detection_finding", "status_id"),
    (enums.AnalyticType, "objects", "analytic", "type_id"),
    (enums.ConfigActivityId, "classes", "device_config_state_change", "activity_id"),
    (enums.LifecycleActivityId, "classes", "application_lifecycle", "activity_id"),
    (enums.Severity, "classes", "network_activity", "severity_id"),
    (enums.Status, "classes", "network_activity", "status_id"),
    (enums.Action, "classes", "network_activity", "action_id"),
    (enums.Disposition, "classes", "network_activity", "disposition_id"),
    (enums.Confidence, "classes", "network_activity", "confidence_id"),
    (enums.ObservationPoint, "classes", "network_activity", "observation_point_id"),
    (enums.ConfigState, "classes", "device_config_state_change", "state_id"),
    (enums.SecurityLevel, "classes", "device_config_state_change", "security_level_id"),
    (enums.Direction, "objects", "network_connection_info", "direction_id"),
    (enums.Boundary, "objects", "network_connection_info", "boundary_id"),
    (enums.ProtocolVersion, "objects", "network_connection_info", "protocol_ver_id"),
    (enums.NetworkScope, "objects", "network_endpoint", "network_scope_id"),
    (enums.DeviceType, "objects", "device", "type_id"),
    (enums.OsType, "objects", "os", "type_id"),
    (enums.ObservableType, "objects", "observable", "type_id"),
]


@pytest.mark.parametrize(("ours", "kind", "name", "attribute"), ENUMERATIONS)
def test_our_enumerations_are_spelled_as_the_schema_spells_them(
    ours: type[enums.Captioned], kind: str, name: str, attribute: str
) -> None:
    published = judge_module.schema("1.8.0")[kind][name]["attributes"][attribute]["enum"]
    assert {str(int(one)): one.caption for one in ours} == {
        str(int(one)): published[str(int(one))]["caption"] for one in ours
    }


def test_every_enumeration_is_compared_with_the_schema() -> None:
    assert {one[0] for one in ENUMERATIONS} == set(enums.Captioned.__subclasses__())
