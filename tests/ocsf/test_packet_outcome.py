from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf import packet_outcome
from ocsf_nft.ocsf.addresses import address_kind
from ocsf_nft.ocsf.enums import Direction
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
        ("foreign, allowed", "Inbound", None, "Allowed", "Informational"),
        ("foreign, logged", "Outbound", None, "Logged", "Informational"),
        ("foreign, of a sandbox", "Outbound", None, "Blocked", "Medium"),
        ("foreign, of a sandbox, allowed", "Outbound", None, "Allowed", "Informational"),
        ("nothing but a prefix", "Unknown", None, "Logged", "Informational"),
        ("foreign, no prefix", "Outbound", None, "Blocked", "Low"),
    ],
)
def test_each_kind_of_record_has_direction_outcome_and_severity(
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
    ("name", "expected"),
    [
        ("tcp4", ("Refuse", "Failure", "Denied", "Blocked", False)),
        ("tcp reset", ("Refuse", "Failure", "Denied", "Dropped", False)),
        ("foreign", ("Refuse", "Failure", "Denied", "Blocked", False)),
        ("foreign, passing", ("Refuse", "Failure", "Denied", "Dropped", False)),
        ("foreign, allowed", ("Open", "Success", "Allowed", "Allowed", False)),
        ("foreign, logged", ("Traffic", "Unknown", "Observed", "Logged", False)),
        ("nothing but a prefix", ("Traffic", "Unknown", "Observed", "Logged", False)),
    ],
)
def test_event_has_the_outcome_of_its_rule(name: str, expected: tuple[Any, ...]) -> None:
    event = event_of(name)
    names = ("activity_name", "status", "action", "disposition", "is_alert")
    assert tuple(event[each] for each in names) == expected
    assert "attacks" not in event


def test_direction_of_a_forwarded_packet_is_unknown_without_uplinks() -> None:
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
def test_answer_of_the_kernel_is_informational(details: dict[str, Any]) -> None:
    is_arp = "arp" in details
    packet: dict[str, Any] = {"ethertype": 0x0806} if is_arp else {**V4, "protocol": 1}
    if details.get("icmp_type") == 1:
        packet = {**V6, "protocol": 58}
    prefix = "ocsf-nft:sb1:link:" if is_arp else "ocsf-nft:sb1:egress:"
    for uid, severity in ((None, "Informational"), (1000, "Medium")):
        sent = record(prefix, out_interface="sb0", uid=uid, details=details, **packet)
        event = json.loads(MAPPER.network_activity(Attempt.of(sent), processed_ns=NOW_NS).to_json())
        assert event["severity"] == severity
        assert ("attacks" in event) == (is_arp and uid is not None)


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
    sent = record(**V4, **OUT, **facts)
    event = MAPPER.network_activity(Attempt.of(sent), processed_ns=NOW_NS)
    assert event.is_src_dst_assignment_known is known


def test_packet_that_would_leave_the_link_is_no_housekeeping() -> None:
    sent = record(**V6, **OUT, protocol=58, details={"icmp_type": 133, "icmp_code": 0})
    assert MAPPER.network_activity(Attempt.of(sent), processed_ns=NOW_NS).severity == "Medium"


@pytest.mark.parametrize(("uid", "severity"), [(None, "Informational"), (0, "Medium")])
def test_packet_of_a_program_is_no_housekeeping(uid: int | None, severity: str) -> None:
    facts = V6 | {"destination": "ff02::16"}
    sent = record(**facts, **OUT, protocol=58, uid=uid, details={"icmp_type": 143, "icmp_code": 0})
    assert MAPPER.network_activity(Attempt.of(sent), processed_ns=NOW_NS).severity == severity


@pytest.mark.parametrize(
    ("port", "severity", "code"),
    [(80, "High", "cloud-metadata-blocked"), (53, "Low", "dns-blocked")],
)
@pytest.mark.parametrize("address", ["168.63.129.16", "169.254.169.254"])
def test_dns_query_to_cloud_metadata_asks_for_no_credentials(
    address: str, port: int, severity: str, code: str
) -> None:
    facts = V4 | {"destination": address}
    sent = record(**facts, **OUT, protocol=17, source_port=4000, destination_port=port, uid=0)
    event = MAPPER.network_activity(Attempt.of(sent), processed_ns=NOW_NS)
    assert (event.severity, event.metadata.event_code) == (severity, code)
    assert (event.attacks is not None) is (severity == "High")


