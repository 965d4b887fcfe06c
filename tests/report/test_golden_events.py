"""Reports about the events that the mapper makes, in full and lean form, at several versions."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft.ocsf.lean import lean_line
from ocsf_nft.ocsf.versions import line_at
from ocsf_nft.report.page import page
from ocsf_nft.report.selection import IncidentFinder
from ocsf_nft.report.summary import summary
from ocsf_nft.report.text import incident as incident_text
from ocsf_nft.report.wording import steps
from tests.conformance.incidents import fan_out_of
from tests.ocsf.test_scan_findings import rendered, senders
from tests.report.day import BEGIN
from tests.report.test_aggregator import view_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.report.view import View

_GOLDEN: Final = Path(__file__).parents[1] / "golden" / "events"
_FORMS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "full": lambda line: line,
    "lean": lean_line,
    "1.1.0": lambda line: line_at(line, "1.1.0"),
    "1.1.0 lean": lambda line: lean_line(line_at(line, "1.1.0")),
    "1.9.0 lean": lambda line: lean_line(line_at(line, "1.9.0")),
}


def _golden(name: str) -> Any:
    return json.loads((_GOLDEN / f"{name}.json").read_bytes())


def _view(*events: Any, form: str = "full") -> View:
    lines = [_FORMS[form](json.dumps(each).encode()) for each in events]
    finder = IncidentFinder(events[0]["finding_info"]["uid"])
    finder.read(lines)
    return view_of(map(json.loads, lines), finder.incident())


@pytest.mark.parametrize("form", _FORMS)
def test_scan_of_32_processes_has_all_of_them_in_its_tree(form: str) -> None:
    view = _view(rendered(fan_out_of(senders=senders(32))), form=form)
    shown = "\n".join(incident_text(view))
    assert "nc[5000]" in shown
    assert "named by a finding" in shown
    assert len({facts.process for facts, _ in view.process_rows}) == 32
    assert summary(view).who.startswith("nc[5000] of uid 1000, nc[5001]")


@pytest.mark.parametrize("form", _FORMS)
def test_finding_about_the_protection_counts_no_packets(form: str) -> None:
    view = _view(_golden("tampering-finding"), form=form)
    found = summary(view)
    assert found.how_much == "No packet. 3 events about the protection of the sandbox."
    assert found.who == "curl[4242] of agent (uid 1000), in sandbox sb1."
    (finding,) = found.actions
    assert len(steps(finding.remediation)) == 4


def test_finding_without_a_process_names_its_user() -> None:
    found = summary(_view(_golden("a-bypass-is-found")))
    assert found.who == "An unknown process of uid 1000, in sandbox sb1."
    assert found.how_much == "The findings count up to 12 packets each; their events are not here."


def test_steps_have_one_number_each() -> None:
    view = _view(_golden("a-scan-is-found"))
    lines = [line.strip() for line in incident_text(view) if line.startswith("  Do ")]
    assert len(lines) == 5
    assert lines[1] == "Do        2. Intended traffic must use the proxy at http://10.200.0.1:3128."
    html = page(view, subject="Incident", made_ms=BEGIN).decode()
    assert "<li>Intended traffic must use the proxy at http://10.200.0.1:3128.</li>" in html
    assert "1. Check" not in html


def test_summary_of_several_findings_links_to_what_to_do() -> None:
    names = ("tampering-finding", "fence-removed-finding", "a-bypass-is-found")
    html = page(view_of(map(_golden, names)), subject="All", made_ms=BEGIN).decode()
    assert "each finding has its steps:" in html
    assert '<li><a href="#finding-1">Fence removed: sandbox sb1</a></li>' in html
    assert '<article class="finding s5" id="finding-1">' in html


def test_event_without_a_sandbox_and_a_host_is_of_no_sandbox() -> None:
    event = _golden("a-bypass-is-found")
    del event["unmapped"], event["device"]
    event["evidences"] = event["metadata"]["tags"] = event["resources"] = []
    view = view_of([event])
    assert (view.identity, summary(view).unknown) == ((), ())


def test_message_is_shown_once() -> None:
    event = _golden("a-bypass-is-found")
    assert event["message"] in event["finding_info"]["desc"]
    assert "\n".join(incident_text(_view(event))).count(event["message"]) == 1


def test_names_of_dns_queries_are_shown() -> None:
    event = _golden("a-dns-query")
    lines = list(incident_text(view_of([event])))
    assert (
        f"  {event['query']['hostname']}" in lines[lines.index("Names that programs asked for:") :]
    )


def test_finding_about_the_host_has_no_sandbox() -> None:
    event = _golden("collection-finding")
    del event["unmapped"], event["resources"]
    html = page(_view(event), subject="Incident", made_ms=BEGIN).decode()
    assert "<dt>Where</dt><dd>host host-1</dd>" in html


@pytest.mark.parametrize(
    ("advice", "expected"),
    [
        ("Look.", ("Look.",)),
        ("1. Look. 2. Act.", ("Look.", "Act.")),
        ("1. ", ()),
        ("2. Look.", ("2. Look.",)),
    ],
)
def test_steps_of_an_advice(advice: str, expected: tuple[str, ...]) -> None:
    assert steps(advice) == expected


@pytest.mark.parametrize("name", ["tampering-finding", "a-bypass-is-found", "a-scan-is-found"])
def test_text_has_no_heading_without_lines(name: str) -> None:
    lines = [*incident_text(_view(_golden(name))), "end"]
    headings = [number for number, line in enumerate(lines) if not line.startswith(" ")]
    assert all(later > number + 1 for number, later in pairwise(headings)), lines
