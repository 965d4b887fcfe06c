"""Reversal of changes of a fence's surroundings, by netlink and ``/proc/sys``.

The functions work in the calling thread's network namespace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft import rtnetlink
from ocsf_nft.errors import reason_of
from ocsf_nft.fence.surroundings import (
    foreign_tables,
    programs,
    routing,
    sysctls,
    traffic_control,
)
from ocsf_nft.fence.surroundings.facts import (
    FilterFact,
    HookFact,
    LinkFact,
    NeighbourFact,
    ProgramFact,
    QdiscFact,
    SysctlFact,
)
from ocsf_nft.nfnetlink import Nftables

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.fence.surroundings.changes import SurroundingChange


def undo(changes: Iterable[SurroundingChange]) -> dict[SurroundingChange, str]:
    """Undo the changes that can be undone; return the reason for each one that the kernel refused.

    A snapshot that is read afterwards shows which changes are left.
    """
    reasons = {}
    for change in changes:
        if change.can_be_undone:
            try:
                _undo(change)
            except OSError as error:
                reasons[change] = reason_of(error)
    return reasons


def _undo(change: SurroundingChange) -> None:
    match change.fact:
        case QdiscFact():
            traffic_control.delete_qdisc(change.fact)
        case FilterFact():
            traffic_control.delete_filter(change.fact)
        case ProgramFact():
            programs.detach_xdp(change.fact)
        case NeighbourFact():
            routing.delete_neighbour(change.fact)
        case LinkFact():
            rtnetlink.delete_link(change.fact.ifindex)
        case HookFact() if change.before is None:
            with Nftables() as nftables:
                nftables.commit([foreign_tables.deletion(change.fact)])
        case SysctlFact() if isinstance(change.before, SysctlFact):
            sysctls.restore(change.before)
        case _:
            return
