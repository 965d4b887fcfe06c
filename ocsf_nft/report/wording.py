"""Words of reports: times, numbers, severities and senders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.utc_text import utc_text

if TYPE_CHECKING:
    from ocsf_nft.report.findings import Finding
    from ocsf_nft.report.processes import ProcessFacts
    from ocsf_nft.report.tables import Counts
    from ocsf_nft.report.view import View

SEVERITIES: Final = {
    1: "Informational",
    2: "Low",
    3: "Medium",
    4: "High",
    5: "Critical",
    6: "Fatal",
}
_UNITS: Final = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s"))
#: Characters of a date, with the separator after it.
_DATE: Final = len("2026-11-24 ")


def severity(severity_id: int) -> str:
    """Return the caption of a severity_id; "Unknown" for other numbers."""
    return SEVERITIES.get(severity_id, "Unknown")


def utc(time_ms: int | None) -> str:
    """Return a time in ms since the epoch as UTC text: ``2026-11-24 23:47:46``."""
    found = utc_text(time_ms)
    return "unknown time" if found is None else found[:19].replace("T", " ")


def period(first_ms: int, last_ms: int) -> str:
    """Return a period as text: the end has its date only if that is another one."""
    first, last = utc(first_ms), utc(last_ms)
    if first == last:
        return first
    return f"{first} to {last[_DATE:] if first[:_DATE] == last[:_DATE] else last}"


def duration(milliseconds: int) -> str:
    """Return a duration with its two largest units, such as ``2 h 5 min``."""
    parts: list[str] = []
    rest = max(0, milliseconds)
    for size, unit in _UNITS:
        if rest >= size and len(parts) < 2:
            parts.append(f"{rest // size} {unit}")
        rest %= size
    return " ".join(parts) or f"{max(0, milliseconds)} ms"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, for example "2,034,112 packets"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def sandboxes(view: View) -> str:
    """Return the number of sandboxes as text, such as "2 sandboxes" or "more than 50 sandboxes"."""
    least = "more than " if view.has_more_sandboxes else ""
    return f"{least}{counted(len(view.identity), 'sandbox', 'sandboxes')}"


def packets(counts: Counts) -> str:
    """Return numbers of packets by outcome: "40 blocked", or "40 blocked, 2 allowed"."""
    if not counts.events:
        return "named by a finding"
    if not counts.allowed:
        return f"{counts.blocked:,} blocked"
    allowed = f"{counts.allowed:,} allowed"
    return f"{counts.blocked:,} blocked, {allowed}" if counts.blocked else allowed


def steps(advice: str) -> tuple[str, ...]:
    """Return the steps of an advice such as "1. Check. 2. Act."; one step if it has no numbers."""
    if not advice.startswith("1. "):
        return (advice,)
    found: list[str] = []
    rest = advice.removeprefix("1. ")
    while rest:
        step, _, rest = rest.partition(f" {len(found) + 2}. ")
        found.append(step)
    return tuple(found)


def sender(facts: ProcessFacts) -> str:
    """Return a process with its user: "curl[4242] of agent (uid 1000)"."""
    return f"{facts.name} of {facts.user}" if facts.user else facts.name


def state(finding: Finding) -> str:
    """Return the state of a finding, such as "open: New." or "closed"."""
    word = "open" if finding.is_open else "closed"
    return f"{word}: {finding.status_detail}" if finding.status_detail else word
