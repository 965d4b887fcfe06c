"""Settings of the caller: destinations with priority, and the detection of findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.record import Record

IsFinding: TypeAlias = "Callable[[Record, int], bool]"


def _never(_record: Record, _packets: int) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Priority:
    """Settings of the caller: destinations with priority, and a function that detects findings.

    The number of flows with separate reports is limited. Additional reports are reserved for flows
    to ``destinations``. So these flows are reported separately even if a user has many flows.
    ``is_finding`` takes a record and the number of packets so far, and returns whether the attempts
    are a finding. By default, no destination has priority and nothing is a finding.
    """

    destinations: frozenset[str] = frozenset()
    is_finding: IsFinding = _never
