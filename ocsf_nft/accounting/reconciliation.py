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
    """Numbers of packets and lost log records of a firewall rule, since its counters were created.

    An enforcing fence counts packets as ``refused``, and a permissive fence counts them as
    ``allowed``. ``reported`` is the number of packets in events. ``aggregated`` is the part of
    ``reported`` in events that report several flows together. ``pending`` is the number of counted
    packets that a later event will report. ``dropped`` is the number of kernel log records that
    were lost before ocsf-nft read them.
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

        The normal number is 0. It is negative if packets were reported too often.
        """
        return self.refused + self.allowed - self.reported - self.pending
