from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.ip_text import packed
from ocsf_nft.ocsf.identifiers import community_id, event_uid, flow_uid, stable_uid
from tests.conformance.corpus import OUT, TCP, USER, V4, record
from tests.strategies import HOSTILE_TEXT, PORTS

LOGGED = record(**V4, **TCP, **OUT, **USER)


def test_uid_is_the_uuid_of_the_standard() -> None:
    namespace = UUID("6f1d2c5e-8a44-5f0b-9a35-0c5f7e0d4b61")
    assert event_uid("kmsg:boot:1") == str(uuid5(namespace, "4001:kmsg:boot:1"))


def test_uids_never_change_between_versions() -> None:
    assert event_uid("kmsg:boot:1") == "b34fa881-4170-572a-b168-d36cd8588703"
    assert flow_uid(LOGGED) == "621aa0d8-9abb-5b74-800a-c055b5395d44"


@given(
    parts=st.lists(
        HOSTILE_TEXT | st.text('\x7f\x1f\t"\\/ab') | st.none() | st.integers(-(1 << 65), 1 << 65)
    )
)
def test_uid_is_computed_from_the_json_that_python_writes(parts: list[Any]) -> None:
    written = json.dumps(parts, separators=(",", ":"))
    assert stable_uid(*parts) == str(uuid5(UUID("6f1d2c5e-8a44-5f0b-9a35-0c5f7e0d4b61"), written))


@given(one=HOSTILE_TEXT, other=HOSTILE_TEXT)
def test_other_parts_give_another_uid(one: str, other: str) -> None:
    assert (stable_uid(one) == stable_uid(other)) == (one == other)
    assert stable_uid(one, other) != stable_uid(one + other)
    assert stable_uid(one, None) != stable_uid(one)


def test_a_number_is_not_its_text() -> None:
    assert stable_uid(1) != stable_uid("1")


@pytest.mark.parametrize(
    "same", [{"source_port": 9}, {"length": 9}, {"time_ns": 9}, {"gid": 9}, {"details": {"a": 1}}]
)
def test_records_of_one_attempt_share_their_uid(same: dict[str, Any]) -> None:
    assert flow_uid(replace(LOGGED, **same)) == flow_uid(LOGGED)


@pytest.mark.parametrize(
    "other",
    [
        {"sandbox": "sb2"},
        {"sandbox": None},
        {"rule": "link"},
        {"uid": 0},
        {"uid": None},
        {"protocol": 17},
        {"destination": "203.0.113.8"},
        {"destination_port": 80},
    ],
)
def test_another_attempt_has_another_uid(other: dict[str, Any]) -> None:
    assert flow_uid(replace(LOGGED, **other)) != flow_uid(LOGGED)


