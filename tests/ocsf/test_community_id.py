from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from ocsf_nft.ip_text import packed
from ocsf_nft.ocsf import community_id
from tests.conformance.corpus import V4, record
from tests.strategies import PORTS

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
    assert community_id.of_record(sent, packed(source), packed(destination)) == expected


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
    assert community_id.of_record(sent, packed(sent.source), packed(sent.destination)) is None


@given(port=PORTS)
def test_both_directions_of_a_flow_have_one_id(port: int) -> None:
    one = community_id.community_id(6, b"\x0a\0\0\1", b"\x0a\0\0\2", (port, 443))
    other = community_id.community_id(6, b"\x0a\0\0\2", b"\x0a\0\0\1", (443, port))
    assert one == other
