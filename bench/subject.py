"""Report of a benchmark, and its output."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One table with its notes. ``failures`` are the failed checks, as sentences."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()


def show(subject: Subject) -> None:
    """Print a table, its notes, and its failures."""
    console = Console(width=110, highlight=False)
    table = Table(title=subject.title, title_justify="left", title_style="bold")
    for number, column in enumerate(subject.columns):
        table.add_column(column, justify="right" if number else "left")
    for row in subject.rows:
        table.add_row(*row)
    console.print()
    console.print(table)
    for note in subject.notes:
        console.print(f"  {note}", markup=False)
    for failure in subject.failures:
        console.print(f"  FAILED: {failure}", markup=False, style="bold red")


def machine() -> str:
    """Return a description of the machine's hardware and software that matter for the numbers."""
    system = os.uname()
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {system.sysname} {system.release} {system.machine}, load {load:.2f}"


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of ``values`` that ``percent`` of them do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def milliseconds(nanoseconds: float) -> str:
    """Format a duration in milliseconds for a table."""
    return f"{nanoseconds / 1e6:,.3f}"
