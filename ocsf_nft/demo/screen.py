"""Output of the demo on standard error: a growing table, and one complete event.

Each row of the table shows an attempt to send packets from the demo's sandbox.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from rich import box
from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ocsf_nft.demo.attempts import PROXY_URL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ocsf_nft.demo.attempts import Attempt, Outcome

_SEVERITY_STYLES: Final = {"High": "bold red", "Medium": "yellow", "Low": "cyan"}
#: From this width on there is room for the hint in an event.
_WIDE: Final = 110
#: Wider lines are hard to read.
_WIDEST: Final = 140
#: With this width a row takes three lines on 80 columns.
_TRIED_COLUMNS: Final = 35
#: Maximum lines of a row on a terminal, and lines of title, head and caption.
_ROW_LINES: Final = 3
_OTHER_LINES: Final = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Row of the demo's table: an attempt to send packets, its outcome, and its event.

    ``event`` is None if no event reports the attempt.
    """

    attempt: Attempt
    outcome: Outcome
    event: Mapping[str, Any] | None

    @property
    def fault(self) -> str | None:
        """Return an unexpected outcome as text, such as "was not refused".

        Return None if the outcome is as expected.
        """
        if self.attempt.trace is None:
            return None if self.outcome.got_through else "did not get through"
        if self.outcome.got_through:
            return "was not refused"
        return "was not reported" if self.event is None else None


class Screen:
    """Table on standard error, with a row for each attempt of the demo to send packets.

    A terminal shows each new row at once. Any other output gets the table at the end of the
    ``with`` block.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self.rows: list[Row] = []
        self._console.width = min(self._console.width, _WIDEST)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        """Print an introduction; on a terminal, also start the growing table."""
        self._console.print()
        self._print(
            f"[bold]A sandbox is fenced. [/]Its only way out is the proxy at [bold]{PROXY_URL}[/]. "
            "Programs inside now try to bypass it. The kernel refuses each attempt at once, and "
            "ocsf-nft reports it.\n"
        )
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Print the complete table."""
        self._live.stop()
        if self.rows:
            self._console.print(self._table(self.rows))
            self._console.print()

    @property
    def is_watched(self) -> bool:
        """Return True if the output is a terminal."""
        return self._console.is_terminal

    def add(self, row: Row) -> None:
        """Add a row to the table; a terminal shows it at once."""
        self.rows.append(row)
        if self.is_watched:
            # A longer table would be truncated at its end, which has the newest rows.
            fitting = max(1, (self._console.height - _OTHER_LINES) // _ROW_LINES)
            self._live.update(self._table(self.rows[-fitting:]), refresh=True)

    def conclude(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Print the complete event of the first attempt, a summary of all attempts, and next steps.

        ``events`` are all events of the demo.
        """
        refused = [row for row in self.rows if row.attempt.trace is not None]
        reported = [row.event for row in refused if row.event is not None]
        if reported:
            self._console.rule("The complete event of the first attempt", style="dim")
            text = Text(folded(reported[0], self._console.width))
            JSONHighlighter().highlight(text)
            self._console.print(text, soft_wrap=True)
            self._console.rule(style="dim")
        well = sum(row.fault is None for row in refused)
        self._print(
            f"[bold]{well} of {len(refused)} attempts refused and reported[/]{_slowest(refused)}. "
            f"{_others(events)}The sandbox and its fence were removed."
        )
        self._print(
            "Next: [bold]ocsf-nft check[/] shows what this host can do; [bold]ocsf-nft run --help"
            "[/] shows how to fence and watch your own sandbox."
        )

    def give_up(self) -> None:
        """Print that the demo was ended early."""
        self._console.print("Ended early. The sandbox and its fence were removed.")

    def _print(self, markup: str) -> None:
        self._console.print(Text.from_markup(markup, emoji=False))

    def _table(self, rows: Sequence[Row]) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD,
            expand=True,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            header_style="dim",
            caption_justify="left",
        )
        table.add_column("", width=1)
        table.add_column("Attempt and result", width=_TRIED_COLUMNS)
        table.add_column("Event", width=8)
        table.add_column("Message", ratio=1)
        if any(row.outcome.is_timed_outside for row in rows):
            table.caption = "≤ counted from the start of the program; others measure their own time"
        for row in rows:
            table.add_row(_mark(row), _tried(row), _severity(row), self._message(row))
        return table

    def _message(self, row: Row) -> Text:
        if row.fault is not None:
            return Text(f"This attempt {row.fault}", style="bold red")
        if row.event is None:
            return Text("no event: this way out is allowed", style="green")
        message = Text(row.event["message"])
        hint = str(row.event.get("status_detail", "")).partition(". ")[2]
        if hint and self._console.width >= _WIDE:
            message.append(f"\n{hint}", style="dim")
        return message


def folded(value: Any, width: int, indent: int = 0, taken: int = 0) -> str:
    """Return a value as readable JSON, with line breaks so that lines fit in ``width`` columns.

    ``indent`` is the indentation of the line in which the value begins. ``taken`` is the number of
    columns before the value in that line.
    """
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or taken + len(flat) + len(",") <= width:
        return flat
    inner = indent + 2
    if isinstance(value, dict):
        keys = [f"{json.dumps(key, ensure_ascii=False)}: " for key in value]
        members = list(zip(keys, value.values(), strict=True))
        opening, closing = "{}"
    else:
        members = [("", member) for member in value]
        opening, closing = "[]"
    lines = [opening]
    can_go_on = False
    for number, (key, member) in enumerate(members, 1):
        comma = "," if number < len(members) else ""
        text = key + folded(member, width, inner, inner + len(key)) + comma
        is_plain = not isinstance(member, dict | list)
        if can_go_on and is_plain and len(lines[-1]) + 1 + len(text) <= width:
            lines[-1] += f" {text}"
        else:
            lines.append(" " * inner + text)
        can_go_on = is_plain
    return "\n".join([*lines, " " * indent + closing])


def _mark(row: Row) -> Text:
    if row.fault is not None:
        return Text("!", style="bold red")
    return Text("✓", style="green") if row.attempt.trace is None else Text("✗", style="red")


def _tried(row: Row) -> Text:
    outcome = row.outcome
    took = f"{outcome.milliseconds:.2f} ms"
    if outcome.is_timed_outside:
        took = f"≤ {outcome.milliseconds:.0f} ms"
    return Text.assemble(
        (row.attempt.title, "bold"), "\n", (took, "green"), f" {_printable(outcome.saw)}"
    )


def _severity(row: Row) -> Text:
    if row.event is None:
        return Text("-", style="dim")
    severity = row.event["severity"]
    return Text.assemble(
        (severity, _SEVERITY_STYLES.get(severity, "")),
        ("\n", ""),
        (row.event["firewall_rule"]["name"], "dim"),
    )


def _slowest(refused: Sequence[Row]) -> str:
    if not refused:
        return ""
    slowest = max(row.outcome.milliseconds for row in refused)
    return f", none waited longer than {slowest:.1f} ms"


def _others(events: Sequence[Mapping[str, Any]]) -> str:
    others = sum(
        # The sandbox's kernel sent these packets by itself.
        event["activity_name"] == "Refuse" and event["severity"] == "Informational"
        for event in events
    )
    if not others:
        return ""
    kind = "event reports" if others == 1 else "events report"
    return f"{others} more {kind} packets of the sandbox's kernel for managing its IPv6 link. "


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "�" for character in text)
