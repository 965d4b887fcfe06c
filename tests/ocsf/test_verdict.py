from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.mapper import Mapper
from tests.conformance.corpus import CONTEXT, NOW_NS, OUT, TCP, V4, V6, record
from tests.ocsf.mapped import MAPPER, event_of


@pytest.mark.parametrize(
    ("name", "direction", "code", "disposition", "severity"),
    [
        ("tcp4", "Outbound", "tcp-reset", "Blocked", "Medium"),
        ("tcp6", "Outbound", "tcp-reset", "Blocked", "Medium"),
        ("tcp reset", "Outbound", "dropped", "Dropped", "Medium"),
        ("late fragment", "Outbound", "dropped", "Dropped", "Medium"),
        ("udp dns", "Outbound", "icmpx-admin-prohibited", "Blocked", "Low"),
        ("udp6 quic", "Outbound", "icmpx-admin-prohibited", "Blocked", "Medium"),
        ("mdns", "Outbound", "dropped", "Dropped", "Low"),
        ("icmp echo", "Outbound", "icmpx-admin-prohibited", "Blocked", "Medium"),
        ("icmp error", "Outbound", "dropped", "Dropped", "Medium"),
        ("icmpv6 error", "Outbound", "dropped", "Dropped", "Medium"),
        ("icmpv6 echo", "Outbound", "icmpx-admin-prohibited", "Blocked", "Medium"),
        ("tcp without a whole header", "Outbound", "dropped", "Dropped", "Medium"),
        ("dns server", "Inbound", None, "Blocked", "Low"),
        ("router solicitation", "Outbound", "dropped", "Dropped", "Informational"),
        ("multicast listener report", "Outbound", "dropped", "Dropped", "Informational"),
        ("igmp", "Outbound", "dropped", "Dropped", "Informational"),
        ("gre", "Outbound", "icmpx-admin-prohibited", "Blocked", "Medium"),
        ("broadcast", "Outbound", "dropped", "Dropped", "Medium"),
        ("metadata4", "Outbound", "tcp-reset", "Blocked", "High"),
        ("metadata6", "Outbound", "tcp-reset", "Blocked", "High"),
        ("forward", "Outbound", "tcp-reset", "Blocked", "Medium"),
        ("forward from outside", "Inbound", "dropped", "Dropped", "Medium"),
        ("ingress", "Inbound", "dropped", "Dropped", "Medium"),
        ("ingress dns reply", "Inbound", "dropped", "Dropped", "Low"),
        ("link ip", "Outbound", "dropped", "Dropped", "Medium"),
        ("link 88b5", "Outbound", "dropped", "Dropped", "Medium"),
        ("guard", "Outbound", "dropped", "Dropped", "Medium"),
        ("vm forward", "Outbound", "dropped", "Dropped", "Medium"),
        ("vm metadata", "Outbound", "dropped", "Dropped", "High"),
        ("vm input", "Outbound", "dropped", "Dropped", "Medium"),
        ("vm ingress", "Inbound", "dropped", "Dropped", "Medium"),
        ("vm link", "Outbound", "dropped", "Dropped", "Low"),
        ("vm link arp", "Outbound", "dropped", "Dropped", "Medium"),
        ("vm link solicitation", "Outbound", "dropped", "Dropped", "Informational"),
        ("a later rule", "Unknown", None, "Blocked", "Medium"),
        ("foreign", "Inbound", None, "Blocked", "Low"),
        ("foreign, passing", "Unknown", None, "Dropped", "Low"),
        ("foreign, let pass", "Inbound", None, "Allowed", "Informational"),
        ("foreign, logged", "Outbound", None, "Logged", "Informational"),
        ("foreign, of a sandbox", "Outbound", None, "Blocked", "Medium"),
        ("foreign, of a sandbox, let pass", "Outbound", None, "Allowed", "Informational"),
        ("nothing but a prefix", "Unknown", None, "Logged", "Informational"),
        ("foreign, no prefix", "Outbound", None, "Blocked", "Low"),
    ],
)
def test_each_kind_of_record_is_judged(
    name: str, direction: str, code: str | None, disposition: str, severity: str
) -> None:
    event = event_of(name)
    assert (
        event["connection_info"]["direction"],
        event.get("status_code"),
        event["disposition"],
        event["severity"],
    ) == (direction, code, disposition, severity)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tcp4", ("Refuse", "Failure", "Denied", "Blocked", True)),
        ("tcp reset", ("Refuse", "Failure", "Denied", "Dropped", True)),
        ("foreign", ("Refuse", "Failure", "Denied", "Blocked", False)),
        ("foreign, passing", ("Refuse", "Failure", "Denied", "Dropped", False)),
        ("foreign, let pass", ("Open", "Success", "Allowed", "Allowed", False)),
        ("foreign, logged", ("Traffic", "Unknown", "Observed", "Logged", False)),
        ("nothing but a prefix", ("Traffic", "Unknown", "Observed", "Logged", False)),
    ],
)
def test_an_event_claims_no_more_than_the_rule_did(name: str, told: tuple[Any, ...]) -> None:
    event = event_of(name)
    names = ("activity_name", "status", "action", "disposition", "is_alert")
    assert tuple(event[each] for each in names) == told
    assert ("attacks" in event) == (
        told[0] == "Refuse" and "src_endpoint" in event and name.startswith("tcp")
    )


