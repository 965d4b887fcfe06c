"""Text of a report for a terminal, without control characters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.report import wording
from ocsf_nft.report.processes import tree
from ocsf_nft.report.summary import summary
from ocsf_nft.report.timeline import timeline

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ocsf_nft.report.findings import Finding
    from ocsf_nft.report.processes import ProcessNode
    from ocsf_nft.report.summary import Summary
    from ocsf_nft.report.view import View

HEADINGS: Final = ("UPDATED", "SEVERITY", "SANDBOX", "COUNT", "TITLE", "ID")
#: Maximum numbers of lines of each part.
_ENTRIES: Final = 20
_DESTINATIONS: Final = 10
_CHILDREN: Final = 8


def open_findings(view: View) -> list[Finding]:
    """Return the open findings, the latest update first."""
    found = (each for each in view.findings if each.is_open)
    return sorted(found, key=lambda each: -each.updated_ms)


def row(finding: Finding) -> tuple[str, ...]:
    """Return the row of a finding in the list, with the columns ``HEADINGS``."""
    return (
        wording.utc(finding.updated_ms),
        wording.severity(finding.severity_id),
        finding.sandbox,
        f"{finding.count:,}",
        finding.title,
        finding.uid,
    )


def incident(view: View) -> Iterator[str]:
    """Yield the lines about an incident; lines without indent are headings."""
    for finding in view.findings:
        yield from _finding(finding)
    yield from _summary(summary(view))
    yield from _timeline(view)
    yield from _part("Processes:", _processes(view))
    yield from _part("Destinations:", _destinations(view))
    yield from _part("Names that programs asked for:", _names(view))
    yield from _part("Identity:", _identity(view))


def _part(heading: str, lines: Iterable[str]) -> Iterator[str]:
    """Yield a heading and its lines; nothing without a line."""
    for number, line in enumerate(lines):
        if number == 0:
            yield heading
        yield line


def _processes(view: View) -> Iterator[str]:
    for name, root in tree(view.process_rows).items():
        yield f"  sandbox {name}"
        yield from _tree(root, "  ")


def _destinations(view: View) -> Iterator[str]:
    for (_, traffic), counts in view.destinations.rows[:_DESTINATIONS]:
        yield f"  {traffic}  {wording.packets(counts)}"
    yield from _more(len(view.destinations.rows) - _DESTINATIONS + view.destinations.more)


def _identity(view: View) -> Iterator[str]:
    for name, facts in view.identity:
        yield f"  sandbox {name}"
        for kind, value in facts:
            yield f"    {kind}: {value}"


def _summary(found: Summary) -> Iterator[str]:
    yield "Summary:"
    yield f"  What      {found.what}"
    yield f"  Who       {found.who}"
    yield f"  When      {found.when}"
    yield f"  How much  {found.how_much}"
    for finding in found.actions:
        if len(found.actions) > 1:
            yield f"  Do        {finding.title}:"
        for number, step in enumerate(wording.steps(finding.remediation), 1):
            yield f"  Do        {number}. {step}"
    for limit in found.unknown or ("No gap is known.",):
        yield f"  Not known {limit}"


def _finding(finding: Finding) -> Iterator[str]:
    yield f"{finding.title}"
    yield f"  {wording.severity(finding.severity_id)}, {wording.state(finding)}"
    yield f"  {finding.uid}"
    for text in (*finding.facts, finding.runbook):
        if text:
            yield f"  {text}"


def _names(view: View) -> Iterator[str]:
    for name, _ in view.names.rows[:_DESTINATIONS]:
        yield f"  {name}"
    yield from _more(len(view.names.rows) - _DESTINATIONS + view.names.more)


def _timeline(view: View) -> Iterator[str]:
    entries = timeline(view)
    yield "Timeline (UTC):"
    for each in entries.entries[:_ENTRIES]:
        severity = wording.severity(each.severity_id)
        yield f"  {wording.utc(each.time_ms)}  {severity:<13}  {each.kind:<7}  {each.text}"
    yield from _more(len(entries.entries) - _ENTRIES + entries.more)


def _tree(node: ProcessNode, indent: str) -> Iterator[str]:
    children = list(node.children.values())
    for index, child in enumerate(children[:_CHILDREN]):
        is_last = index + 1 == len(children)
        yield f"{indent}{'└─' if is_last else '├─'} {child.name}  {child.path}".rstrip()
        below = f"{indent}{'   ' if is_last else '│  '}"
        for facts, counts in child.rows[:_CHILDREN]:
            possible = "possible sender of " if facts.is_possible else ""
            known = (facts.user, facts.container, f"{possible}{wording.packets(counts)}")
            yield f"{below}   {'; '.join(filter(None, known))}"
            if facts.cmd_line:
                yield f"{below}   {facts.cmd_line}"
        yield from _tree(child, below)
    yield from _more(len(children) - _CHILDREN, f"{indent}└─ ")


def _more(number: int, indent: str = "  ") -> Iterator[str]:
    if number > 0:
        yield f"{indent}and {number:,} more"
