"""Facts of single events: processes, findings, and what limits a report."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from ocsf_nft.report.coverage import CoverageBuilder
from ocsf_nft.report.findings import merged, read_finding
from ocsf_nft.report.processes import ProcessId, senders, tree
from ocsf_nft.report.tables import Counts
from tests.report.day import BEGIN, Event, fence, finding, lifecycle, process

_ONE = Counts(1, 1, 0, 0, 0)


def _event(actor: Event | None = None, **more: object) -> Event:
    return {"actor": actor or {}, **more}


def test_ancestors_of_an_old_event_are_nested_parents() -> None:
    leaf = {
        "pid": 3,
        "file": {"path": "/bin/c"},
        "parent_process": {"pid": 2, "name": "b", "parent_process": {"pid": 1, "name": "a"}},
    }
    (found,) = senders(_event({"process": leaf}), "sb")
    assert found.process == ProcessId(3, "c", "/bin/c")
    assert found.ancestors == (ProcessId(2, "b"), ProcessId(1, "a"))


def test_process_of_a_lean_finding_is_that_of_its_evidence() -> None:
    event = _event(evidences=[{"process": {"pid": 7, "name": "x"}}, {"process": {"pid": 8}}])
    assert [each.name for each in senders(event, "sb")] == ["x[7]", "pid 8"]


@pytest.mark.parametrize("calls", [None, 4])
def test_candidate_is_only_possible_unless_it_certainly_sent_a_packet(calls: int | None) -> None:
    candidate: Event = {"pid": 9, "name": "worker"}
    if calls is not None:
        candidate["calls"] = calls
    data = {"processes": [candidate]}
    event = _event({"user": {"uid": 1000}}, enrichments=[{"type": "attribution", "data": data}])
    (found,) = senders(event, "sb")
    assert (found.name, found.user) == ("worker[9]", "uid 1000")
    assert found.is_possible is (calls is None)


def test_event_without_a_process_has_its_user_as_sender() -> None:
    (found,) = senders(_event({"user": {"uid": "0", "name": "root"}}), "sb")
    assert (found.process, found.name, found.user) == (None, "unknown process", "root (uid 0)")


def test_tree_has_each_process_once_also_if_it_sent_packets_itself() -> None:
    shell = process(10, "/bin/sh", "sh")
    child = process(11, "/bin/curl", "curl", ancestors=({"pid": 10, "name": "sh"},))
    facts = [senders(_event({"process": each}), "sb")[0] for each in (child, shell)]
    root = tree((each, _ONE) for each in facts)["sb"]
    node = root
    for name in ("tini[4001]", "node[4100]", "sh[10]", "curl[11]"):
        (node,) = node.children.values()
        assert node.name == name
    assert len(node.rows) == 1


def _stages() -> list[Event]:
    known: dict[str, Any] = {"code": "scan-finding", "remediation": "Stop it.", "since": 0}
    by = (process(1, "/bin/a", "a"),)
    return [
        finding("x", 1000, count=3, title="one", by=by, **known),
        finding("x", 5000, count=9, title="two", activity_id=2, severity=3, **known),
        finding(
            "x", 9000, count=12, title="three", activity_id=2, detail="Inactive since 09:00.",
            **known,
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("order", permutations(range(3)))
def test_latest_event_of_a_finding_wins_in_any_order(order: tuple[int, ...]) -> None:
    stages = [read_finding(each, each["time"]) for each in _stages()]
    first, *others = (stages[index] for index in order)
    for each in others:
        first = merged(first, each)
    assert (first.title, first.count, first.severity_id) == ("three", 12, 4)
    assert (first.created_ms, first.updated_ms) == (BEGIN + 1000, BEGIN + 9000)
    assert (first.is_open, first.is_inactive, first.events) == (True, True, 3)
    assert [each.name for each in first.processes] == ["a[1]"]


@pytest.mark.parametrize(
    ("change", "is_open"),
    [
        ({}, True),
        ({"status_id": 2}, True),
        ({"status_id": None}, True),
        ({"status_id": 4}, False),
        ({"status_id": 3}, False),
        ({"activity_id": 3}, False),
    ],
)
def test_finding_is_open_until_it_is_closed(change: Event, is_open: bool) -> None:
    event = _stages()[0] | change
    assert read_finding(event, event["time"]).is_open is is_open


def test_events_of_a_fault_are_one_limit_that_ends_when_it_is_cleared() -> None:
    builder = CoverageBuilder()
    for at, name, severity in ((0, "Fault", 3), (60_000, "Fault", 3), (90_000, "Fault Cleared", 1)):
        event = lifecycle(at, name, f"{name} {at}", code="", severity=severity, lasted=at)
        event["metadata"]["correlation_uid"] = "f"
        # A service that was started again knows only its own begin of the fault.
        event["start_time"] = BEGIN + at // 2
        builder.add(event, event["time"])
    (limit,) = builder.coverage().limits.entries
    assert (limit.code, limit.is_cleared, limit.severity_id) == ("fault", True, 3)
    assert (limit.start_ms, limit.end_ms) == (BEGIN, BEGIN + 90_000)
    assert limit.message == "Fault Cleared 90000"


@pytest.mark.parametrize("has_code", [True, False])
def test_gap_is_known_by_its_code_or_its_name(has_code: bool) -> None:
    event = lifecycle(0, "Collection Gap", "m", code="collection-gap", severity=4, lasted=5000)
    if not has_code:
        del event["metadata"]["event_code"]
    builder = CoverageBuilder()
    builder.add(event, event["time"])
    (limit,) = builder.coverage().limits.entries
    assert (limit.title, limit.sandbox) == ("The fence was not read", "agent-7")
    assert limit.end_ms - limit.start_ms == 5000


def test_counter_mismatch_is_a_limit_too() -> None:
    event = finding(
        "m", 0, since=0, count=1, code="counter-mismatch-finding", title="t", remediation="r"
    )
    builder = CoverageBuilder()
    builder.add_finding(read_finding(event, event["time"]))
    assert [each.code for each in builder.coverage().limits.entries] == ["counter-mismatch-finding"]


def test_last_state_of_a_fence_is_the_latest_one_by_time() -> None:
    builder = CoverageBuilder()
    late = fence(9000, 1, "Disabled", "removed", code="fence-removed", severity=5)
    early = fence(0, 2, "Enabled", "active", code="fence-active", severity=1)
    builder.add(late, late["time"])
    builder.add(early, early["time"])
    builder.add_prior(early, early["time"])
    coverage = builder.coverage()
    assert [(each.state, each.is_secure) for each in coverage.fences] == [("Disabled", False)]
    assert len(coverage.fence_changes.entries) == 2


def test_ordinary_end_of_a_sandbox_is_no_risk() -> None:
    event = fence(0, 1, "Disabled", "ended", code="sandbox-ended", severity=1)
    event["actor"] = {"process": {"pid": 5, "name": "ip"}}
    builder = CoverageBuilder()
    builder.add(event, event["time"])
    (found,) = builder.coverage().fences
    assert (found.is_secure, found.by) == (None, "ip[5]")


def test_state_of_a_lean_event_is_that_of_its_id() -> None:
    event = fence(0, 2, "", "active", code="fence-active", severity=1)
    del event["state"]
    builder = CoverageBuilder()
    builder.add(event, event["time"])
    assert builder.coverage().fences[0].state == "Enabled"
