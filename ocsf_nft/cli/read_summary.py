"""Last line of the output of a command that read records."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def rejected(numbers: Mapping[str, int]) -> str:
    """Return the end of the line, with the rejected lines by kind; empty if there are none."""
    return "".join(f", {number} {kind}" for kind, number in sorted(numbers.items()))
