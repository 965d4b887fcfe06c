"""Summary of a report: who, what, when, how much, what to do, and what is not known."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.report import wording
from ocsf_nft.report.coverage import LIMITS
from ocsf_nft.report.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.report.findings import Finding
    from ocsf_nft.report.view import View

#: Maximum numbers of senders and of actions in a summary.
_SENDERS: Final = 3
_ACTIONS: Final = 5


class Summary(NamedTuple):
    """Answers to the questions of a reader, as sentences or parts of sentences."""

    what: str
    who: str
    when: str
    how_much: str
    #: Open findings with different advice, the most urgent first.
    actions: tuple[Finding, ...]
    unknown: tuple[str, ...]


def summary(view: View, *, since_ms: int | None = None) -> Summary:
    """Return the summary of a report's facts.

    ``since_ms`` is the requested start of its time span in ms since the epoch, if any.
    """
    return Summary(
        what=_what(view),
        who=_who(view),
        when=_when(view),
        how_much=_how_much(view),
        actions=_actions(view),
        unknown=tuple(_unknown(view, since_ms)),
    )


def _what(view: View) -> str:
    if not view.findings:
        if view.totals.packets:
            return "No finding. Some packets were reported, each in an event of its own."
        return "No finding, and no attempt to bypass the proxy."
    is_open = sum(each.is_open for each in view.findings)
    numbers = [counted(is_open, "open finding")] if is_open else []
    if len(view.findings) > is_open:
        numbers.append(counted(len(view.findings) - is_open, "closed finding"))
    first = view.findings[0]
    least = "At least " if view.more_findings else ""
    known = f"{least}{' and '.join(numbers)}"
    return f"{known}. {_most(view)}{first.title} ({_severity(first.severity_id)})."


def _most(view: View) -> str:
    return "" if len(view.findings) == 1 else "The most urgent: "


def _severity(severity_id: int) -> str:
    return f"severity {wording.severity(severity_id)}"


def _who(view: View) -> str:
    # The processes of findings come first, and those of the most urgent one before all others.
    rows = [each for finding in view.findings for each in finding.processes]
    rows += [facts for facts, _ in view.processes.rows if facts.process]
    senders = list(dict.fromkeys(wording.sender(each) for each in rows if not each.is_possible))
    if not senders:
        users = [each.user for each in view.findings]
        users += [facts.user for facts, _ in view.processes.rows]
        senders = [f"An unknown process of {user}" for user in dict.fromkeys(filter(None, users))]
    if not senders:
        return "Unknown: no event names a process or a user."
    number = len(senders) - _SENDERS + (view.processes.more if len(senders) > _SENDERS else 0)
    least = "at least " if view.processes.is_bounded else ""
    more = f", and {least}{counted(number, 'other')}" if number > 0 else ""
    sandboxes = list(dict(view.identity))
    where = "" if len(sandboxes) != 1 else f", in sandbox {sandboxes[0]}"
    if len(sandboxes) > 1:
        where = f", in {wording.sandboxes(view)}"
    return f"{', '.join(senders[:_SENDERS])}{more}{where}."


def _when(view: View) -> str:
    if view.first_ms is None or view.last_ms is None:
        return "No packet and no finding in this period."
    span = view.last_ms - view.first_ms
    lasted = f" ({wording.duration(span)})" if span >= 1000 else ""
    is_open = [each for each in view.findings if each.is_open]
    end = ""
    if is_open and all(each.is_inactive for each in is_open):
        end = " No open finding is active any more."
    return f"{wording.period(view.first_ms, view.last_ms)} UTC{lasted}.{end}"


def _how_much(view: View) -> str:
    totals = view.totals
    if not totals.packets:
        packets = max((each.count for each in view.findings if each.is_of_packets), default=0)
        others = sum(each.count for each in view.findings if not each.is_of_packets)
        if packets:
            up_to = counted(packets, "packet")
            return f"The findings count up to {up_to} each; their events are not here."
        if others:
            return f"No packet. {counted(others, 'event')} about the protection of the sandbox."
        return "No packet."
    number = len(view.destinations.rows) + view.destinations.more
    least = "at least " if view.destinations.is_bounded or totals.aggregated else ""
    allowed = f" and {counted(totals.allowed, 'packet')} allowed" if totals.allowed else ""
    return (
        f"{counted(totals.blocked, 'packet')} blocked{allowed}, "
        f"to {least}{counted(number, 'destination')}."
    )


def _actions(view: View) -> tuple[Finding, ...]:
    found: dict[str, Finding] = {}
    for each in view.findings:
        if each.is_open and each.remediation:
            found.setdefault(each.remediation, each)
    return tuple(found.values())[:_ACTIONS]


def _unknown(view: View, since_ms: int | None) -> Iterator[str]:
    first = view.read.first_ms
    if since_ms is not None and (first is None or first > since_ms):
        begin = "The input has no event."
        if first is not None:
            begin = f"The input begins at {wording.utc(first)} UTC, after the requested time."
        yield begin
    totals = view.totals
    if totals.named < totals.packets:
        yield (
            f"The process is unknown for {totals.packets - totals.named:,} of "
            f"{counted(totals.packets, 'packet')}."
        )
    if totals.aggregated:
        yield f"Packets that are reported without their destinations: {totals.aggregated:,}."
    kinds = Counter(each.code for each in view.coverage.limits.entries if not each.is_cleared)
    for code, number in kinds.items():
        yield f"{LIMITS[code][0]}: {counted(number, 'time')}."
    yield from _fences(view)
    if view.read.others:
        yield f"Lines of the input that are no OCSF event: {view.read.others:,}."
    if view.read.repeated:
        yield f"Repeated events, which are not counted again: {view.read.repeated:,}."


def _fences(view: View) -> Iterator[str]:
    insecure = [each.sandbox for each in view.coverage.fences if each.is_secure is False]
    if insecure:
        yield f"The last known state of the fence is not secure: {_named(insecure)}."
    known = {each.sandbox for each in view.coverage.fences}
    silent = [name for name, _ in view.identity if name not in known]
    if silent:
        yield f"No event has the state of the fence: {_named(silent)}."


def _named(sandboxes: list[str]) -> str:
    more = len(sandboxes) - _SENDERS
    names = ", ".join(f"sandbox {name}" for name in sandboxes[:_SENDERS])
    return f"{names} and {more:,} more" if more > 0 else names
