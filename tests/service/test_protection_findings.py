"""Findings about the protection of a sandbox: created, updated, ended, limited."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.fence_state_events import Tampering
from ocsf_nft.ocsf.finding_parts import COLLECTION, COUNTER_MISMATCH, TAMPERING, FindingKind
from ocsf_nft.ocsf.operational_events import fault
from ocsf_nft.ocsf.protection_findings import KINDS, ProtectionSeries, RelatedFact
from ocsf_nft.process import Process, brief
from ocsf_nft.service import finding_codec
from ocsf_nft.service.protection_findings import ProtectionFindings
from ocsf_nft.state.sealed import seal, unseal
from tests.strategies import HOSTILE_TEXT, PROCESSES

if TYPE_CHECKING:
    from ocsf_nft.ocsf.event_base import Event

_SECOND = 1_000_000_000
_NFT = Tampering(changes="", process=Process(pid=7, name="nft"))


def at(seconds: float) -> int:
    return round(1_767_225_600 * _SECOND + seconds * _SECOND)


def event_at(seconds: float) -> Event:
    now_ns = at(seconds)
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


def test_updates_come_after_growing_pauses(findings: ProtectionFindings) -> None:
    updates = [tenth for tenth in range(6_000) if len(emit(findings, tenth / 10)) == 2]
    assert updates == [0, 10, 30, 70, 150, 310, 630, *range(1_230, 6_000, 600)]
    _, finding = emit(findings, 660)
    assert (finding["activity_name"], finding["count"]) == ("Update", 6_001)
    assert finding["status_detail"] == (
        "Active: 6001 gaps so far, the last at 2026-01-01T00:11:00.000Z."
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
    *_, later = emit(findings, pause)
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
    _, finding = emit(findings, 10, TAMPERING, tampering=_NFT)
    assert finding["actor"]["process"]["pid"] == 7


@pytest.mark.parametrize(
    ("process", "title", "sentence"),
    [
        (None, "nft[7] and an unknown process", "1 change by an unknown process."),
        (Process(pid=8, name="sh"), "2 processes", "Processes: nft[7], sh[8]."),
    ],
)
def test_process_is_not_the_actor_of_changes_by_others(
    findings: ProtectionFindings, process: Process | None, title: str, sentence: str
) -> None:
    emit(findings, 0, TAMPERING, tampering=_NFT)
    _, finding = emit(findings, 10, TAMPERING, tampering=Tampering(changes="", process=process))
    assert "actor" not in finding
    assert finding["evidences"][0]["process"]["pid"] == 7
    assert finding["finding_info"]["title"] == f"Fence changed: {title}, sandbox sb"
    assert sentence in finding["finding_info"]["desc"]


def test_processes_of_a_finding_are_limited(findings: ProtectionFindings) -> None:
    for pid in range(100):
        tampering = Tampering(changes="", process=Process(pid=pid, name="nft"))
        emit(findings, pid / 100, TAMPERING, tampering=tampering)
    *_, finding = emit(findings, 60, TAMPERING, tampering=_NFT)
    assert [each["process"]["pid"] for each in finding["evidences"]] == [*range(93, 100), 7]


def test_ended_finding_has_the_time_of_its_end(findings: ProtectionFindings) -> None:
    _, created = emit(findings, 0)
    emit(findings, 1)
    end_ns = at(7)
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


def test_quiet_finding_ends_once_with_all_its_events(findings: ProtectionFindings) -> None:
    for seconds in (0, 0.1, 0.2):
        emit(findings, seconds, TAMPERING, tampering=_NFT)
    assert findings.end_quiet(at(600)) == []
    (line,) = findings.end_quiet(at(600.3))
    finding = json.loads(line)
    assert finding["status_detail"] == (
        "Inactive since 2026-01-01T00:00:00.200Z: 3 changes, and no more since then."
    )
    assert finding["count"] == 3
    assert findings.end_quiet(at(9_000)) == []


def test_event_after_a_long_pause_ends_the_finding_before(findings: ProtectionFindings) -> None:
    emit(findings, 0)
    ended, event, created = emit(findings, 700)
    assert ended["status_detail"].startswith("Inactive since 2026-01-01T00:00:00.000Z: 1 gap")
    assert event["metadata"]["correlation_uid"] == created["finding_info"]["uid"]
    assert created["finding_info"]["uid"] != ended["finding_info"]["uid"]


def test_fault_that_lasts_is_one_finding_until_its_end(findings: ProtectionFindings) -> None:
    _, created = emit(findings, 0, COUNTER_MISMATCH, lasts=True)
    assert findings.end_quiet(at(3_000), closing=True) == []
    _, later = emit(findings, 3_600, COUNTER_MISMATCH)
    assert later["activity_name"] == "Update"
    assert later["finding_info"]["uid"] == created["finding_info"]["uid"]
    emit(findings, 3_601, COUNTER_MISMATCH, lasts=False)
    assert len(findings.end_quiet(at(9_000))) == 1


def test_findings_end_when_the_service_stops(findings: ProtectionFindings) -> None:
    emit(findings, 0)
    assert len(findings.end_quiet(at(1), closing=True)) == 1


def test_findings_of_an_ended_sandbox_end(findings: ProtectionFindings) -> None:
    emit(findings, 0, lasts=True)
    emit(findings, 0, sandbox="other")
    (line,) = findings.end_sandbox("sb", time_ns=at(5))
    assert json.loads(line)["status_detail"] == (
        "Inactive since 2026-01-01T00:00:05.000Z: 1 gap; the watch over it ended."
    )
    assert findings.end(COLLECTION, "sb", "over", time_ns=0) == []
    assert findings.end(COLLECTION, "other", "over", time_ns=0)


def test_finding_continues_after_the_service_was_killed(findings: ProtectionFindings) -> None:
    stored: dict[str, bytes | None] = {}

    def emit_stored(of: ProtectionFindings, seconds: float) -> list[Any]:
        lines = of.lines(event_at(seconds), TAMPERING, "sb", severity=Severity.HIGH, tampering=_NFT)
        stored.update(of.take_changes(lines))
        assert not of.take_changes(lines)  # each once
        return [json.loads(each) for each in lines]

    _, created = emit_stored(findings, 0)
    for _ in range(2):
        known = {uid: value for uid, value in stored.items() if value is not None}
        findings = ProtectionFindings(lambda _: Context(), lambda *_: None)
        assert findings.resume(known, now_ns=at(100)) == ()
        emit_stored(findings, 100)
    _, updated = emit_stored(findings, 300)
    assert (updated["activity_name"], updated["count"]) == ("Update", 4)
    for name in ("uid", "title", "first_seen_time"):
        assert updated["finding_info"][name] == created["finding_info"][name]
    assert updated["actor"] == created["actor"]
    assert len(updated["finding_info"]["related_events"]) == 4
    stored.update(findings.take_changes(findings.end_quiet(at(2000))))
    assert list(stored.values()) == [None]


def restarted(stored: dict[str, bytes | None], seconds: float) -> ProtectionFindings:
    """Return the findings of a service that is started at ``seconds``."""
    findings = ProtectionFindings(lambda _: Context(), lambda *_: None)
    known = {uid: value for uid, value in stored.items() if value is not None}
    assert findings.resume(known, now_ns=at(seconds)) == ()
    return findings


def test_fault_that_lasts_over_a_restart_is_one_finding(findings: ProtectionFindings) -> None:
    lines = findings.lines(event_at(0), COLLECTION, "sb", severity=Severity.HIGH, lasts=True)
    uid = json.loads(lines[0])["metadata"]["correlation_uid"]
    stored = findings.take_changes(lines)
    assert findings.end_quiet(at(4000), closing=True) == []
    findings = restarted(stored, 5000)
    assert findings.end_quiet(at(5300)) == []
    assert findings.end_quiet(at(5300), closing=True) == []
    lines = findings.lines(event_at(5400), COLLECTION, "sb", severity=Severity.HIGH, lasts=True)
    _, updated = map(json.loads, lines)
    assert (updated["activity_name"], updated["count"]) == ("Update", 2)
    assert updated["finding_info"]["uid"] == uid
    assert findings.end_quiet(at(10_000)) == []  # it lasts


def test_fault_that_lasted_ends_if_no_event_comes_after_a_restart(
    findings: ProtectionFindings,
) -> None:
    lines = findings.lines(event_at(0), COLLECTION, "sb", severity=Severity.HIGH, lasts=True)
    stored = findings.take_changes(lines)
    findings = restarted(stored, 5000)
    (ended,) = findings.end_quiet(at(5601))
    assert "it has not happened again" in json.loads(ended)["message"]
    assert findings.take_changes([ended]) == dict.fromkeys(stored)


def test_damaged_stored_findings_are_named(findings: ProtectionFindings) -> None:
    lines = findings.lines(
        event_at(0), TAMPERING, "sb", severity=Severity.HIGH, tampering=_NFT, lasts=True
    )
    ((uid, value),) = findings.take_changes(lines).items()
    assert value is not None
    state = json.loads(unseal(value, uid.encode()))
    others: tuple[Any, ...] = (None, "x", -1, 1 << 60, [], ["abc"], [[1]], {})
    spoilt = [json.dumps(state | {key: other}).encode() for key in state for other in others]
    # Of another version, and damaged ones.
    texts = [b"", b"[]", b'{"kind":' + b"[" * 100_000, *spoilt]
    values = [seal(each, uid.encode()) for each in texts]
    findings = ProtectionFindings(lambda _: Context(), lambda *_: None)
    for each in values:
        damaged = findings.resume({uid: each}, now_ns=at(1))
        if damaged != (uid,):
            lines = findings.end_quiet(at(5000))  # it is as good as the true one
            assert len(lines) == 1, each
    for number in range(len(value)):
        changed = value[:number] + bytes([value[number] ^ 1]) + value[number + 1 :]
        assert findings.resume({uid: changed}, now_ns=at(1)) == (uid,)
        assert findings.resume({uid: value[:number]}, now_ns=at(1)) == (uid,)
    assert findings.resume({"another": value}, now_ns=at(1)) == ("another",)
    assert findings.resume({uid: value}, now_ns=at(1)) == ()
    assert findings.resume({uid: value}, now_ns=at(1)) == (uid,)  # twice


_FACTS = st.builds(RelatedFact, st.text(), st.integers(0, 1 << 52), st.text())


@given(
    st.builds(
        ProtectionSeries,
        kind=st.sampled_from(list(KINDS.values())),
        sandbox=st.none() | HOSTILE_TEXT,
        identity=st.text(),
        count=st.integers(1, 1 << 52),
        start_ms=st.integers(0, 1 << 52),
        end_ms=st.integers(0, 1 << 52),
        latest=st.lists(st.builds(RelatedFact, st.text(), st.integers(0, 1 << 52), st.text())).map(
            tuple
        ),
        severity=st.sampled_from(Severity),
        processes=st.lists(PROCESSES.map(brief), max_size=2).map(tuple),
        unknown=st.integers(0, 1 << 52),
        is_tampering=st.booleans(),
        lasts=st.booleans(),
    )
)
def test_stored_finding_is_the_same_when_it_is_read(series: ProtectionSeries) -> None:
    assert finding_codec.from_bytes(series.uid, finding_codec.to_bytes(series)) == series
