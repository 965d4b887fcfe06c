"""Settings: preferred destinations of flows, and a condition for Detection Finding events.

If there are too many flows, they share events, but some to preferred destinations get their own.
The condition is a function of a flow's log record and number of packets.
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
    """Settings: preferred destinations of flows, and a condition for Detection Finding events.

    If there are too many flows, they share events, but some to ``destinations`` get their own. If
    ``is_finding`` returns True, a Detection Finding event also reports the flow.
    """

    #: IP addresses. Flows to them have a reserve of separate events beyond the common limit.
    destinations: frozenset[str] = frozenset()
    #: Takes a flow's latest log record, and the number of packets in its incident so far. An
    #: incident is a series of a flow's refused packets. True: also report it as an OCSF finding.
    is_finding: IsFinding = _never
