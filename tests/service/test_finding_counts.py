"""Numbers of findings for metrics: creations, updates, ends, and sandboxes that have ended."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.attempt import Attempt, IncidentEnd
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.finding_parts import COLLECTION, TAMPERING
from ocsf_nft.service import finding_counts as module
from ocsf_nft.service.event_rendering import Reporter
from ocsf_nft.service.finding_counts import FindingKey
from tests.conformance.corpus import RECORDS
from tests.conformance.incidents import fan_out_of, incident
from tests.service.keeping import MemoryStore
from tests.service.test_protection_findings import event_at

if TYPE_CHECKING:
    from ocsf_nft.attempt import FanOut, Incident

_RECORD: Final = replace(RECORDS["tcp4"], sandbox="sb1")
_BYPASS: Final = FindingKey("sb1", "bypass-finding", Severity.MEDIUM, is_alert=False)
_SCAN: Final = FindingKey("sb1", "scan-finding", Severity.HIGH, is_alert=True)


@pytest.fixture
def reporter() -> Reporter:
    reporter = Reporter(MemoryStore().commit, None)
    reporter.set_context("sb1", Context())
    return reporter


def _attempt(each: Incident) -> Attempt:
    return replace(Attempt.of(_RECORD), incident=each)


def _created(reporter: Reporter) -> dict[FindingKey, int]:
    return {key: count.created for key, count in reporter.finding_counts().items()}


@pytest.mark.parametrize(
    ("found", "key"),
    [
        ([_attempt(incident()), _attempt(incident(3, 40))], _BYPASS),
        ([fan_out_of(), fan_out_of(stage="goes on")], _SCAN),
    ],
)
async def test_finding_counts_once_and_its_updates_set_the_time(
    reporter: Reporter, found: list[Attempt | FanOut], key: FindingKey
) -> None:
    creation, update = found
    await reporter.lines([creation])
    assert _created(reporter) == {key: 1}
    created_ms = reporter.finding_counts()[key].latest_ms
    assert abs(time.time_ns() // 1_000_000 - created_ms) < 60_000
    while time.time_ns() // 1_000_000 == created_ms:
        pass
    await reporter.lines([update])
    assert _created(reporter) == {key: 1}
    assert reporter.finding_counts()[key].latest_ms > created_ms


async def test_attempt_without_finding_and_end_of_a_finding_count_nothing(
    reporter: Reporter,
) -> None:
    await reporter.lines(
        [
            _attempt(incident(packets=1, found_at=None)),
            IncidentEnd(record=_RECORD, incident=incident(), end_ns=_RECORD.time_ns),
            fan_out_of(stage="ended"),
        ]
    )
    assert reporter.finding_counts() == {}


async def test_update_in_a_new_run_counts_no_creation(reporter: Reporter) -> None:
    await reporter.lines([_attempt(incident(3, 40))])
    assert _created(reporter) == {_BYPASS: 0}


def test_findings_about_the_protection_count_by_severity_but_not_their_end(
    reporter: Reporter,
) -> None:
    for severity, seconds in ((Severity.MEDIUM, 0), (Severity.HIGH, 1)):
        reporter.findings.lines(event_at(seconds), COLLECTION, None, severity=severity)
    reporter.findings.lines(event_at(0), TAMPERING, "sb1", severity=Severity.HIGH)
    expected = {
        FindingKey(None, "collection-finding", Severity.MEDIUM, is_alert=False): 1,
        FindingKey(None, "collection-finding", Severity.HIGH, is_alert=True): 0,
        FindingKey("sb1", "tampering-finding", Severity.HIGH, is_alert=True): 1,
    }
    assert _created(reporter) == expected
    before = dict(reporter.finding_counts())
    reporter.findings.end(TAMPERING, "sb1", "why", time_ns=time.time_ns())
    assert reporter.finding_counts() == before


async def test_ended_sandbox_leaves_15_minutes_after_its_last_finding(
    reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter.findings.lines(event_at(0), COLLECTION, None, severity=Severity.HIGH)
    await reporter.lines([_attempt(incident()), fan_out_of()])
    await reporter.drop_context("sb1")
    assert {key.sandbox for key in reporter.finding_counts()} == {None, "sb1"}
    monkeypatch.setattr(module, "_RETENTION_MS", 0)
    reporter.set_context("sb1", Context())
    assert {key.sandbox for key in reporter.finding_counts()} == {None, "sb1"}
    await reporter.drop_context("sb1")
    assert {key.sandbox for key in reporter.finding_counts()} == {None}


async def test_ends_of_sandboxes_limit_the_memory_without_a_scrape(
    reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETENTION_MS", 0)
    await reporter.lines([_attempt(incident())])
    await reporter.drop_context("sb1")
    assert reporter._finding_counts.counts() == {}
