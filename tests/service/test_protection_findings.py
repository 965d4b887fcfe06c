"""Findings about the protection of a sandbox: created, updated, ended, limited."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.fence_state_events import Tampering
from ocsf_nft.ocsf.finding_parts import COLLECTION, COUNTER_MISMATCH, TAMPERING, FindingKind
from ocsf_nft.ocsf.operational_events import fault
from ocsf_nft.process import Process
from ocsf_nft.service.protection_findings import ProtectionFindings

if TYPE_CHECKING:
    from ocsf_nft.ocsf.events import Event

_SECOND = 1_000_000_000
_NFT = Tampering(changes="", process=Process(pid=7, name="nft"))


def event_at(seconds: float) -> Event:
    now_ns = round(1_767_225_600 * _SECOND + seconds * _SECOND)
    return fault(
        Context(), subject="it", cause="why", sandbox="sb", since_ns=now_ns, now_ns=now_ns,
        is_cleared=False,
    )  # fmt: skip


@pytest.fixture
def findings() -> ProtectionFindings:
    return ProtectionFindings(lambda _: Context(), lambda *_: None)


def emit(
    findings: ProtectionFindings,
    seconds: float,
    kind: FindingKind = COLLECTION,
    sandbox: str | None = "sb",
    **facts: Any,
) -> list[Any]:
    """Return the events after an event at ``seconds``."""
    facts.setdefault("severity", Severity.HIGH)
    return [json.loads(each) for each in findings.lines(event_at(seconds), kind, sandbox, **facts)]


def test_first_event_creates_a_finding_that_refers_to_it(findings: ProtectionFindings) -> None:
    event, finding = emit(findings, 0)
    assert (finding["activity_name"], finding["status"], finding["count"]) == ("Create", "New", 1)
    (related,) = finding["finding_info"]["related_events"]
    assert (related["uid"], related["type_uid"]) == (event["metadata"]["uid"], event["type_uid"])
    uid = finding["finding_info"]["uid"]
    assert event["metadata"]["correlation_uid"] == finding["metadata"]["correlation_uid"] == uid
    assert finding["resources"] == [{"name": "sb", "type": "sandbox"}]
    assert "attacks" not in finding


def test_finding_is_updated_at_most_every_ten_seconds(findings: ProtectionFindings) -> None:
    numbers = [len(emit(findings, seconds)) for seconds in (0, 1, 9.9, 10, 11, 20)]
    assert numbers == [2, 1, 1, 2, 1, 2]
    _, finding = emit(findings, 30)
    assert (finding["activity_name"], finding["count"]) == ("Update", 7)
    assert (
        finding["status_detail"] == "Active: 7 gaps so far, the last at 2026-01-01T00:00:30.000Z."
    )


def test_higher_severity_is_an_update_at_once(findings: ProtectionFindings) -> None:
    emit(findings, 0, severity=Severity.MEDIUM)
    _, finding = emit(findings, 1, severity=Severity.HIGH)
    assert (finding["severity"], finding["is_alert"]) == ("High", True)
    assert len(emit(findings, 2, severity=Severity.MEDIUM)) == 1
    _, finding = emit(findings, 11, severity=Severity.MEDIUM)
    assert finding["severity"] == "High"


@pytest.mark.parametrize(("pause", "activity"), [(600, "Update"), (600.1, "Create")])
def test_event_after_a_long_pause_begins_another_finding(
    findings: ProtectionFindings, pause: float, activity: str
) -> None:
    _, first = emit(findings, 0)
    _, later = emit(findings, pause)
    assert later["activity_name"] == activity
    is_same = later["finding_info"]["uid"] == first["finding_info"]["uid"]
    assert is_same == (activity == "Update")


def test_findings_of_each_sandbox_and_kind_are_separate(findings: ProtectionFindings) -> None:
    several = (("sb", COLLECTION), ("other", COLLECTION), (None, COLLECTION))
    created = [emit(findings, 0, kind, name) for name, kind in several]
    created.append(emit(findings, 0, COUNTER_MISMATCH))
    assert len({finding["finding_info"]["uid"] for _, finding in created}) == 4
    assert "resources" not in created[2][1]
    assert created[2][1]["finding_info"]["title"].endswith(": several sandboxes")


def test_tampering_has_its_process_and_technique(findings: ProtectionFindings) -> None:
    _, finding = emit(findings, 0, TAMPERING, tampering=_NFT)
    assert finding["actor"]["process"]["pid"] == 7
    assert finding["evidences"][0]["process"]["pid"] == 7
    assert finding["attacks"][0]["sub_technique"]["uid"] == "T1562.004"
    assert finding["finding_info"]["title"] == "Fence changed: nft[7], sandbox sb"
    _, finding = emit(findings, 10, TAMPERING, tampering=Tampering(changes=""))
    assert finding["actor"]["process"]["pid"] == 7, "the last known process stays"


def test_ended_finding_says_since_when(findings: ProtectionFindings) -> None:
    _, created = emit(findings, 0)
    emit(findings, 1)
    end_ns = round(1_767_225_607 * _SECOND)
    (line,) = findings.end(COLLECTION, "sb", "the counters are read again", time_ns=end_ns)
    finding = json.loads(line)
    assert finding["status_detail"] == (
        "Inactive since 2026-01-01T00:00:07.000Z: 2 gaps; the counters are read again."
    )
    assert (finding["activity_name"], finding["status"]) == ("Update", "New")
    assert finding["finding_info"]["uid"] == created["finding_info"]["uid"]
    assert findings.end(COLLECTION, "sb", "again", time_ns=end_ns) == []
    _, finding = emit(findings, 8)
    assert finding["activity_name"] == "Create"


def test_findings_of_an_ended_sandbox_are_removed(findings: ProtectionFindings) -> None:
    emit(findings, 0)
    emit(findings, 0, sandbox="other")
    findings.drop("sb")
    assert findings.end(COLLECTION, "sb", "over", time_ns=0) == []
    assert findings.end(COLLECTION, "other", "over", time_ns=0)
