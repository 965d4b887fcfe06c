"""Priority of some destinations in reports, and the test for findings; the caller sets both."""

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
    """Destinations with reserved report slots, and the test if attempts are a finding.

    Only flows to ``destinations`` use the reserved slots, so they are reported separately even if a
    user has many flows. ``is_finding`` takes a record and the number of packets so far. It returns
    whether these attempts are a finding.
    """

    destinations: frozenset[str] = frozenset()
    is_finding: IsFinding = _never
