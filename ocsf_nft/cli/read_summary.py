"""The last line of a command that read records."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def rejected(numbers: Mapping[str, int]) -> str:
    """How its end tells the lines that were rejected, by kind; empty when none were."""
    return "".join(f", {number} {kind}" for kind, number in sorted(numbers.items()))
