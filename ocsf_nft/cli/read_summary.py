"""Text for the summary line that a command prints after it has read log records."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def rejected(numbers: Mapping[str, int]) -> str:
    """Return the end of a summary line: the numbers of rejected log lines, by kind.

    For example, ``{"malformed": 2}`` becomes ``, 2 malformed``. Without rejected lines, the
    text is empty.
    """
    return "".join(f", {number} {kind}" for kind, number in sorted(numbers.items()))
