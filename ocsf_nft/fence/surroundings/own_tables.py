"""nftables tables of other fences in the namespace of a fence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.netns import HOST

if TYPE_CHECKING:
    from ocsf_nft.fence.spec import TableId
    from ocsf_nft.fence.state import StateDirectory


def are_shared(identity: str) -> bool:
    """Return True if a namespace has tables of several fences: the host's, which has the guards."""
    return identity == HOST.identity()


def of_others(identity: str, state: StateDirectory) -> tuple[TableId, ...]:
    """Return the tables of all recorded fences in a namespace that several fences share.

    Return nothing for another namespace: there, a table with the name of a guard's table is
    foreign. Raises FenceError if the directory of records can't be read.
    """
    if not are_shared(identity):
        return ()
    found: set[TableId] = set()
    for sandbox in state.sandboxes():
        installed = state.read_or_none(sandbox)
        if installed is not None:
            found.update(installed.spec.guard_tables)
            if installed.identity == identity:
                found.update(installed.spec.tables)
    return tuple(sorted(found))
