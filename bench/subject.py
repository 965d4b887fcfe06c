"""What a benchmark reports, and how it is shown."""

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
    """One table. ``failures`` are the checks that failed, as sentences."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()


def show(subject: Subject) -> None:
    """Print a table, what to know about it, and what it failed."""
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
    """The machine, as far as it bears on the numbers."""
    system = os.uname()
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {system.sysname} {system.release} {system.machine}, load {load:.2f}"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of ``values`` that so many percent of them do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def milliseconds(nanoseconds: float) -> str:
    """A duration for a table."""
    return f"{nanoseconds / 1e6:,.3f}"
