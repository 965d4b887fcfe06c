"""Settings that select flows for separate events and for Detection Finding events.

The number of flows with separate events is limited. The limit is higher for flows to preferred
destinations. The other flows share events.
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
    """Settings that select flows for separate events and for Detection Finding events.

    The number of flows with separate events is limited. The limit is higher for flows to
    ``destinations``. ``is_finding`` decides which incidents get a Detection Finding event.
    """

    #: IP addresses. Flows to them have a reserve of separate events beyond the common limit.
    destinations: frozenset[str] = frozenset()
    #: Takes a flow's latest log record, and the number of packets in its incident so far. An
    #: incident is a series of a flow's refused packets. True: also report it as an OCSF finding.
    is_finding: IsFinding = _never
