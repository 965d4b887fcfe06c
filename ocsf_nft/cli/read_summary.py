"""Parts of the summary line that a command prints after it has read log records."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def rejected(numbers: Mapping[str, int]) -> str:
    """Return text about the unparsed lines, for the end of a summary line; empty if there are none.

    ``numbers`` has the number of lines by kind of Reject.
    """
    return "".join(f", {number} {kind}" for kind, number in sorted(numbers.items()))
