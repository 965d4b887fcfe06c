"""Readable differences between a fence's tables as they were installed and as they are now."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_HANDLE: Final = re.compile(r" # handle \d+$", re.MULTILINE)
#: Start of a set, a counter or a chain in nft's listing, or the end of the table.
_PART: Final = re.compile(r"^(?=\t\S.*\{$|\}$)", re.MULTILINE)
#: An attacker may add thousands of rules, or one that fills a screen.
_DIFFERENCE_LINES: Final = 20
_LINE_CHARACTERS: Final = 200


def difference(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Return the lines of a unified diff from the installed tables to the current tables.

    ``expected`` (installed) and ``found`` (current) map table names to nft's listings. Handles, and
    the order of chains, sets and counters, are ignored.
    """
    lines: list[str] = []
    for name in sorted({*expected, *found}):
        installed, current = (_sorted_parts(side.get(name, "")) for side in (expected, found))
        lines += difflib.unified_diff(
            installed, current, f"{name}, as installed", f"{name}, now", n=1, lineterm=""
        )
    return lines


def shortened(lines: list[str]) -> list[str]:
    """Return the first 20 lines, each cut to 200 characters.

    If lines were omitted, a last line states how many: "… and 3 more lines".
    """
    shown = [
        line if len(line) <= _LINE_CHARACTERS else f"{line[: _LINE_CHARACTERS - 1]}…"
        for line in lines[:_DIFFERENCE_LINES]
    ]
    if more := len(lines) - len(shown):
        shown.append(f"… and {more} more line{'' if more == 1 else 's'}")
    return shown


def _sorted_parts(listing: str) -> list[str]:
    # The order has no effect. It changes if a fence is replaced while some parts are preserved.
    head, *parts = _PART.split(_HANDLE.sub("", listing))
    return [line for part in (head, *sorted(parts)) for line in part.rstrip().splitlines()]
