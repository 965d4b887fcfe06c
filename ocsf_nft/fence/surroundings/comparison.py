"""Comparison of a fence's present surroundings with those that were accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ocsf_nft.fence.surroundings import changes, own_tables, read_snapshot
from ocsf_nft.fence.surroundings.foreign_links import ForeignLinks
from ocsf_nft.fence.surroundings.read_snapshot import Subject

if TYPE_CHECKING:
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.fence.surroundings.changes import SurroundingChange


class Comparison(NamedTuple):
    """Result of a comparison: the changes, and what weakened the fence when it was installed."""

    changes: tuple[SurroundingChange, ...] = ()
    accepted: tuple[SurroundingChange, ...] = ()


def compare(installed: InstalledFence, state: StateDirectory) -> Comparison:
    """Compare the surroundings of a fence with those that its record has.

    ``state`` has its record. The result is empty for a VM, for a record of an older version, and if
    the namespace has ended. Raises AbsentError, UnsupportedError, FenceError.
    """
    accepted = installed.accepted
    if accepted is None or not installed.namespace.has_identity(installed.identity):
        return Comparison()
    others = own_tables.of_others(installed.identity, state)
    subject = Subject.of(installed.spec, installed.around, others)
    now = read_snapshot.read_in(installed.namespace, subject)
    now = read_snapshot.without_gates(now, state, installed.spec.sandbox)
    found = changes.weakening(accepted, now)
    judged = ForeignLinks(installed.identity).judged(found)
    return Comparison(judged, changes.accepted(accepted))
