"""Sections of a report's page: findings, timeline, processes, destinations, coverage, identity."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.report import wording
from ocsf_nft.report.html import Content, Html, element, joined
from ocsf_nft.report.processes import ProcessNode, tree
from ocsf_nft.report.timeline import timeline
from ocsf_nft.report.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ocsf_nft.report.findings import Finding
    from ocsf_nft.report.processes import ProcessFacts
    from ocsf_nft.report.tables import Counts, Top
    from ocsf_nft.report.view import View

#: Address of a page that becomes a link. Everything else stays text.
_LINK: Final = re.compile(r"https://[A-Za-z0-9._~/%#?=&:@+-]+")
#: Maximum number of items in a list of a finding, and of processes without children in a tree.
_FEW: Final = 8
_LEAVES: Final = 5
_EVIDENCE: Final = "The command that shows an event of the evidence: "


def badge(severity_id: int) -> Html:
    """Return the severity as a coloured word."""
    number = severity_id if severity_id in wording.SEVERITIES else 0
    return element("span", wording.severity(severity_id), class_=f"badge b{number}")


def findings(view: View) -> Html:
    """Return the section of the findings, each with what to do."""
    cards = [_finding(number, each) for number, each in enumerate(view.findings, 1)]
    more = view.more_findings
    return _section(
        "findings",
        "Findings and what to do",
        element("p", _EVIDENCE, element("code", "ocsf-nft events --uid UID"), class_="dim small")
        if cards
        else _none("No finding."),
        *cards,
        _none(f"And at least {counted(more, 'less urgent finding')}.") if more else None,
    )


def _finding(number: int, found: Finding) -> Html:
    totals = [counted(total, name.removesuffix("s")) for name, total in found.totals]
    facts = (
        ("What happened", " ".join(map(_sentence, found.facts))),
        ("Where", _where(found)),
        ("Count", ", ".join((f"{found.count:,}", *totals))),
        ("First to last", f"{wording.period(found.first_ms, found.last_ms)} UTC"),
        ("State", wording.state(found)),
        ("Created", f"{wording.utc(found.created_ms)} UTC; {counted(found.events, 'event')}"),
        ("Processes", _list(_process_lines(found))),
        ("Destinations", _list(_codes(found.destinations))),
        ("Rule", found.rule),
        ("ATT&CK", ", ".join(found.techniques)),
        ("Evidence", _evidence(found)),
        ("Finding uid", element("code", found.uid)),
    )
    return element(
        "article",
        element("h3", badge(found.severity_id), found.title),
        _what_to_do(found),
        _facts(facts),
        class_=f"finding s{min(6, max(0, found.severity_id))}",
        id=f"finding-{number}",
    )


def _what_to_do(found: Finding) -> Html | None:
    if not found.remediation and not found.runbook:
        return None
    return element(
        "div",
        element("strong", "What to do"),
        steps(found),
        element("p", "Runbook: ", _link(found.runbook)) if found.runbook else None,
        class_="do",
    )


def steps(found: Finding) -> Html | None:
    """Return what to do about a finding, as a list if it has several steps."""
    if not found.remediation:
        return None
    several = wording.steps(found.remediation)
    if len(several) == 1:
        return element("span", *several)
    return element("ol", *(element("li", each) for each in several))


def _where(found: Finding) -> str:
    # Without a sandbox, it is the name of the host.
    if found.sandbox == found.host:
        return f"host {found.host}" if found.host else ""
    return ", ".join(filter(None, (found.sandbox and f"sandbox {found.sandbox}", found.host)))


def _link(address: str) -> Html:
    if _LINK.fullmatch(address) is None:
        return element("code", address)
    return element("a", address, href=address, rel="noopener noreferrer")


def _process_lines(found: Finding) -> Iterator[Html]:
    for each in found.processes:
        possible = " (possible)" if each.is_possible else ""
        yield joined([f"{wording.sender(each)}{possible} ", element("code", each.cmd_line)])


def _evidence(found: Finding) -> Content:
    if not found.related:
        return None
    events = counted(max(found.related_count, len(found.related)), "event")
    return joined([f"{events}; metadata.uid of the latest:", _list(_codes(found.related))])


def _codes(texts: Iterable[str]) -> Iterator[Html]:
    for each in texts:
        yield element("code", each)


def _list(lines: Iterable[Html]) -> Content:
    found = list(lines)
    if not found:
        return None
    more = len(found) - _FEW
    shown = [element("li", each) for each in found[:_FEW]]
    if more > 0:
        shown.append(element("li", f"and {more:,} more"))
    return element("ul", *shown)


def timeline_section(view: View) -> Html:
    """Return the section of the timeline."""
    found, is_several = timeline(view), len(view.identity) > 1
    rows = [
        (
            element("time", wording.utc(each.time_ms), datetime=_datetime(each.time_ms)),
            badge(each.severity_id),
            each.kind,
            *([each.sandbox] if is_several else []),
            joined([each.text, _until(each.time_ms, each.end_ms)]),
        )
        for each in found.entries
    ]
    table = _table(
        "In order of time, UTC; the most severe entries are shown",
        (
            ("Time", "time"),
            ("Severity", "short"),
            ("Kind", "short"),
            *([("Sandbox", "short")] if is_several else []),
            ("What", "wide"),
        ),
        rows,
    )
    more = _none(f"And at least {counted(found.more, 'more entry', 'more entries')}.")
    return _section("timeline", "Timeline", table, more if found.more else None)


def _datetime(time_ms: int) -> str:
    return f"{wording.utc(time_ms).replace(' ', 'T')}Z"


def _until(start_ms: int, end_ms: int) -> Html | None:
    lasted = _lasted(start_ms, end_ms)
    return element("span", f" · for {lasted}", class_="dim") if lasted else None


def _lasted(start_ms: int, end_ms: int) -> str:
    return wording.duration(end_ms - start_ms) if end_ms - start_ms >= 1000 else ""


def processes(view: View) -> Html:
    """Return the section of the processes, as a tree below their ancestors."""
    trees = [
        element(
            "li",
            element("strong", f"Sandbox {name}" if name else "Unknown sandbox"),
            _children(node),
        )
        for name, node in tree(view.process_rows).items()
    ]
    note = (
        "A process with a grey background sent packets, or a finding names it; the others are its "
        "ancestors."
    )
    return _section(
        "processes",
        "Processes",
        element("p", note, class_="dim small") if trees else _none("No process."),
        element("ul", *trees, class_="tree") if trees else None,
        _more(view.processes, "process", "processes"),
    )


def _children(node: ProcessNode) -> Html | None:
    nodes = list(node.children.values())
    # Those with children of their own are all shown: their number is bounded by the view's rows.
    leaves = [each for each in nodes if not each.children]
    hidden = leaves[_LEAVES:] if len(leaves) > _LEAVES + 1 else []
    found = [element("li", _node(each)) for each in nodes if each not in hidden]
    if hidden:
        names = counted(len(hidden), "process", "processes")
        found.append(element("li", f"and {names} like these", class_="dim small"))
    return element("ul", *found) if found else None


def _node(node: ProcessNode) -> Html:
    path = element("code", node.path) if node.path else None
    name = joined([element("strong", node.name), " ", path])
    if node.rows:
        name = element("div", name, *(_sent(*row) for row in node.rows[:_FEW]), class_="sent")
    return joined([name, _children(node)])


def _sent(facts: ProcessFacts, counts: Counts) -> Html:
    known = (
        facts.user,
        facts.container and f"container {facts.container}",
        facts.folder and f"in {facts.folder}",
        facts.started_ms is not None and f"started {wording.utc(facts.started_ms)}",
        facts.sha256 and f"SHA-256 {facts.sha256}",
    )
    pill = wording.packets(counts)
    if counts.events:
        pill += f" in {counted(counts.events, 'event')}"
    possible = "possible sender of " if facts.is_possible else ""
    return element(
        "span",
        element("code", facts.cmd_line) if facts.cmd_line else None,
        element("span", " · ".join(each for each in known if each), class_="facts"),
        element("span", f"{possible}{pill}", class_="pill"),
        class_="facts",
    )


def destinations(view: View) -> Html:
    """Return the section of the destinations, and of the names that programs looked up."""
    is_allowed = bool(view.totals.allowed)
    headings = [("Destination", "wide"), ("Sandbox", "short"), ("Blocked", "number")]
    headings += [("Allowed", "number")] if is_allowed else []
    headings += [("Events", "number"), ("First to last", "")]
    rows: list[Sequence[Content]] = []
    for (sandbox, traffic), counts in view.destinations.rows:
        numbers = [f"{counts.blocked:,}", *([f"{counts.allowed:,}"] if is_allowed else [])]
        times = wording.period(counts.first_ms, counts.last_ms)
        rows.append((element("code", traffic), sandbox, *numbers, f"{counts.events:,}", times))
    names = [element("code", name) for name, _ in view.names.rows]
    return _section(
        "destinations",
        "Destinations",
        _table("Numbers of packets; the times are UTC", headings, rows),
        _more(view.destinations, "destination"),
        element("h3", "Names that programs asked for") if names else None,
        element("p", joined(names, ", ")) if names else None,
        _more(view.names, "name") if names else None,
    )


def _more(top: Top[Any], noun: str, plural: str | None = None) -> Html | None:
    if not top.more and top.rest is None:
        return None
    least = "at least " if top.is_bounded else ""
    rest = "" if top.rest is None else f", with {wording.packets(top.rest)}"
    return _none(
        f"And {least}{counted(top.more, f'more {noun}', plural and f'more {plural}')}{rest}."
    )


def coverage(view: View, unknown: Sequence[str]) -> Html:
    """Return the section about what is not known."""
    rows = [
        (
            element("time", wording.utc(each.start_ms), datetime=_datetime(each.start_ms)),
            badge(each.severity_id),
            joined([element("strong", each.title), f". {each.message} {each.consequence}"]),
            "has ended" if each.is_cleared else _lasted(each.start_ms, each.end_ms),
        )
        for each in view.coverage.limits.entries
    ]
    states = [
        (
            each.sandbox,
            joined([f"{each.state or 'unknown'}", " (at risk)" if each.is_secure is False else ""]),
            wording.utc(each.time_ms),
            each.message,
        )
        for each in view.coverage.fences
    ]
    gaps = ("Begin", "time"), ("Severity", "short"), ("What", "wide"), ("Time", "short")
    fences = ("Sandbox", "short"), ("State", "short"), ("Since", "time"), ("Event", "wide")
    known = element("ul", *(element("li", each) for each in unknown)) if unknown else None
    return _section(
        "coverage",
        "Coverage and gaps",
        known or _none("No gap is known in this period."),
        _table("Gaps and faults", gaps, rows) if rows else None,
        _table("Last known state of each fence", fences, states) if states else None,
    )


def identity(view: View) -> Html:
    """Return the section with the facts that identify each sandbox."""
    parts: list[Html] = []
    for name, facts in view.identity:
        by_name: dict[str, list[str]] = {}
        for kind, text in facts:
            by_name.setdefault(kind, []).append(text)
        parts.append(element("h3", f"Sandbox {name}"))
        parts.append(_facts((kind, ", ".join(texts)) for kind, texts in by_name.items()))
    more = _none("Further sandboxes are not shown.") if view.has_more_sandboxes else None
    return _section("identity", "Identity", *(parts or [_none("No sandbox.")]), more)


def _section(name: str, title: str, *content: Content) -> Html:
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, *content, id=name, aria_labelledby=f"{name}-title")


def _facts(facts: Iterable[tuple[str, Content]]) -> Html:
    shown = [(name, value) for name, value in facts if value and value != Html("")]
    return element(
        "dl",
        *(each for name, value in shown for each in (element("dt", name), element("dd", value))),
    )


def _table(
    caption: str, headings: Sequence[tuple[str, str]], rows: Sequence[Sequence[Content]]
) -> Html:
    if not rows:
        return _none("None.")
    head = (element("th", name, scope="col", class_=kind or None) for name, kind in headings)
    body = (
        element(
            "tr",
            *(
                element("td", cell, class_=kind or None, data_label=name)
                for (name, kind), cell in zip(headings, row, strict=True)
            ),
        )
        for row in rows
    )
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *head)),
        element("tbody", *body),
    )
    return element("div", table, class_="scroll")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def _none(text: str) -> Html:
    return element("p", text, class_="dim small")
