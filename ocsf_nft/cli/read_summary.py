"""Parts of the summary line that a command prints after it has read log records."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def rejected(numbers: Mapping[str, int]) -> str:
    """Return the end of a summary line with the numbers of rejected log lines.

    For example, ``{"malformed": 2}`` gives ``, 2 malformed``. ``numbers`` has the number of lines
    for each kind of rejection (``Reject.kind``). If ``numbers`` is empty, the text is empty.
    """
    return "".join(f", {number} {kind}" for kind, number in sorted(numbers.items()))