def test_without_known_uplinks_nobody_says_which_way_a_forwarded_packet_went() -> None:
    forwarded = record(
        "ocsf-nft:sb1:forward:", in_interface="eth0", out_interface="nest0", **V4, **TCP
    )
    event = json.loads(
        Mapper(replace(CONTEXT, uplinks=frozenset()))
        .network_activity(Attempt.of(forwarded), processed_ns=NOW_NS)
        .to_json()
    )
    assert event["connection_info"]["direction"] == "Unknown"
    assert "status_code" not in event


@pytest.mark.parametrize(
    "details",
    [
        {"arp": {"operation": 2}},
        {"icmp_type": 3, "icmp_code": 13},
        {"icmp_type": 1, "icmp_code": 1},
    ],
    ids=["arp reply", "own refusal", "own refusal over ip6"],
)
def test_what_a_kernel_answers_by_itself_is_no_alert(details: dict[str, Any]) -> None:
    is_arp = "arp" in details
    packet: dict[str, Any] = {"ethertype": 0x0806} if is_arp else {**V4, "protocol": 1}
    if details.get("icmp_type") == 1:
        packet = {**V6, "protocol": 58}
    prefix = "ocsf-nft:sb1:link:" if is_arp else "ocsf-nft:sb1:egress:"
    for uid, severity in ((None, "Informational"), (1000, "Medium")):
        said = record(prefix, out_interface="sb0", uid=uid, details=details, **packet)
        event = json.loads(MAPPER.network_activity(Attempt.of(said), processed_ns=NOW_NS).to_json())
        assert event["severity"] == severity
        assert ("attacks" in event) == (uid is not None)


@pytest.mark.parametrize(
    ("facts", "known"),
    [
        ({"protocol": 6, "tcp_flags": 0x02}, True),
        ({"protocol": 6, "tcp_flags": 0xC2}, True),
        ({"protocol": 6, "tcp_flags": 0x12}, False),
        ({"protocol": 6, "tcp_flags": 0x06}, False),
        ({"protocol": 6}, False),
        ({"protocol": 17}, False),
        ({"protocol": 1, "details": {"icmp_type": 8}}, True),
        ({"protocol": 1, "details": {"icmp_type": 0}}, False),
        ({"protocol": 58, "details": {"icmp_type": 128}}, True),
    ],
)
def test_the_initiator_is_known_when_the_packet_proves_it(
    facts: dict[str, Any], known: bool
) -> None:
    said = record(**V4, **OUT, **facts)
    event = MAPPER.network_activity(Attempt.of(said), processed_ns=NOW_NS)
    assert event.is_src_dst_assignment_known is known


def test_housekeeping_that_would_leave_the_link_is_none() -> None:
    said = record(**V6, **OUT, protocol=58, details={"icmp_type": 133, "icmp_code": 0})
    assert MAPPER.network_activity(Attempt.of(said), processed_ns=NOW_NS).severity == "Medium"


@pytest.mark.parametrize(("uid", "severity"), [(None, "Informational"), (0, "Medium")])
def test_what_a_program_sends_is_no_housekeeping(uid: int | None, severity: str) -> None:
    facts = V6 | {"destination": "ff02::16"}
    said = record(**facts, **OUT, protocol=58, uid=uid, details={"icmp_type": 143, "icmp_code": 0})
    assert MAPPER.network_activity(Attempt.of(said), processed_ns=NOW_NS).severity == severity


def test_cloud_metadata_that_asks_us_is_not_an_attempt_to_reach_it() -> None:
    facts = V4 | {"destination": "169.254.169.254"}
    said = record("ocsf-nft:sb1:ingress:", **facts, **TCP, in_interface="sb0")
    assert MAPPER.network_activity(Attempt.of(said), processed_ns=NOW_NS).severity == "Medium"
