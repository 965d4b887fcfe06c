"""Whether the account of a rule closes: what the kernel refused is told, or on its way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

#: Whether a fence refuses, or only tells.
Mode: TypeAlias = Literal["enforcing", "permissive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """One rule of one sandbox in one mode, in packets, since its counters began.

    ``refused`` is the kernel's own total of what it refused, ``let_pass`` that of what a permissive
    fence would have refused; one of them is 0, by the ``mode``. ``reported`` is the sum of
    ``count`` over all events, and ``overflowed`` how many of those were told without saying which
    flow they were of.
    ``lost`` are the log records that nobody has read; what they are of is counted all the same.
    ``in_flight`` is what the kernel's counters hold and no event has told yet.
    """

    sandbox: str
    rule: str
    mode: Mode = "enforcing"
    refused: int = 0
    let_pass: int = 0
    reported: int
    overflowed: int
    in_flight: int
    lost: int

    @property
    def imbalance(self) -> int:
        """What is missing (positive) or was told too often (negative): 0 when all is well."""
        return self.refused + self.let_pass - self.reported - self.in_flight
