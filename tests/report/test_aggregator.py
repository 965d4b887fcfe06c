"""Aggregation of events to the facts of a report."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.errors import AbsentError, UsageError
from ocsf_nft.ocsf.versions import VERSIONS, line_at
from ocsf_nft.report import aggregator as aggregator_module
from ocsf_nft.report.aggregator import Aggregator
from ocsf_nft.report.page import page
from ocsf_nft.report.selection import Incident, IncidentFinder, Span
from ocsf_nft.report.summary import summary
from ocsf_nft.report.text import incident as incident_text
from tests.golden.situations import FOLDER
from tests.report.day import BEGIN, MINUTE, Event, activity, events, fence, finding, uid

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.report.aggregator import Selected
    from ocsf_nft.report.view import View

GOLDEN = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
DAY = tuple(events())
_METADATA = uid("finding", "metadata")


def view_of(found: Iterable[Event], selected: Selected | None = None) -> View:
    aggregator = Aggregator(selected or Span())
    aggregator.read(map(orjson.dumps, found))
    return aggregator.view()


def incident_of(found: Iterable[Event], prefix: str) -> Incident:
    finder = IncidentFinder(prefix)
    finder.read(map(orjson.dumps, found))
    return finder.incident()


def test_packets_are_the_counts_of_network_activity_alone() -> None:
    counts = [each["count"] for each in DAY if each["class_uid"] == 4001]
    totals = view_of(DAY).totals
    assert (totals.blocked, totals.allowed) == (sum(counts) - 3, 3)
    assert totals.aggregated == 41_200
    assert totals.packets - totals.named == 41_203
    assert totals.events == len(DAY)


def test_times_that_are_no_date_do_not_change_the_period() -> None:
    wrong = {"start_time": -(1 << 63), "end_time": (1 << 63) - 1}
    seen = {"first_seen_time": -(1 << 63), "last_seen_time": 1 << 60}
    found = [
        {**each, **wrong, "finding_info": {**each["finding_info"], **seen}}
        for each in DAY
        if each["class_uid"] == 2004
    ]
    found.append({**activity(0, "192.0.2.1", 1, by=None), **wrong})
    view = view_of([*DAY, *found])
    times = [each["time"] for each in found]
    assert view_of(found).first_ms == min(times)
    assert view_of(found).last_ms == max(times)
    assert "unknown time" not in page(view, subject="Day", made_ms=BEGIN).decode()


def test_process_without_name_and_number_is_unknown() -> None:
    event = activity(0, "192.0.2.1", 1, by={"pid": None, "cmd_line": "x"})
    view = view_of([event])
    assert view.totals.named == 0
    assert summary(view).who == "An unknown process of agent (uid 1000), in sandbox agent-7."


def test_numbers_above_the_bounds_are_lower_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in (("_STORED", 4), ("_SANDBOXES", 2), ("_SHOWN_FINDINGS", 1)):
        monkeypatch.setattr(aggregator_module, name, most)
    more = (
        activity(n, "192.0.2.1", 1, by={"pid": n, "name": "x"}, sandbox=f"s{n}") for n in range(12)
    )
    view = view_of([*DAY, *more])
    shown, found = page(view, subject="Day", made_ms=BEGIN).decode(), summary(view)
    assert found.what.startswith("At least 1 open finding. ")
    assert found.who.endswith(", in more than 2 sandboxes.")
    assert ", and at least " in found.who
    for name in ("open findings", "destinations", "senders"):
        assert f"+</strong>{name}" in shown
    assert f"<strong>{view.totals.blocked:,}</strong>packets blocked" in shown


def test_order_of_events_does_not_matter() -> None:
    assert view_of(reversed(DAY)) == view_of(DAY)


def test_finding_has_the_larger_count_of_two_events_of_one_millisecond() -> None:
    event = next(each for each in DAY if each["class_uid"] == 2004)
    later = {**event, "count": event["count"] + 5, "metadata": {**event["metadata"], "uid": "x"}}
    for found in ([event, later], [later, event]):
        assert [each.count for each in view_of(found).findings] == [later["count"]]


def test_repeated_event_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of([*DAY, *DAY])
    assert view.totals == view_of(DAY).totals
    assert view.read.repeated == len(DAY)
    monkeypatch.setattr(aggregator_module, "_UIDS", 3)  # the memory has a bound
    assert view_of([*DAY, *DAY]).read.repeated == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_events_of_each_version_have_the_same_counts_and_names(version: str) -> None:
    # Both are of the same packet.
    others = {"a-program-that-is-known-1.1.0", "one-of-several-programs"}
    found = [each for name, each in GOLDEN.items() if name not in others]
    lines = [orjson.dumps(each) for each in found if each["metadata"]["version"] == "1.8.0"]
    expected, aggregator = Aggregator(Span()), Aggregator(Span())
    expected.read(lines)
    aggregator.read(line_at(line, version) for line in lines)
    old, new = aggregator.view(), expected.view()
    assert (old.totals, old.findings[0].uid) == (new.totals, new.findings[0].uid)
    assert old.destinations == new.destinations
    assert [each.name for each, _ in old.processes.rows] == [
        each.name for each, _ in new.processes.rows
    ]


def _lean(value: Any) -> Any:
    """Return a value without captions, raw data and enrichments."""
    dropped = {"raw_data", "observables", "enrichments", "state", "severity", "disposition"}
    if isinstance(value, dict):
        return {key: _lean(each) for key, each in value.items() if key not in dropped}
    return [_lean(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", GOLDEN)
def test_lean_event_has_the_same_counts(name: str) -> None:
    full, lean = view_of([GOLDEN[name]]), view_of([_lean(GOLDEN[name])])
    assert (lean.totals, lean.histogram) == (full.totals, full.histogram)
    assert [each.title for each in lean.findings] == [each.title for each in full.findings]
    assert lean.coverage.limits == full.coverage.limits


def test_allowed_packets_are_not_blocked_ones() -> None:
    view = view_of([GOLDEN["a-permissive-fence-allows"]])
    assert (view.totals.blocked, view.totals.allowed) == (0, 1)
    assert view_of([GOLDEN["a-permissive-fence-allows-1.1.0"]]).totals == view.totals


def test_lines_that_are_no_event_are_counted() -> None:
    aggregator = Aggregator(Span())
    lines = [b"{", b"[]", b'{"class_uid":"4001"}', b'{"class_uid":4001,"time":1e99}', b"\xff", b""]
    aggregator.read([*lines, orjson.dumps(DAY[0])])
    assert (aggregator.view().read.lines, aggregator.view().read.others) == (7, 6)


def test_memory_has_a_bound_and_the_sum_stays_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregator_module, "_STORED", 100)
    monkeypatch.setattr(aggregator_module, "_SANDBOXES", 5)
    found = (
        activity(n, f"10.0.{n // 250}.{n % 250}", 443, by=None, sandbox=f"sb{n}", count=2)
        for n in range(3000)
    )
    view = view_of(found)
    assert view.totals.blocked == 6000
    assert len(view.destinations.rows) == 50
    assert view.destinations.rest is not None
    shown = sum(counts.packets for _, counts in view.destinations.rows)
    assert shown + view.destinations.rest.packets == 6000
    assert (len(view.identity), view.has_more_sandboxes) == (5, True)


def test_most_urgent_findings_are_listed_and_the_others_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aggregator_module, "_FINDINGS", 10)
    monkeypatch.setattr(aggregator_module, "_SHOWN_FINDINGS", 4)
    found = [
        finding(str(n), n, since=0, count=1, code="", title=f"t{n}", remediation="r",
                severity=5 if n == 3 else 3, activity_id=3 if n > 25 else 1)
        for n in range(30)
    ]  # fmt: skip
    view = view_of(found)
    assert [each.title for each in view.findings] == ["t3", "t25", "t24", "t23"]
    assert view.more_findings == 26


_KEYS = (
    "actor", "process", "user", "pid", "name", "path", "evidences", "enrichments", "data",
    "processes", "ancestry", "unmapped", "sandbox", "metadata", "uid", "labels", "type",
    "finding_info", "title", "related_events", "attacks", "technique", "container",
)  # fmt: skip
_ATTRIBUTES = (
    "actor", "evidences", "enrichments", "unmapped", "metadata", "finding_info", "count",
    "start_time", "end_time", "severity_id", "device", "cloud", "state_id", "message",
    "dst_endpoint", "src_endpoint", "connection_info", "resources", "status_detail",
    "observables", "remediation",
)  # fmt: skip
_SCALARS = st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.text(max_size=8)
_JSON = st.recursive(
    _SCALARS | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    st.sampled_from([4001, 2004, 5019, 6002, 4003]),
    st.dictionaries(st.sampled_from(_ATTRIBUTES), _JSON, max_size=8),
)
def test_no_decoded_json_raises_an_error(kind: int, event: Event) -> None:
    aggregator = Aggregator(Span(sandbox=None, from_ms=0))
    aggregator.add({**event, "class_uid": kind, "time": BEGIN})
    view = aggregator.view()
    assert page(view, subject="x", made_ms=BEGIN).endswith(b"</html>\n")
    assert list(incident_text(view))
    finder = IncidentFinder("x")
    finder.read([json.dumps({**event, "class_uid": kind, "time": BEGIN, "x": "x"}).encode()])


def test_span_selects_by_time_and_sandbox() -> None:
    span = Span(from_ms=BEGIN + 12 * MINUTE, until_ms=BEGIN + 15 * MINUTE, sandbox="agent-7")
    view = view_of(DAY, span)
    assert [each.uid for each in view.findings] == [_METADATA]
    assert all(to.sandbox == "agent-7" for to, _ in view.destinations.rows)
    # The state of the fence before the span is known, and is no event of it.
    assert [each.state for each in view.coverage.fences] == ["Enabled"]
    assert view.coverage.fence_changes.entries == ()
    other = view_of(DAY, Span(sandbox="trial-2"))
    assert (other.totals.allowed, other.totals.blocked) == (3, 0)
    # Events about the whole service are about each sandbox.
    assert [each.code for each in other.coverage.limits.entries] == ["records-dropped"]


@pytest.mark.parametrize("size", [4, 36])
def test_incident_has_its_finding_its_packets_and_the_gaps_of_its_time(size: int) -> None:
    incident = incident_of(DAY, _METADATA[:size])
    view = view_of(DAY, incident)
    (found,) = view.findings
    assert (found.uid, found.count, view.totals.blocked) == (_METADATA, 18, 18)
    assert [each.name for each, _ in view.processes.rows] == ["curl[4242]"]
    assert view.coverage.limits.entries == ()
    assert view.coverage.fences[0].state == "Enabled"


def test_incident_is_found_by_its_correlation_uid_and_by_related_events() -> None:
    scan = next(each for each in DAY if each["class_uid"] == 2004 and "scanned" in each["message"])
    related = activity(0, "192.0.2.1", 22, by=None)
    related["metadata"]["uid"] = scan["finding_info"]["related_events"][0]["uid"]
    found = [*DAY, related]
    incident = incident_of(found, scan["metadata"]["correlation_uid"])
    view = view_of(found, incident)
    assert [each.uid for each in view.findings] == [scan["finding_info"]["uid"]]
    assert view.totals.blocked == 1


def test_prefix_of_several_uids_and_of_none_is_an_error() -> None:
    same = [each for each in DAY if each["class_uid"] == 2004][:1]
    other = json.loads(json.dumps(same[0]))
    other["finding_info"]["uid"] = f"{_METADATA[:6]}-other"
    with pytest.raises(UsageError, match="2 uids begin with"):
        incident_of([*same, other], _METADATA[:6])
    assert incident_of([*same, other], _METADATA).uid == _METADATA
    with pytest.raises(AbsentError, match="`ocsf-nft incident` lists"):
        incident_of(DAY, "no-such")
    with pytest.raises(UsageError, match="is empty"):
        IncidentFinder("")


def test_summary_answers_who_what_when_how_much_and_what_to_do() -> None:
    found = summary(view_of(DAY, incident_of(DAY, _METADATA)))
    assert found.what.startswith("1 open finding. curl tried to read cloud credentials")
    assert found.who == "curl[4242] of agent (uid 1000), in sandbox agent-7."
    assert found.when == (
        "2026-11-24 09:12:00 to 09:14:00 UTC (2 min). No open finding is active any more."
    )
    assert found.how_much == "18 packets blocked, to 1 destination."
    assert found.actions[0].remediation.startswith("Rotate nothing")
    assert found.unknown == ()


def test_closed_finding_needs_no_action() -> None:
    closed = [event | {"activity_id": 3} for event in DAY if event["class_uid"] == 2004]
    found = summary(view_of(closed))
    assert (found.what[:18], found.actions) == ("4 closed findings.", ())


def test_summary_lists_what_is_not_known() -> None:
    removed = fence(59 * MINUTE, 1, "Disabled", "removed", code="fence-removed", severity=5)
    view = view_of([*DAY, removed])
    found = summary(view, since_ms=BEGIN - 60 * MINUTE)
    assert found.unknown == (
        "The input begins at 2026-11-24 08:58:00 UTC, after the requested time.",
        "The process is unknown for 41,203 of 42,640 packets.",
        "Packets that are reported without their destinations: 41,200.",
        "The fence was not read: 1 time.",
        "Log records were dropped: 1 time.",
        "The last known state of the fence is not secure: sandbox agent-7.",
        "No event has the state of the fence: sandbox trial-2.",
    )


def test_summary_of_no_events_claims_nothing() -> None:
    found = summary(view_of([]))
    assert found.what == "No finding, and no attempt to bypass the proxy."
    assert found.who == "Unknown: no event names a process or a user."
    assert (found.how_much, found.actions, found.unknown) == ("No packet.", (), ())
