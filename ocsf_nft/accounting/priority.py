"""What is graver than the rest: nobody here knows; it is told from outside."""

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
    """``destinations`` have a few places of their own among what is told by itself, for each user.

    ``is_finding`` says whether attempts that a record stands for, and that came to so many
    packets, are a finding.
    """

    destinations: frozenset[str] = frozenset()
    is_finding: IsFinding = _never
