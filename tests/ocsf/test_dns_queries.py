"""DNS names in events: texts, attributes, DNS Activity, and findings."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ocsf_nft.attempt import Attempt, IncidentEnd
from ocsf_nft.ocsf.dns_queries import dns_activity, question_text, type_name
from ocsf_nft.ocsf.finding_settings import FindingSettings, TunnelThreshold
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.versions import at_version
from ocsf_nft.record import DnsQuestion, Record
from tests.conformance.corpus import (
    ATTEMPTS,
    CONTEXT,
    NOW_NS,
    QUESTIONS,
    RECORDS,
    TIME_NS,
    TUNNEL,
    V4,
    counter,
    window,
)
from tests.conformance.incidents import incident

MAPPER = Mapper(CONTEXT)
QUERY = RECORDS["dns query"]
UNUSUAL = RECORDS["dns query of an unusual name"]


def activity(attempt: Attempt) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(MAPPER.line(attempt, processed_ns=NOW_NS))
    return found


def finding(
    record: Record, questions: tuple[DnsQuestion, ...], mapper: Mapper = MAPPER
) -> dict[str, Any]:
    found = replace(incident(3, 60, 3), questions=questions)
    event = mapper.finding(
        replace(Attempt.of(record), incident=found, questions=questions[-2:]), processed_ns=NOW_NS
    )
    assert event is not None
    decoded: dict[str, Any] = json.loads(event.to_json())
    return decoded


def test_event_of_one_query_names_it() -> None:
    event = activity(Attempt.of(QUERY))
    assert event["message"] == (
        "Blocked UDP packet from uid 1000 in sandbox sb1 to 203.0.113.7:53 (domain): "
        "AAAA www.example.com; answered with an ICMP error"
    )
    assert event["unmapped"]["dns"] == {
        "queries": [{"hostname": "www.example.com", "type": "AAAA"}],
        "names": 1,
    }
    (observable,) = (each for each in event["observables"] if "enrichments" in each["name"])
    assert (observable["type_id"], observable["value"]) == (1, "www.example.com")
    assert event["enrichments"][0]["value"] == "www.example.com"


def test_event_of_several_queries_lists_twenty_and_counts_the_names() -> None:
    event = activity(ATTEMPTS["counted dns"])
    assert ": at least 22 DNS names;" in event["message"]
    dns = event["unmapped"]["dns"]
    assert (len(dns["queries"]), dns["names"]) == (20, 22)
    assert dns["queries"][:3] == [
        {"hostname": "www.example.com", "type": "A"},
        {"hostname": "www.example.com", "type": "AAAA"},
        {"hostname": "_tcp.a\\.b.example", "type": "SRV"},
    ]
    hostnames = [each["value"] for each in event["observables"] if "enrichments" in each["name"]]
    assert len(hostnames) == len(set(hostnames)) == 10


def test_long_name_is_whole_in_the_attributes_and_short_in_the_sentence() -> None:
    question = DnsQuestion("x" * 63 + ".example.com", 16)
    assert question_text(question) == f"TXT {'x' * 63}…"
    attempt = replace(Attempt.of(QUERY), questions=(question,))
    assert activity(attempt)["unmapped"]["dns"]["queries"][0]["hostname"] == question.name


def test_type_without_a_name_has_its_number() -> None:
    assert [type_name(number) for number in (1, 28, 65280)] == ["A", "AAAA", "TYPE65280"]


def test_dns_activity_has_one_event_for_each_question_and_counts_nothing() -> None:
    attempt = replace(ATTEMPTS["counted dns"], incident=incident())
    whole = MAPPER.network_activity(attempt, processed_ns=NOW_NS)
    events = list(MAPPER.dns_activities(attempt, processed_ns=NOW_NS))
    assert [each.query.hostname for each in events] == [each.name for each in QUESTIONS]
    assert {each.metadata.correlation_uid for each in events} == {whole.metadata.correlation_uid}
    uids = {each.metadata.uid for each in events}
    assert len(uids | {whole.metadata.uid}) == len(events) + 1
    again = MAPPER.dns_activities(attempt, processed_ns=NOW_NS + 10**12)
    assert [each.metadata.uid for each in again] == [each.metadata.uid for each in events]
    first = json.loads(events[0].to_json())
    assert not {"count", "traffic"} & first.keys()
    assert (first["type_uid"], first["action_id"], first["disposition_id"]) == (400301, 2, 2)
    assert first["observables"][0]["name"] == "query.hostname"
    assert first["message"].startswith("A www.example.com: Blocked 999 UDP packets")
    (only,) = MAPPER.dns_activities(Attempt.of(QUERY), processed_ns=NOW_NS)
    assert only.message == activity(Attempt.of(QUERY))["message"]
    assert not list(MAPPER.dns_activities(ATTEMPTS["counted tcp4"], processed_ns=NOW_NS))


@pytest.mark.parametrize("version", ["1.1.0", "1.3.0"])
def test_unusual_name_is_unmapped_in_an_older_version(version: str) -> None:
    event = MAPPER.network_activity(Attempt.of(UNUSUAL), processed_ns=NOW_NS)
    made = dns_activity(event, UNUSUAL.question)  # type: ignore[arg-type]
    older = at_version(json.loads(made.to_json()), version)
    assert "query" not in older
    assert older["unmapped"]["query"]["hostname"] == UNUSUAL.question.name  # type: ignore[union-attr]
    assert "query.hostname" not in {each["name"] for each in older["observables"]}
    found = at_version(finding(RECORDS["udp dns"], QUESTIONS), version)
    assert [("query" in each) for each in found["evidences"][:4]] == [True, True, False, True]
    names = {each["name"] for each in found["observables"]}
    assert "evidences[0].query.hostname" in names
    assert "evidences[2].query.hostname" not in names
    assert at_version(json.loads(made.to_json()), "1.4.0")["query"]["type"] == "TYPE65280"


def test_tunnel_is_a_finding_with_its_reasons() -> None:
    record = RECORDS["udp dns"]
    assert MAPPER.is_finding(record, 60, TUNNEL)
    assert not MAPPER.is_finding(record, 60, QUESTIONS)
    event = finding(record, TUNNEL)
    info = event["finding_info"]
    assert event["severity"] == "High"
    assert info["title"] == (
        "DNS tunnel to t.example.com blocked: uid 1000 in sandbox sb1 to 203.0.113.7:53 (domain)"
    )
    assert (
        "60 distinct names below t.example.com, 50 characters long on average, 4.0 bits a character"
    ) in info["desc"]
    assert info["analytic"]["uid"] == "ocsf-nft/dns-tunnel"
    assert "Decode some names" in event["remediation"]["desc"]
    (attack,) = event["attacks"]
    assert attack["sub_technique"]["uid"] == "T1071.004"
    assert info["attacks"] == event["attacks"]
    assert [each["query"]["hostname"] for each in event["evidences"]] == [
        question.name for question in TUNNEL[:10]
    ]
    assert event["unmapped"]["dns"] | {"queries": []} == {
        "queries": [], "names": 60, "domain": "t.example.com", "long_names": 60,
        "mean_length": 50.0, "entropy": 4.0,
    }  # fmt: skip
    names = [each["name"] for each in event["observables"] if each["type_id"] == 1]
    assert names[-1] == "evidences[9].query.hostname"
    assert "enrichments" not in event


def test_finding_with_ordinary_names_is_no_tunnel() -> None:
    event = finding(RECORDS["udp dns"], QUESTIONS[:2])
    assert (event["severity"], len(event["evidences"])) == ("Low", 2)
    assert "tunnel" not in event["finding_info"]["title"]
    assert "domain" not in event["unmapped"]["dns"]


def test_threshold_of_a_tunnel_is_configurable() -> None:
    mapper = Mapper(replace(CONTEXT, findings=FindingSettings(tunnel=TunnelThreshold(names=61))))
    assert not mapper.is_finding(RECORDS["udp dns"], 60, TUNNEL)


@pytest.mark.parametrize(
    "record",
    [
        counter(**V4, protocol=17, destination_port=5353),
        counter("ingress", **V4, protocol=17, destination_port=53),
    ],
)
def test_names_of_other_ports_and_inbound_names_are_no_tunnel(record: Record) -> None:
    assert not MAPPER.is_finding(record, 60, TUNNEL)


def test_ended_incident_of_a_tunnel_has_its_names() -> None:
    found = replace(incident(3, 60, 3), questions=TUNNEL)
    end = IncidentEnd(record=RECORDS["udp dns"], incident=found, end_ns=TIME_NS)
    event = MAPPER.finding(end, processed_ns=NOW_NS)
    assert event is not None
    assert event.unmapped is not None
    assert event.unmapped["dns"]["names"] == 60
    assert window(RECORDS["udp dns"]).questions == ()
