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
    """Settings that the service passes to the accounting of refused packets.

    Only a limited number of flows gets separate events. Additional separate events are reserved for
    flows to the IP addresses in ``destinations``. ``is_finding`` takes a flow's latest log record,
    and the number of packets in its incident so far. The function returns true if the incident is a
    finding.
    """

    destinations: frozenset[str] = frozenset()
    is_finding: IsFinding = _never
