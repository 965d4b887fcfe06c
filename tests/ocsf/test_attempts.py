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
    assert ", 2 times; " in event["message"]


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
                "uid 1000 in sandbox sb1 tried TCP to 203.0.113.7:443 (https) directly, 999 times; "
                "refused with a reset"
            ),
        ),
        (
            "counted once",
            (
                "uid 1000 in sandbox sb1 tried TCP to 203.0.113.7:443 (https) "
                "directly; refused with a reset"
            ),
        ),
        (
            "counted without a port",
            "sandbox sb1 tried ICMP to 203.0.113.7 directly, 999 times; refused with an ICMP error",
        ),
        ("counted arp", "sandbox sb1 sent an ARP frame, 12 times; dropped without an answer"),
        (
            "counted 88b5",
            "uid 0 in sandbox sb1 sent a frame of type 0x88b5, 12 times; dropped without an answer",
        ),
        (
            "counted ingress",
            (
                "an unknown sender sent sandbox sb1 TCP to 203.0.113.7:443 (https), 999 times; "
                "dropped without an answer"
            ),
        ),
        (
            "counted forward",
            (
                "somebody tried to pass TCP to 203.0.113.7:443 (https) through sandbox "
                "sb1, 999 times; refused"
            ),
        ),
        (
            "logged, forwarded",
            (
                "10.200.0.2:41254, behind sandbox sb1, tried TCP to 203.0.113.7:443 "
                "(https) directly, "
                "2 times; refused with a reset"
            ),
        ),
        (
            "logged, foreign",
            (
                'TCP to 203.0.113.7:443 (https) from 10.200.0.2:41254 matched rule "[UFW '
                'BLOCK]", 3 times; refused'
            ),
        ),
        (
            "many of egress, in full",
            (
                "uid 1000 in sandbox sb1 sent 934465 packets (TCP) in at least 65000 other flows; "
                "refused"
            ),
        ),
        ("many of egress, nothing", "sandbox sb1 sent 934465 packets in other flows; refused"),
        (
            "unplaced of egress, nothing",
            "sandbox sb1 sent 934465 packets in flows that nobody knows; refused",
        ),
        (
            "unplaced of link, a frame",
            (
                "sandbox sb1 sent 934465 packets (frames of type 0x88b5) in at least 1 other flow; "
                "dropped without an answer"
            ),
        ),
        (
            "evicted of ingress, nothing",
            (
                "somebody sent sandbox sb1 934465 packets in flows that nobody knows; "
                "dropped without an answer"
            ),
        ),
        (
            "many of forward, in full",
            (
                "somebody tried to pass 934465 packets (TCP) through sandbox sb1 "
                "in at least 65000 other flows; refused"
            ),
        ),
    ],
)
def test_message_has_the_number_of_packets(name: str, message: str) -> None:
    assert rendered(ATTEMPTS[name])["message"] == message


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"protocol": 17, "ip_version": 4}, " (UDP)"),
        ({"ip_version": 6}, " (IPv6)"),
        ({"ethertype": 0x0806}, " (ARP)"),
        ({}, ""),
    ],
)
def test_single_packet_of_an_aggregate_is_named_by_its_kind(
    facts: dict[str, Any], kind: str
) -> None:
    event = rendered(window(counter(**facts), 1, aggregation=Aggregation(reason="unplaced")))
    assert event["message"] == (
        f"sandbox sb1 sent 1 packet{kind} in flows that nobody knows; refused"
    )


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("many of egress, in full", "because uid 1000 has more flows than are told one by one."),
        ("many of egress, nothing", "because somebody has more flows than are told one by one."),
        (
            "unplaced of link, a frame",
            "no place in the kernel's bounded sets of flows. They were d",
        ),
        ("evicted of egress, nothing", "they were, or somebody made it forget"),
        ("many of egress, in full", "Only TCP to the proxy at http://10.200.0.1:3128 may leave."),
        ("many of ingress, nothing", "Only replies of the sandbox's proxy may come in."),
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
    assert event["status_detail"].endswith("Only the sandbox's proxy may be reached: use it.")
    assert "proxy_endpoint" not in event


def test_several_flows_have_no_single_destination() -> None:
    event = rendered(ATTEMPTS["many of egress, in full"])
    assert event["src_endpoint"] == {"name": "sb1"}
    assert "dst_endpoint" not in event
    assert "status_code" not in event
    assert event["severity"] == "Medium"
    assert event["is_alert"] is True
    assert [one["technique"]["uid"] for one in event["attacks"]] == ["T1046"]


def test_several_flows_are_named_by_a_sample() -> None:
    merged = rendered(ATTEMPTS["many of egress, in full"])["unmapped"]["merged"]
    assert (merged["why"], merged["flows"], len(merged["sample"])) == ("many", 65_000, len(SAMPLE))
    assert merged["sample"][0] == {
        "uid": 1000,
        "protocol": 6,
        "destination": "198.51.100.0",
        "port": 443,
    }
    assert merged["sample"][-3:] == [
        {"uid": 1000, "protocol": 17, "destination": "2001:db8::7", "port": 0},
        {"protocol": 1, "destination": "203.0.113.7"},
        {"uid": 0xFFFF_FFFE, "ethertype": 0x88B5},
    ]
    assert rendered(ATTEMPTS["evicted of egress, nothing"])["unmapped"]["merged"] == {
        "why": "evicted"
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