#: Test vectors of the specification and of its reference implementation, seed 0: protocol,
#: addresses, ports (of ICMP: type and code), Community ID.
VECTORS = [
    (6, "128.232.110.120", "66.35.250.204", 34855, 80, "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
    (6, "66.35.250.204", "128.232.110.120", 80, 34855, "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
    (6, "10.0.0.1", "10.0.0.2", 10, 11569, "1:SXBGMX1lBOwhhoDrZynfROxnhnM="),
    (6, "192.168.1.42", "192.168.1.42", 42, 41, "1:eRcf7I/xocOxnYo5pbJBV5NhVm0="),
    (6, "192.168.1.42", "192.168.1.42", 41, 42, "1:eRcf7I/xocOxnYo5pbJBV5NhVm0="),
    (
        6,
        "2001:470:e5bf:dead:4957:2174:e82c:4887",
        "2607:f8b0:400c:c03::1a",
        63943,
        25,
        "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4=",
    ),
    (17, "192.168.1.52", "8.8.8.8", 54585, 53, "1:d/FP5EW3wiY1vCndhwleRRKHowQ="),
    (17, "8.8.8.8", "192.168.1.52", 53, 54585, "1:d/FP5EW3wiY1vCndhwleRRKHowQ="),
    (132, "192.168.170.8", "192.168.170.56", 7, 80, "1:jQgCxbku+pNGw8WPbEc/TS/uTpQ="),
    (132, "192.168.170.56", "192.168.170.8", 80, 7, "1:jQgCxbku+pNGw8WPbEc/TS/uTpQ="),
    (132, "192.168.170.8", "192.168.170.56", 7, 7, "1:MP2EtRCAUIZvTw6MxJHLV7N7JDs="),
    (1, "192.168.0.89", "192.168.0.1", 8, 0, "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="),
    (1, "192.168.0.1", "192.168.0.89", 0, 8, "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="),
    (1, "192.168.0.1", "192.168.0.89", 0, 20, "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="),
    # A message type without a partner: the code counts, and so does the direction.
    (1, "192.168.0.89", "192.168.0.1", 20, 0, "1:3o2RFccXzUgjl7zDpqmY7yJi8rI="),
    (1, "192.168.0.89", "192.168.0.1", 20, 1, "1:tz/fHIDUHs19NkixVVoOZywde+I="),
    (
        58,
        "fe80::200:86ff:fe05:80da",
        "fe80::260:97ff:fe07:69ea",
        135,
        0,
        "1:dGHyGvjMfljg6Bppwm3bg0LO8TY=",
    ),
    (
        58,
        "3ffe:507:0:1:200:86ff:fe05:80da",
        "3ffe:507:0:1:260:97ff:fe07:69ea",
        3,
        0,
        "1:/OGBt9BN1ofenrmSPWYicpij2Vc=",
    ),
    (58, "fe80::260:97ff:fe07:69ea", "ff02::1", 134, 0, "1:pkvHqCL88/tg1k4cPigmZXUtL00="),
    # A protocol without ports.
    (46, "1.2.3.4", "5.6.7.8", None, None, "1:ikv3kmf89luf73WPz1jOs49S768="),
]


@pytest.mark.parametrize(
    ("protocol", "source", "destination", "first", "second", "expected"), VECTORS
)
def test_ids_equal_the_published_test_vectors(
    protocol: int,
    source: str,
    destination: str,
    first: int | None,
    second: int | None,
    expected: str,
) -> None:
    facts: dict[str, Any] = {
        "ip_version": 6 if ":" in source else 4,
        "source": source,
        "destination": destination,
    }
    if protocol in {1, 58}:
        sent = record(**facts, protocol=protocol, details={"icmp_type": first, "icmp_code": second})
    else:
        sent = record(**facts, protocol=protocol, source_port=first, destination_port=second)
    assert community_id(sent, packed(source), packed(destination)) == expected


@pytest.mark.parametrize(
    "facts",
    [
        {"protocol": 6},
        {"protocol": 17, "source_port": 1},
        {"protocol": 1},
        {"protocol": 58, "details": {"icmp_type": 128}},
        {"protocol": 1, "details": {"icmp_type": "8", "icmp_code": 0}},
        {"protocol": 1, "details": {"icmp_type": 8, "icmp_code": 1 << 70}},
        {"protocol": 1, "details": {"icmp_type": -1, "icmp_code": 0}},
        {"protocol": 6, "source_port": 1, "destination_port": 2, "source": "nowhere"},
        {},
    ],
)
def test_record_with_missing_data_has_no_id(facts: dict[str, Any]) -> None:
    sent = record(**(V4 | facts))
    assert community_id(sent, packed(sent.source), packed(sent.destination)) is None


@given(port=PORTS)
def test_both_directions_of_a_flow_have_one_id(port: int) -> None:
    there = record(**V4, protocol=6, source_port=port, destination_port=443)
    back = record(**V4, protocol=6, source_port=443, destination_port=port)
    one, other = b"\x0a\0\0\1", b"\x0a\0\0\2"
    assert community_id(there, one, other) == community_id(back, other, one)
