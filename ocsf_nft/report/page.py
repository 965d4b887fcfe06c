"""Page of a report: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Final

from ocsf_nft.report import charts, sections, wording
from ocsf_nft.report.clipped import clipped
from ocsf_nft.report.html import Html, element, joined
from ocsf_nft.report.style import STYLE
from ocsf_nft.report.summary import summary

if TYPE_CHECKING:
    from ocsf_nft.report.html import Content
    from ocsf_nft.report.summary import Summary
    from ocsf_nft.report.view import View

_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
#: Maximum number of characters of a subject.
_SUBJECT: Final = 240
#: The browser may load nothing, run nothing and send nothing. Only our style sheet applies.
_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'"
)
_SECTIONS: Final = (
    ("summary", "Summary"),
    ("activity", "Activity"),
    ("findings", "Findings"),
    ("timeline", "Timeline"),
    ("processes", "Processes"),
    ("destinations", "Destinations"),
    ("coverage", "Coverage and gaps"),
    ("identity", "Identity"),
)


def page(view: View, *, subject: str, made_ms: int, since_ms: int | None = None) -> bytes:
    """Return the page as UTF-8.

    ``subject`` is what the report is about, such as "Sandbox agent". ``made_ms`` is the present
    time, and ``since_ms`` the requested start of the time span, both in ms since the epoch.
    """
    found = summary(view, since_ms=since_ms)
    subject = clipped(subject, _SUBJECT)
    chart = charts.activity(view)
    body = element(
        "body",
        _header(subject, found.when, made_ms),
        element(
            "main",
            _summary(view, found),
            element("section", element("h2", "Activity over time", id="activity-title"), chart,
                    id="activity", aria_labelledby="activity-title") if chart else None,
            sections.findings(view),
            sections.timeline_section(view),
            sections.processes(view),
            sections.destinations(view),
            sections.coverage(view, found.unknown),
            sections.identity(view),
        ),
        _footer(view),
    )  # fmt: skip
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{subject}: report"),
        element("style", Html(STYLE)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en').text}\n".encode()


def _header(subject: str, when: str, made_ms: int) -> Html:
    links = (element("li", element("a", title, href=f"#{name}")) for name, title in _SECTIONS)
    return element(
        "header",
        element("p", "ocsf-nft · report", class_="brand"),
        element("h1", subject),
        element("p", f"{when} Report made {wording.utc(made_ms)} UTC.", class_="dim"),
        element("nav", element("ul", *links), aria_label="Sections"),
    )


def _summary(view: View, found: Summary) -> Html:
    unknown = [element("li", each) for each in found.unknown]
    answers = (
        ("What", found.what),
        ("Who", found.who),
        ("When", found.when),
        ("How much", found.how_much),
        ("What to do", _actions(view, found)),
        ("Not known", element("ul", *unknown) if unknown else "No gap is known."),
    )
    pairs = (each for name, text in answers for each in (element("dt", name), element("dd", text)))
    return element(
        "section",
        element("h2", "Summary", id="summary-title"),
        element("dl", *pairs, class_="answers"),
        _tiles(view),
        id="summary",
        aria_labelledby="summary-title",
    )


def _actions(view: View, found: Summary) -> Content:
    if not found.actions:
        return "Nothing: no finding is open."
    if len(found.actions) == 1:
        return sections.steps(found.actions[0])
    numbers = {each.uid: number for number, each in enumerate(view.findings, 1)}
    links = (
        element("a", each.title, href=f"#finding-{numbers[each.uid]}") for each in found.actions
    )
    order = element("ol", *(element("li", each) for each in links))
    return joined(["In this order; each finding has its steps:", order])


def _tiles(view: View) -> Html:
    totals, tops = view.totals, (view.destinations, view.processes)
    destinations, processes = (len(each.rows) + each.more for each in tops)
    limits, is_open = view.coverage.limits, sum(each.is_open for each in view.findings)
    # Name, number, whether it is bad, and whether it is a lower bound.
    tiles = (
        ("open findings", is_open, True, is_open and view.more_findings),
        ("packets blocked", totals.blocked, False, False),
        ("packets allowed", totals.allowed, True, False),
        ("destinations", destinations, False, view.destinations.is_bounded),
        ("senders", processes, False, view.processes.is_bounded),
        ("gaps and faults", len(limits.entries) + limits.more, True, False),
    )
    return element(
        "ul",
        *(
            element(
                "li",
                element("strong", f"{number:,}{'+' if is_least else ''}"),
                name,
                class_="warn" if is_bad and number else None,
            )
            for name, number, is_bad, is_least in tiles
        ),
        class_="tiles",
    )


def _footer(view: View) -> Html:
    counts = (
        "Packets are the sum of count over Network Activity events (4001). Totals of findings "
        "(2004) count the same packets again and are not added. If an event names several "
        "processes, its packets are shown for each of them. Packets are drawn at the end of their "
        "time window."
    )
    lines = wording.counted(view.read.lines, "line")
    used = f"{wording.counted(view.totals.events, 'event')} of {lines} were used."
    return element("footer", element("p", counts), element("p", used))
