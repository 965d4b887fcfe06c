"""Settings that prefer some destinations for separate events, and that select OCSF findings.

If there are too many flows, flows to a preferred destination can still get separate events.
"""

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
    """Settings that reserve events for some destinations, and decide about OCSF findings.

    Only a limited number of flows gets separate events; the other flows share events. Flows to the
    IP addresses in ``destinations`` have a reserve of separate events beyond this limit. A series
    of refused packets of one flow is an incident. ``is_finding`` takes the flow's latest log
    record, and the number of packets in the incident so far. If ``is_finding`` returns true, the
    incident is also reported as an OCSF finding.
    """

    destinations: frozenset[str] = frozenset()
    is_finding: IsFinding = _never
