"""Whether the account of a rule closes: what the kernel refused is told, or on its way."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """One rule of one sandbox, in packets, since its counters began.

    ``refused`` is the kernel's own total, ``reported`` the sum of ``count`` over all events, and
    ``overflowed`` how many of those were told without saying which flow they were of.
    ``lost`` are the log records that nobody has read; what they are of is counted all the same.
    ``in_flight`` is what the kernel's counters hold and no event has told yet.
    """

    sandbox: str
    rule: str
    refused: int
    reported: int
    overflowed: int
    in_flight: int
    lost: int

    @property
    def imbalance(self) -> int:
        """What is missing (positive) or was told too often (negative): 0 when all is well."""
        return self.refused - self.reported - self.in_flight
