"""Attempts of several packets, attempts known from a counter only, and aggregated flows."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ocsf_nft.attempt import Aggregation, Attempt
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.mapper import Mapper
from tests.conformance.corpus import (
    ATTEMPTS,
    CONTEXT,
    HTTPS,
    NOW_NS,
    RECORDS,
    SAMPLE,
    TIME_NS,
    TO4,
    counter,
    window,
)
from tests.ocsf.mapped import MAPPER


def rendered(attempt: Attempt, mapper: Mapper = MAPPER) -> Any:
    return json.loads(mapper.network_activity(attempt, processed_ns=NOW_NS).to_json())


def test_window_has_its_packets_and_its_start_and_end() -> None:
    event = rendered(ATTEMPTS["logged, many"])
    assert event["count"] == 999
    assert event["traffic"] == {"packets": 999, "bytes": 59_940}
    assert (event["start_time"], event["end_time"]) == (1767225600000, 1767225605000)
    assert event["duration"] == 5000
    assert event["time"] == event["end_time"]
    assert event["src_endpoint"]["port"] == 41254
    assert event["connection_info"]["tcp_flags"] == 2


def test_other_attributes_of_a_window_are_those_of_its_first_packet() -> None:
    attempt = ATTEMPTS["logged, many"]
    one, many = rendered(Attempt.of(attempt.record)), rendered(attempt)
    differs = {name for name in one | many if one.get(name) != many.get(name)}
    assert differs == {"time", "end_time", "duration", "count", "traffic", "message"}


def test_one_packet_of_a_longer_window_has_its_own_time() -> None:
    logged = window(RECORDS["tcp4"], 1, start_ns=TIME_NS - 2_000_000_000)
    event = rendered(logged)
    assert event["time"] == 1767225600000
    assert (event["start_time"], event["end_time"]) == (1767225598000, 1767225605000)


def test_event_of_two_packets_has_the_time_of_the_windows_end() -> None:
    event = rendered(window(RECORDS["tcp4"], 2, start_ns=TIME_NS - 2_000_000_000))
    assert event["time"] == event["end_time"] == 1767225605000
    assert "Blocked 2 TCP packets from " in event["message"]


def test_a_window_without_length_has_no_duration() -> None:
    assert "duration" not in rendered(ATTEMPTS["within a millisecond"])
    assert "duration" not in rendered(Attempt.of(RECORDS["tcp4"]))


def test_bytes_that_were_not_counted_are_left_out() -> None:
    assert rendered(ATTEMPTS["no bytes"])["traffic"] == {"packets": 999}


def test_each_window_has_a_unique_uid_and_they_share_a_correlation_uid() -> None:
    record = counter(**TO4, **HTTPS, uid=1000)
    later = replace(record, origin=replace(record.origin, identity="1f0c/egress/1016"))
    first, second = (rendered(window(each))["metadata"] for each in (record, later))
    assert first["uid"] != second["uid"]
    assert first["correlation_uid"] == second["correlation_uid"]
    logged = rendered(Attempt.of(RECORDS["tcp4"]))["metadata"]
    assert logged["correlation_uid"] == first["correlation_uid"]


def test_data_unknown_to_a_counter_is_left_out() -> None:
    event = rendered(ATTEMPTS["counted tcp4"])
    assert event["src_endpoint"] == {"name": "sb1"}
    assert event["connection_info"] == {
        "direction_id": 2,
        "direction": "Outbound",
        "protocol_num": 6,
        "protocol_name": "tcp",
        "protocol_ver_id": 4,
        "protocol_ver": "Internet Protocol version 4 (IPv4)",
    }
    assert event["dst_endpoint"]["port"] == 443
    assert event["proxy_endpoint"] == {"ip": "10.200.0.1", "port": 3128}
    assert event["metadata"]["log_format"] == "nf_tables"
    assert event["unmapped"] == {"prefix": "ocsf-nft:sb1:egress:", "sandbox": "sb1"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "counted tcp4",
            (
                "Blocked 999 TCP packets from uid 1000 in sandbox sb1 to 203.0.113.7:443 "
                "(https); answered with a TCP reset"
            ),
        ),
        (
            "counted once",
            (
                "Blocked TCP packet from uid 1000 in sandbox sb1 to 203.0.113.7:443 "
                "(https); answered with a TCP reset"
            ),
        ),
        (
            "counted without a port",
            (
                "Blocked 999 ICMP packets from sandbox sb1 to 203.0.113.7; answered with an "
                "ICMP error"
            ),
        ),
        ("counted arp", "Dropped 12 ARP frames from sandbox sb1"),
        (
            "counted 88b5",
            "Dropped 12 ethertype 0x88b5 frames from uid 0 in sandbox sb1",
        ),
        (
            "counted ingress",
            (
                "Dropped 999 TCP packets from an unknown sender to 203.0.113.7:443 "
                "(https) in sandbox sb1"
            ),
        ),
        (
            "counted forward",
            (
                "Blocked 999 TCP packets from an unknown sender to 203.0.113.7:443 "
                "(https) through sandbox sb1"
            ),
        ),
        (
            "logged, forwarded",
            (
                "Blocked 2 TCP packets from 10.200.0.2:41254 to "
                "203.0.113.7:443 (https) through sandbox sb1; answered with a TCP reset"
            ),
        ),
        (
            "logged, foreign",
            (
                "Blocked 3 TCP packets from 10.200.0.2:41254 to "
                '203.0.113.7:443 (https) by rule "[UFW BLOCK]"'
            ),
        ),
        (
            "many of egress, in full",
            (
                "Blocked 934465 TCP packets in at least 65000 other flows from uid 1000 "
                "in sandbox sb1"
            ),
        ),
        ("many of egress, nothing", "Blocked 934465 packets in other flows from sandbox sb1"),
        (
            "unplaced of egress, nothing",
            "Blocked 934465 packets in unknown flows from sandbox sb1",
        ),
        (
            "unplaced of link, a frame",
            ("Dropped 934465 ethertype 0x88b5 packets in at least 1 other flow from sandbox sb1"),
        ),
        (
            "evicted of ingress, nothing",
            ("Dropped 934465 packets in unknown flows to sandbox sb1"),
        ),
        (
            "many of forward, in full",
            ("Blocked 934465 TCP packets in at least 65000 other flows through sandbox sb1"),
        ),
    ],
)
def test_message_has_the_number_of_packets(name: str, message: str) -> None:
    assert rendered(ATTEMPTS[name])["message"] == message


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"protocol": 17, "ip_version": 4}, "UDP packet"),
        ({"ip_version": 6}, "IPv6 packet"),
        ({"ethertype": 0x0806}, "ARP packet"),
        ({}, "packet"),
    ],
)
def test_single_packet_of_an_aggregate_is_named_by_its_kind(
    facts: dict[str, Any], kind: str
) -> None:
    event = rendered(window(counter(**facts), 1, aggregation=Aggregation(reason="unplaced")))
    assert event["message"] == f"Blocked 1 {kind} in unknown flows from sandbox sb1"


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        (
            "many of egress, in full",
            "because uid 1000 has more flows than are reported one by one.",
        ),
        (
            "many of egress, nothing",
            "because an unknown user has more flows than are reported one by one.",
        ),
        (
            "unplaced of link, a frame",
            "sets of flows had no free entry. The sandbox's fence d",
        ),
        (
            "evicted of egress, nothing",
            "the kernel or another process deleted the entries of their flows",
        ),
        (
            "many of egress, in full",
            "The sandbox may send only TCP to the proxy at http://10.200.0.1:3128.",
        ),
        ("many of ingress, nothing", "The sandbox may receive only replies of its proxy."),
    ],
)
def test_detail_has_the_reason_of_the_aggregation(name: str, detail: str) -> None:
    assert detail in rendered(ATTEMPTS[name])["status_detail"]


def test_proxy_is_named_if_the_address_family_is_unknown() -> None:
    event = rendered(ATTEMPTS["evicted of egress, nothing"])
    assert event["proxy_endpoint"] == {"ip": "10.200.0.1", "port": 3128}
    assert "http://10.200.0.1:3128" in event["status_detail"]
    assert "proxy_endpoint" not in rendered(ATTEMPTS["many of ingress, nothing"])


def test_without_a_proxy_the_detail_names_none() -> None:
    event = rendered(ATTEMPTS["many of egress, in full"], Mapper(Context()))
    assert event["status_detail"].endswith(
        "The sandbox may connect only to its proxy: use the proxy."
    )
    assert "proxy_endpoint" not in event


def test_several_flows_have_no_single_destination() -> None:
    event = rendered(ATTEMPTS["many of egress, in full"])
    assert event["src_endpoint"] == {"name": "sb1"}
    assert "dst_endpoint" not in event
    assert "status_code" not in event
    assert event["severity"] == "Medium"
    assert event["is_alert"] is False
    assert [one["technique"]["uid"] for one in event["attacks"]] == ["T1046"]


def test_several_flows_are_named_by_a_sample() -> None:
    aggregation = rendered(ATTEMPTS["many of egress, in full"])["unmapped"]["aggregation"]
    assert (aggregation["reason"], aggregation["flows"], len(aggregation["sample"])) == (
        "many",
        65_000,
        len(SAMPLE),
    )
    assert aggregation["sample"][0] == {
        "uid": 1000,
        "protocol": 6,
        "destination": "198.51.100.0",
        "port": 443,
    }
    assert aggregation["sample"][-3:] == [
        {"uid": 1000, "protocol": 17, "destination": "2001:db8::7", "port": 0},
        {"protocol": 1, "destination": "203.0.113.7"},
        {"uid": 0xFFFF_FFFE, "ethertype": 0x88B5},
    ]
    assert rendered(ATTEMPTS["evicted of egress, nothing"])["unmapped"]["aggregation"] == {
        "reason": "evicted"
    }


@pytest.mark.parametrize("name", ["unplaced of egress, in full", "many of egress, nothing"])
def test_flows_of_possibly_several_users_are_no_scan(name: str) -> None:
    assert "attacks" not in rendered(ATTEMPTS[name])


def test_aggregate_has_at_least_medium_severity() -> None:
    """A name query is noise; a thousand without known flows are not."""
    names = counter(ip_version=4, protocol=17, destination_port=53)
    assert rendered(window(names))["severity"] == "Low"
    assert (
        rendered(window(names, aggregation=Aggregation(reason="unplaced")))["severity"] == "Medium"
    )


@pytest.mark.parametrize(
    "other",
    [
        ATTEMPTS["unplaced of egress, in full"],
        ATTEMPTS["many of link, in full"],
        window(counter(uid=1001), aggregation=Aggregation(reason="many")),
        window(counter(uid=1000)),
        Attempt.of(RECORDS["tcp4"]),
    ],
)
def test_aggregates_of_one_user_share_a_correlation_uid(other: Attempt) -> None:
    one = rendered(ATTEMPTS["many of egress, in full"])["metadata"]["correlation_uid"]
    same = window(counter(uid=1000), 5, aggregation=Aggregation(reason="many", flows=3))
    assert rendered(same)["metadata"]["correlation_uid"] == one
    assert rendered(other)["metadata"]["correlation_uid"] != one


def test_counter_without_an_interface_has_an_unknown_direction() -> None:
    event = rendered(ATTEMPTS["counted forward"], Mapper(CONTEXT))
    assert event["connection_info"]["direction"] == "Unknown"
    assert event["dst_endpoint"]["ip"] == "203.0.113.7"
    assert "src_endpoint" not in event
    assert rendered(ATTEMPTS["counted forward of nothing"])["src_endpoint"] == {"name": "sb1"}
