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
    """Settings that reserve separate events for some destinations, and select OCSF findings.

    Only a limited number of flows gets separate events; the other flows share events.
    """

    #: IP addresses. Flows to them have a reserve of separate events beyond the common limit.
    destinations: frozenset[str] = frozenset()
    #: Takes a flow's latest log record, and the number of packets in its incident so far. An
    #: incident is a series of a flow's refused packets. True: also report it as an OCSF finding.
    is_finding: IsFinding = _never
