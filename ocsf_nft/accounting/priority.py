"""Priority of destinations, and the test for findings; both are set by the caller."""

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
    """``destinations`` have some slots of their own among the separate reports, for each user.

    ``is_finding`` returns whether attempts with a given record and number of packets are a finding.
    """

    destinations: frozenset[str] = frozenset()
    is_finding: IsFinding = _never
