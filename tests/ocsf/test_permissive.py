"""Events of a permissive fence: packets are reported as allowed, all else is as if refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ocsf_nft.attempt import Aggregation, Attempt, IncidentEnd
from ocsf_nft.ocsf import packet_outcome
from ocsf_nft.ocsf.fence_state_events import FenceState
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.oneline import plain, shorthand
from ocsf_nft.ocsf.operational_events import collection_gap
from ocsf_nft.ocsf.scan_findings import fan_out
from ocsf_nft.ocsf.versions import VERSIONS, line_at
from tests.conformance.corpus import (
    ALLOWED_ATTEMPTS,
    ALLOWED_RECORDS,
    ATTEMPTS,
    CONTEXT,
    NOW_NS,
    RECORDS,
    TIME_NS,
)
from tests.conformance.incidents import ENDED, GOING_ON, fan_out_of
from tests.ocsf.test_fence_state_events import state_event

MAPPER = Mapper(CONTEXT)
_ENDING = ", allowed"


def event_of(attempt: Attempt) -> dict[str, Any]:
    made = MAPPER.network_activity(attempt, processed_ns=NOW_NS)
    event: dict[str, Any] = json.loads(made.to_json())
    return event


def test_event_of_an_allowed_packet_differs_only_in_outcome(subtests: pytest.Subtests) -> None:
    of_the_outcome = {
        "activity_id", "activity_name", "type_uid", "type_name", "status_id", "status",
        "status_code", "status_detail", "action_id", "action", "disposition_id", "disposition",
        "message", "unmapped",
    }  # fmt: skip
    assert ALLOWED_RECORDS
    for name, record in ALLOWED_RECORDS.items():
        with subtests.test(name):
            allowed = event_of(Attempt.of(record))
            refused = event_of(Attempt.of(RECORDS[name.removesuffix(_ENDING)]))
            assert (allowed["activity_name"], allowed["status"]) == ("Open", "Success")
            assert (allowed["action"], allowed["disposition"]) == ("Observed", "Logged")
            assert allowed["status_code"] == "permissive"
            codes = [each["metadata"].pop("event_code") for each in (refused, allowed)]
            assert codes[1] == codes[0].replace("-blocked", "-allowed")
            # These include severity and technique, which are the same as for a refused attempt.
            for key in (allowed.keys() | refused.keys()) - of_the_outcome:
                assert allowed.get(key) == refused.get(key), key
            sentence = allowed["message"].removesuffix(", because the fence is permissive")
            assert sentence.startswith("Allowed ")
            assert sentence.split()[1:] == refused["message"].partition(";")[0].split()[1:]
            assert allowed["unmapped"]["prefix"].endswith(":permissive:")


def test_texts_of_an_allowed_packet_have_the_outcome_and_the_advice() -> None:
    event = event_of(Attempt.of(ALLOWED_RECORDS["tcp4, allowed"]))
    assert event["message"] == (
        "Allowed TCP connection from uid 1000 in sandbox sb1 to 203.0.113.7:443 (https), "
        "because the fence is permissive"
    )
    assert event["status_detail"] == (
        "The sandbox's fence is permissive and allowed this traffic, which it would block "
        "otherwise. Use the proxy: set "
        "HTTPS_PROXY=http://10.200.0.1:3128 and try again."
    )
    line = plain(shorthand(event))
    assert "  allowed (permissive)  " in line
    assert line.endswith("Use the proxy: set "
                         "HTTPS_PROXY=http://10.200.0.1:3128 and try again.")  # fmt: skip


def test_window_of_allowed_packets_is_not_called_refused(subtests: pytest.Subtests) -> None:
    assert ALLOWED_ATTEMPTS
    for name, attempt in ALLOWED_ATTEMPTS.items():
        with subtests.test(name):
            event = event_of(attempt)
            assert event["disposition"] == "Logged"
            for text in (event["message"], event["status_detail"]):
                found = [word for word in ("locked", "ropped", "refused") if word in text]
                assert not found, text
                assert "permissive" in text


def test_event_of_enforcing_fence_is_not_called_permissive() -> None:
    events = {name: json.dumps(event_of(attempt)) for name, attempt in ATTEMPTS.items()}
    assert events
    assert {name: text for name, text in events.items() if "permissive" in text} == {}


@pytest.mark.parametrize("why", ["many", "unplaced", "evicted"])
def test_aggregate_of_allowed_packets_has_the_reason(why: Any) -> None:
    attempt = replace(
        ALLOWED_ATTEMPTS["counted tcp4, allowed"], aggregation=Aggregation(reason=why)
    )
    detail = event_of(attempt)["status_detail"]
    assert "The sandbox's fence is permissive and allowed this traffic" in detail


@pytest.mark.parametrize("incidents", [GOING_ON, ENDED], ids=["going on", "ended"])
def test_finding_of_allowed_packets_has_the_reason(
    incidents: dict[str, Attempt | IncidentEnd], subtests: pytest.Subtests
) -> None:
    found = {}
    for name, incident in incidents.items():
        if _ENDING not in name:
            continue
        with subtests.test(name):
            found[name] = allowed = MAPPER.finding(incident, processed_ns=NOW_NS)
            other = incidents[name.removesuffix(_ENDING)]
            refused = MAPPER.finding(other, processed_ns=NOW_NS)
            assert (allowed is None) == (refused is None)
            if allowed is None or refused is None:
                continue
            assert (allowed.action, allowed.disposition) == ("Observed", "Logged")
            assert allowed.severity == refused.severity
            assert allowed.attacks == refused.attacks
            title = refused.finding_info.title.replace("blocked", "allowed")
            assert allowed.finding_info.title == title
            assert allowed.finding_info.desc.endswith(
                "The fence is permissive and allowed all of it, which it would block otherwise."
            )
    assert any(found.values())


@pytest.mark.parametrize("version", VERSIONS)
def test_allowed_packet_is_observed_or_allowed_in_each_version(version: str) -> None:
    line = MAPPER.line(
        Attempt.of(ALLOWED_RECORDS["tcp4, allowed"]), processed_ns=NOW_NS, version=version
    )
    stages: tuple[Any, ...] = ("begun", "goes on", "ended")
    found = [
        json.loads(line_at(fan_out(CONTEXT, each, processed_ns=NOW_NS).to_json(), version))
        for each in (fan_out_of(stage=stage, verdict="permit") for stage in stages)
    ]
    observed = VERSIONS.index(version) >= VERSIONS.index("1.4.0")
    for event in (json.loads(line), *found):
        assert event["action"] == ("Observed" if observed else "Allowed")
        assert event["disposition"] == "Logged"
    for event in found:
        assert event["message"].endswith(", because the fence is permissive")
        assert event["finding_info"]["title"].startswith("Scan allowed: ")


@pytest.mark.parametrize(
    ("state", "severity", "status"),
    [
        (FenceState.PERMISSIVE, "Low", "Success"),
        (FenceState.PERMISSIVE_DEGRADED, "High", "Failure"),
    ],
)
def test_state_event_of_a_permissive_fence_has_its_mode(
    state: FenceState, severity: str, status: str
) -> None:
    event = state_event(FenceState.ABSENT, state)
    assert (event.severity, event.status) == (severity, status)
    assert (event.state_id, event.state) == (99, state.value)
    assert event.security_level == "At Risk"
    assert "is active and permissive" in event.message


@pytest.mark.parametrize(
    ("packets", "allowed", "meanwhile"),
    [
        (1, 1, "1 packet was allowed (the fence is permissive); later events count it."),
        (7, 7, "7 packets were allowed (the fence is permissive); later events count them."),
        (8, 7, "1 packet was blocked and 7 packets were allowed (the fence is permissive); "),
    ],
)
def test_unread_packets_that_were_allowed_are_not_called_refused(
    packets: int, allowed: int, meanwhile: str
) -> None:
    event = collection_gap(
        CONTEXT, sandbox="web", packets=packets, allowed=allowed, since_ns=TIME_NS,
        until_ns=TIME_NS + 10**10, reason="stopped", processed_ns=NOW_NS,
    )  # fmt: skip
    assert event.count == packets
    assert meanwhile in event.message


def test_only_our_own_rules_are_permissive() -> None:
    record = ALLOWED_RECORDS["tcp4, allowed"]
    assert packet_outcome.is_ours(record)
    assert packet_outcome.is_attempt(record)
    assert packet_outcome.foreign_verdict(record) is None
    assert not packet_outcome.is_ours(RECORDS["foreign, of a sandbox, allowed"])
