"""Comparison of the packets that the kernel has counted with the packets that events report.

Each counted packet of a firewall rule must be reported by an event, or be pending.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

#: Mode of a fence: it refuses packets, or only reports them.
Mode: TypeAlias = Literal["enforcing", "permissive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Numbers of counted and reported packets of one firewall rule of a sandbox.

    The numbers begin at 0 when the rule's counters are created. Each ``mode`` of the fence has
    separate counters. ``refused`` packets were counted in an enforcing fence. ``allowed`` packets
    were counted in a permissive fence, which would refuse them if it were enforcing. So one of
    these numbers is 0. ``reported`` is the number of packets in events, the sum of their ``count``.
    ``aggregated`` is the part of ``reported`` whose events do not name a flow. ``pending`` packets
    are counted by the kernel and not reported yet. ``dropped`` is the number of log records that no
    source read; the packets of these records are counted nevertheless.
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
