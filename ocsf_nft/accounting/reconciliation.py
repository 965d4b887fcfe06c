"""Comparison of kernel counters and events: each packet of a rule must be reported or pending."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

#: Mode of a fence: it refuses packets, or only reports them.
Mode: TypeAlias = Literal["enforcing", "permissive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Counted and reported packets of one rule of a sandbox in one mode, since its counters began.

    ``refused`` is the kernel's total of refused packets. ``allowed`` is its total of packets that a
    permissive fence would have refused. One of these totals is 0, depending on ``mode``.
    ``reported`` is the sum of ``count`` over all events. ``aggregated`` is the part of ``reported``
    whose events do not name a flow. ``dropped`` counts log records that no source read; the packets
    of these records are counted nevertheless. ``pending`` packets are counted by the kernel and not
    reported yet.
    """

    sandbox: str
    rule: str
    mode: Mode = "enforcing"
    refused: int = 0
    allowed: int = 0
    reported: int
    aggregated: int
    pending: int
    dropped: int

    @property
    def counter_mismatch(self) -> int:
        """Return the number of counted packets that are neither reported nor pending.

        The number is 0 in the normal case. It is negative if packets were reported too often.
        """
        return self.refused + self.allowed - self.reported - self.pending
