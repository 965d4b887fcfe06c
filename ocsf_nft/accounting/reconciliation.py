"""Check that each packet counted by a firewall rule is reported in exactly one event.

A packet that is in no event yet must be pending: it is stored for a later event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

#: Mode of a fence: it refuses packets, or only reports them.
Mode: TypeAlias = Literal["enforcing", "permissive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Numbers of counted and reported packets of a firewall rule, and of dropped log records.

    The numbers begin at 0 when the rule's counters are created.
    """

    sandbox: str
    rule: str
    mode: Mode = "enforcing"
    #: Packets that an enforcing fence has counted.
    refused: int = 0
    #: Packets that a permissive fence has counted.
    allowed: int = 0
    #: Packets in events.
    reported: int
    #: Part of ``reported``: packets in events that report several flows together.
    aggregated: int
    #: Counted packets that a later event will report.
    pending: int
    #: Kernel log records that were dropped before ocsf-nft read them.
    dropped: int

    @property
    def counter_mismatch(self) -> int:
        """Return how many counted packets are neither in an event nor stored for a later event.

        Normally the number is 0. It is negative if events report more packets than were counted.
        """
        return self.refused + self.allowed - self.reported - self.pending
