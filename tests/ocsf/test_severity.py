from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.finding_settings import FindingSettings
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.severity import SeverityRule
from tests.conformance.corpus import ATTEMPTS, CONTEXT, RECORDS
from tests.ocsf.mapped import event_of


def severity_of(name: str, *rules: SeverityRule) -> str:
    severity = event_of(name, Mapper(replace(CONTEXT, severities=rules)))["severity"]
    assert isinstance(severity, str)
    return severity


@pytest.mark.parametrize(
    ("facts", "is_about"),
    [
        ({}, True),
        ({"sandbox": "sb1"}, True),
        ({"sandbox": "sb2"}, False),
        ({"rule": "egress"}, True),
        ({"rule": "forward"}, False),
        ({"protocol": 6}, True),
        ({"protocol": 17}, False),
        ({"port": 443}, True),
        ({"port": 80}, False),
        ({"uid": 1000}, True),
        ({"uid": 0}, False),
        ({"destination": ip_network("203.0.113.0/24")}, True),
        ({"destination": ip_network("203.0.113.7/32")}, True),
        ({"destination": ip_network("198.51.100.0/24")}, False),
        ({"destination": ip_network("::/0")}, False),
        ({"protocol": 6, "port": 443, "uid": 1000, "rule": "egress", "sandbox": "sb1"}, True),
        ({"protocol": 6, "port": 443, "uid": 1001}, False),
    ],
)
def test_rule_applies_if_all_its_conditions_match(facts: dict[str, Any], is_about: bool) -> None:
    rule = SeverityRule(severity=Severity.CRITICAL, **facts)
    assert rule.matches(RECORDS["tcp4"]) == is_about
    assert severity_of("tcp4", rule) == ("Critical" if is_about else "Medium")


def test_first_rule_that_applies_decides() -> None:
    low = SeverityRule(severity=Severity.LOW, port=443)
    assert severity_of("tcp4", low, SeverityRule(severity=Severity.HIGH)) == "Low"
    assert severity_of("udp dns", low, SeverityRule(severity=Severity.HIGH)) == "High"


@pytest.mark.parametrize("name", ["no address", "link 88b5", "nothing but a prefix"])
def test_record_without_an_address_is_in_no_network(name: str) -> None:
    anywhere = SeverityRule(severity=Severity.CRITICAL, destination=ip_network("0.0.0.0/0"))
    assert severity_of(name, anywhere) != "Critical"


def test_severity_rule_takes_a_foreign_address_that_is_none_for_outside_of_networks() -> None:
    anywhere = SeverityRule(severity=Severity.CRITICAL, destination=ip_network("::/0"))
    assert not anywhere.matches(replace(RECORDS["tcp4"], destination="fe80::x"))
    assert anywhere.matches(replace(RECORDS["tcp4"], destination="fe80::1"))


def test_alert_is_an_attempt_of_at_least_that_severity() -> None:
    mapper = Mapper(replace(CONTEXT, severities=(SeverityRule(severity=Severity.LOW),)))
    assert event_of("metadata4", mapper)["is_alert"] is False


@pytest.mark.parametrize(
    ("severity", "packets", "is_reached"),
    [
        (Severity.HIGH, 1, True),
        (Severity.CRITICAL, 1, True),
        (Severity.MEDIUM, 9, False),
        (Severity.MEDIUM, 10, True),
        (Severity.LOW, 1_000_000, False),
        (Severity.INFORMATIONAL, 1_000_000, False),
    ],
)
def test_threshold_is_reached_by_severity_or_by_number(
    severity: Severity, packets: int, is_reached: bool
) -> None:
    assert FindingSettings().is_finding(severity, packets) == is_reached


def test_aggregate_has_the_severity_of_its_rule() -> None:
    many = ATTEMPTS["many of egress, in full"]
    low = SeverityRule(severity=Severity.LOW, uid=1000)
    for rules, severity in (((), Severity.MEDIUM), ((low,), Severity.LOW)):
        event = Mapper(replace(CONTEXT, severities=rules)).network_activity(many, processed_ns=0)
        assert event.severity_id is severity


def test_one_record_is_an_attempt_without_a_rule() -> None:
    assert (
        Mapper(CONTEXT).network_activity(Attempt.of(RECORDS["tcp4"]), processed_ns=0).severity_id
        is Severity.MEDIUM
    )
