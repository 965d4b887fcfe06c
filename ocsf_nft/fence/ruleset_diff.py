"""What differs between a fence as it was installed and as it stands, in lines for people."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_HANDLE: Final = re.compile(r" # handle \d+$", re.MULTILINE)
#: Where a set, a counter or a chain begins in nft's listing, or the table ends.
_PART: Final = re.compile(r"^(?=\t\S.*\{$|\}$)", re.MULTILINE)
#: Who alters a fence may alter it by thousands of rules, or by one that fills a screen.
_DIFFERENCE_LINES: Final = 20
_LINE_CHARACTERS: Final = 200


def difference(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """The lines that differ between listings, by table; handles aside, and the order of the parts.

    What is kept when a fence is replaced stays where it was in nft's listing; the order of chains
    and sets there means nothing.
    """
    lines: list[str] = []
    for name in sorted({*expected, *found}):
        wanted, there = (_in_order(side.get(name, "")) for side in (expected, found))
        lines += difflib.unified_diff(
            wanted, there, f"{name}, as installed", f"{name}, now", n=1, lineterm=""
        )
    return lines


def shortened(lines: list[str]) -> list[str]:
    """The first of the lines, none too long, and how many were left out."""
    kept = [
        line if len(line) <= _LINE_CHARACTERS else f"{line[: _LINE_CHARACTERS - 1]}…"
        for line in lines[:_DIFFERENCE_LINES]
    ]
    if more := len(lines) - len(kept):
        kept.append(f"… and {more} more line{'' if more == 1 else 's'}")
    return kept


def _in_order(listing: str) -> list[str]:
    head, *parts = _PART.split(_HANDLE.sub("", listing))
    return [line for part in (head, *sorted(parts)) for line in part.rstrip().splitlines()]