def test_packet_from_cloud_metadata_is_not_an_attempt_to_reach_it() -> None:
    facts = V4 | {"destination": "169.254.169.254"}
    sent = record("ocsf-nft:sb1:ingress:", **facts, **TCP, in_interface="sb0")
    assert MAPPER.network_activity(Attempt.of(sent), processed_ns=NOW_NS).severity == "Medium"


def test_icmp_error_is_never_answered() -> None:
    """RFC 1122 (3.2.2) lists the error types of ICMP; in ICMPv6 they are below 128 (RFC 4443)."""
    for packet, protocol, errors in (
        (V4, 1, {3, 4, 5, 11, 12}),
        (V6, 58, set(range(128))),
        (V4, 47, set()),
    ):
        destination = address_kind(packet["destination"])
        for kind in range(140):
            sent = record(**packet, **OUT, protocol=protocol, details={"icmp_type": kind})
            answered = packet_outcome.answer(sent, Direction.OUTBOUND, destination)
            expected = (
                packet_outcome.Answer.NOTHING
                if kind in errors
                else packet_outcome.Answer.PROHIBITED
            )
            assert answered is expected, (protocol, kind)


def test_housekeeping_is_what_kernels_send_to_their_link() -> None:
    """RFC 4861, RFC 2710 and RFC 3810 define the types; a VM may also solicit its neighbours."""
    for rule, kinds in (
        ("egress", {130, 131, 132, 133, 143}),
        ("vm-link", {130, 131, 132, 133, 135, 143}),
    ):
        found = set()
        for kind in range(256):
            sent = record(f"ocsf-nft:sb1:{rule}:", **V6, protocol=58, details={"icmp_type": kind})
            if packet_outcome.is_housekeeping(sent, address_kind("ff02::16")):
                found.add(kind)
        assert found == kinds
    solicitation = record(**V6, protocol=17, details={"icmp_type": 133})
    assert not packet_outcome.is_housekeeping(solicitation, address_kind("ff02::16"))
    for destination, is_near in (("fe80::1", True), ("ff02::2", True), ("2001:db8::1", False)):
        sent = record(**V6, protocol=58, details={"icmp_type": 133})
        assert packet_outcome.is_housekeeping(sent, address_kind(destination)) is is_near


def test_housekeeping_has_the_refusals_of_the_kernel_and_its_arp_replies() -> None:
    refusals = {(1, 3, 13), (58, 1, 1)}  # RFC 1812, RFC 4443
    for protocol in (1, 58):
        for kind in range(6):
            for code in range(16):
                packet = V4 if protocol == 1 else V6
                details = {"icmp_type": kind, "icmp_code": code}
                sent = record(**packet, protocol=protocol, details=details)
                is_refusal = (protocol, kind, code) in refusals
                assert (
                    packet_outcome.is_housekeeping(sent, address_kind("203.0.113.7")) is is_refusal
                )
    for rule, replies in (("link", {2}), ("vm-link", set())):
        for operation in range(5):
            sent = record(f"ocsf-nft:sb1:{rule}:", details={"arp": {"operation": operation}})
            assert packet_outcome.is_housekeeping(sent, None) is (operation in replies)


def test_name_resolution_is_known_by_its_ports() -> None:
    for port in (*range(1024), *range(5000, 6000)):
        is_of_names = port in {53, 137, 853, 5353, 5355}
        for protocol in (6, 17, 132):
            is_asked = is_of_names and protocol != 132
            asks = record(**V4, protocol=protocol, source_port=4000, destination_port=port)
            answers = record(**V4, protocol=protocol, source_port=port, destination_port=4000)
            outbound, inbound = Direction.OUTBOUND, Direction.INBOUND
            assert packet_outcome.is_name_resolution(asks, outbound) is is_asked
            assert packet_outcome.is_name_resolution(answers, inbound) is is_asked
            assert not packet_outcome.is_name_resolution(answers, outbound)


def test_tcp_flags_decide_the_answer_and_the_initiator() -> None:
    """RFC 9293: FIN is 1, SYN 2, RST 4 and ACK 16. A reset is never answered with a reset."""
    destination = address_kind(V4["destination"])
    for flags in range(512):
        sent = record(**V4, **OUT, protocol=6, tcp_flags=flags)
        expected = packet_outcome.Answer.NOTHING if flags & 4 else packet_outcome.Answer.RESET
        assert packet_outcome.answer(sent, Direction.OUTBOUND, destination) is expected
        is_known = bool(flags & 2) and not flags & 4 and not flags & 16
        assert packet_outcome.is_initiator_known(sent) is is_known
