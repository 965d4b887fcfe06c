"""Tables on standard output: with lines and colours on a terminal, else plain columns."""

# ruff: noqa: PLC0415 - rich is slow to import, and only a terminal needs it

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from ocsf_nft.cli import output
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_GAP: Final = "  "


def write_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to standard output; control characters in its cells are escaped.

    No text is shortened: on a narrow terminal it continues in the next line.
    """
    cells = [[visible(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _write_with_rich(headings, cells)
    else:
        lines = _plain(headings, cells)
        output.write("".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))


def _plain(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    table = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield _GAP.join(cells).rstrip()


def _write_with_rich(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        # As Text, since a cell such as [red] is no markup.
        table.add_row(*map(Text, row))
    console = Console(file=sys.stdout, highlight=False)
    with console.capture() as capture:
        console.print(table)
    output.write(capture.get().encode(errors="backslashreplace"))
