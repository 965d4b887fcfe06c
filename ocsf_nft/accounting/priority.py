"""Settings for the accounting: which destinations have priority, which incidents are findings."""

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
    """Settings for the accounting: which destinations have priority, which incidents are findings.

    Only a limited number of flows gets separate events. Flows to the IP addresses in
    ``destinations`` have a reserve of separate events beyond this limit. ``is_finding`` takes a
    flow's latest log record, and the number of packets in the flow's incident so far. The function
    returns true if the incident is a finding.
    """

    destinations: frozenset[str] = frozenset()
    is_finding: IsFinding = _never
