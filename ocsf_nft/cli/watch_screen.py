"""Live view of a sandbox on a terminal, for the command ``watch``.

Every part has a fixed number of lines, so that the view fits a terminal of any size.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import RenderableType

    from ocsf_nft.cli.sandbox_activity import Activity, AttemptRow

    #: Part of the view, and its number of lines.
    _Part: TypeAlias = tuple[RenderableType, int]

#: Colours of severities and states; the first ones are those of `ocsf-nft tail`.
_STYLES: Final[Mapping[str, str]] = {
    "informational": "dim",
    "low": "cyan",
    "medium": "yellow",
    "high": "bold red",
    "critical": "bold white on red",
    "active": "bold green",
    "degraded": "bold yellow",
    "waiting": "bold yellow",
}
_FAULTY: Final = "bold red"
#: From this width on there is room for the outcome of an attempt, and for processes and rules side
#: by side.
_WIDE: Final = 90
#: From this width on there is room for severities.
_NORMAL: Final = 50
#: Maximum lines of rules, processes and other events, without their headings.
_MOST_RULES: Final = 8
_MOST_PROCESSES: Final = 8
_MOST_OTHERS: Final = 4
_HEADER_LINES: Final = 3
#: Lines for attempts that the other parts leave, if the terminal has them.
_LEAST_ATTEMPTS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Content of the view."""

    name: str
    #: Last answer of the service about the sandbox; None before the first one.
    view: Mapping[str, Any] | None
    #: Whether the service does not answer now.
    is_stopped: bool
    activity: Activity


class Screen:
    """Live view on the terminal at standard output, inside a ``with`` block."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stdout, highlight=False, emoji=False)
        self._live = Live(
            console=self._console, auto_refresh=False, screen=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip

    def __enter__(self) -> Self:
        """Switch the terminal to its alternate screen."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Show what the terminal had shown before."""
        self._live.stop()

    def show(self, shown: Shown) -> None:
        """Draw the view again."""
        self._live.update(self._view(shown), refresh=True)

    def _view(self, shown: Shown) -> RenderableType:
        width, height = self._console.size
        is_wide = width >= _WIDE
        counts = [] if shown.view is None else shown.view["counts"]
        rules = _rules(counts[:_MOST_RULES], shown.view)
        processes = _processes(shown.activity, _MOST_PROCESSES)
        others = _others(shown.activity, _MOST_OTHERS, width)
        # Without the header and the heading of the attempts.
        rest = height - _HEADER_LINES - 1
        parts: list[RenderableType] = []
        for part, lines in _side_by_side(rules, processes, is_wide=is_wide), others:
            if rest - lines >= _LEAST_ATTEMPTS:
                parts.append(part)
                rest -= lines
        attempts = _attempts(list(shown.activity.attempts)[-max(rest, 1) :], width)
        return Group(*_header(shown), attempts, *parts)


def _header(shown: Shown) -> Iterable[Text]:
    view = shown.view
    first = Text(no_wrap=True, overflow="ellipsis")
    first.append(f"sandbox {visible(shown.name)}", style="bold")
    if view is not None:
        first.append("  ")
        first.append(visible(view["state"]), style=_STYLES.get(view["state"], _FAULTY))
        first.append(f"  {visible(view['mode'])}, added {visible(view['since'])}")
    fault = "" if view is None or view["fault"] is None else visible(view["fault"])
    if shown.is_stopped:
        fault = "the service has stopped: waiting until it runs again"
    yield first
    yield Text(fault or "Ctrl-C ends", style=_FAULTY if fault else "dim", no_wrap=True,
               overflow="ellipsis")  # fmt: skip
    yield Text()


def _attempts(attempts: Sequence[AttemptRow], width: int) -> Table:
    table = _table()
    table.add_column("UTC", no_wrap=True, width=8)
    if width >= _NORMAL:
        table.add_column("severity", no_wrap=True, width=8)
    table.add_column("process", ratio=2, no_wrap=True)
    table.add_column("destination", ratio=3, no_wrap=True)
    if width >= _WIDE:
        table.add_column("outcome", ratio=1, no_wrap=True)
    table.add_column("packets", justify="right", no_wrap=True, width=7)
    for each in attempts:
        cells = [Text(each.time, style="dim")]
        if width >= _NORMAL:
            cells.append(Text(each.severity, style=_STYLES[each.style]))
        cells += [Text(each.process), Text(each.destination)]
        if width >= _WIDE:
            cells.append(Text(each.outcome))
        table.add_row(*cells, Text(_number(each.packets)))
    return table


def _rules(counts: Sequence[Mapping[str, Any]], view: Mapping[str, Any] | None) -> _Part:
    table = _table()
    counted = "allowed" if view is not None and view["mode"] == "permissive" else "refused"
    table.add_column("rule", ratio=1, no_wrap=True)
    for heading in (counted, "reported", "pending"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in counts:
        packets = row["refused"] + row["allowed"]
        numbers = (packets, row["reported"], row["pending"])
        table.add_row(Text(visible(row["rule"])), *(Text(_number(each)) for each in numbers))
    return table, 2 + len(counts)


def _processes(activity: Activity, most: int) -> _Part:
    table = _table()
    table.add_column("process", ratio=1, no_wrap=True)
    table.add_column("attempts", justify="right", no_wrap=True)
    table.add_column("packets", justify="right", no_wrap=True)
    found = activity.processes()[:most]
    for name, count in found:
        table.add_row(Text(name), Text(_number(count.attempts)), Text(_number(count.packets)))
    return table, 2 + len(found)


def _others(activity: Activity, most: int, width: int) -> _Part:
    table = _table()
    table.add_column("UTC", no_wrap=True, width=8)
    if width >= _NORMAL:
        table.add_column("severity", no_wrap=True, width=8)
    table.add_column("fence and findings", ratio=1, no_wrap=True)
    found = list(activity.others)[-most:]
    for each in found:
        cells = [Text(each.time, style="dim"), Text(each.text)]
        if width >= _NORMAL:
            cells.insert(1, Text(each.severity, style=_STYLES[each.style]))
        table.add_row(*cells)
    return Group(Text(), table), 2 + len(found)


def _side_by_side(one: _Part, other: _Part, *, is_wide: bool) -> _Part:
    """Return two tables as one part, below an empty line."""
    if not is_wide:
        return Group(Text(), one[0], Text(), other[0]), one[1] + other[1]
    grid = Table.grid(expand=True, padding=(0, 2, 0, 0))
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    grid.add_row(one[0], other[0])
    return Group(Text(), grid), max(one[1], other[1])


def _table() -> Table:
    return Table(
        box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim",
    )  # fmt: skip


def _number(number: int) -> str:
    return f"{number:,}"
