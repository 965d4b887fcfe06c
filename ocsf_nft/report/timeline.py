"""Timeline of a report: findings, packets, changes of the fence and gaps, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from ocsf_nft.report import wording
from ocsf_nft.report.tables import MostSevere, Shortlist

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.report.tables import Counts
    from ocsf_nft.report.view import Flow, View

Kind: TypeAlias = Literal["Finding", "Traffic", "Fence", "Service", "Gap"]
_MOST: Final = 100
#: Maximum number of flows: the page lists all destinations in another section.
_FLOWS: Final = 20


class Entry(NamedTuple):
    """Entry of a timeline; times are in ms since the epoch."""

    time_ms: int
    end_ms: int
    severity_id: int
    kind: Kind
    text: str
    sandbox: str


def timeline(view: View) -> Shortlist[Entry]:
    """Return the most severe entries in the order of their times, and the number of others."""
    found: MostSevere[Entry] = MostSevere(_MOST)
    for entry in _entries(view):
        found.add(entry.severity_id, entry.time_ms, entry)
    listed, coverage = found.shortlist(), view.coverage
    unseen = sum(each.more for each in (coverage.limits, coverage.fence_changes))
    unseen += coverage.lifecycle.more + view.more_findings
    unseen += view.flows.more + len(view.flows.rows[_FLOWS:])
    return Shortlist(listed.entries, listed.more + unseen)


def _rank(row: tuple[Flow, Counts]) -> tuple[bool, int, int]:
    flow, counts = row
    return not flow.is_allowed, -flow.severity_id, -counts.packets


def _entries(view: View) -> Iterator[Entry]:
    for finding in view.findings:
        yield Entry(
            finding.first_ms, finding.last_ms, finding.severity_id, "Finding", finding.title,
            finding.sandbox,
        )  # fmt: skip
    for flow, counts in sorted(view.flows.rows, key=_rank)[:_FLOWS]:
        outcome = "Allowed" if flow.is_allowed else "Blocked"
        what = (
            f"{outcome} {wording.counted(counts.packets, 'packet')}: {flow.sender} → {flow.traffic}"
        )
        yield Entry(
            counts.first_ms, counts.last_ms, flow.severity_id, "Traffic", what, flow.sandbox
        )
    for limit in view.coverage.limits.entries:
        end = " It has ended." if limit.is_cleared else ""
        yield Entry(
            limit.start_ms, limit.end_ms, limit.severity_id, "Gap", f"{limit.message}{end}",
            limit.sandbox,
        )  # fmt: skip
    for change in view.coverage.fence_changes.entries:
        by = change.by and f"By {change.by}."
        text = " ".join(filter(None, (change.message, change.detail, by)))
        yield Entry(
            change.time_ms, change.time_ms, change.severity_id, "Fence", text, change.sandbox
        )
    for event in view.coverage.lifecycle.entries:
        yield Entry(event.time_ms, event.time_ms, event.severity_id, "Service", event.message, "")
