"""Records of fences in network namespaces that have ended, or that have lost their name."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ocsf_nft.fence import installer, ip_forwarding, kernel_log_sysctl, table_query
from ocsf_nft.netns import HOST

if TYPE_CHECKING:
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.netns import Namespace


def move_record(
    sandbox: str, state: StateDirectory, identity: str, namespace: Namespace
) -> InstalledFence | None:
    """Store another file of a sandbox's network namespace in its record, and return the record.

    ``identity`` is that of the namespace. Return None, and change nothing, if the record is about
    another namespace, or if the file is not that of the namespace. Blocks. Raises DeliveryError,
    UnsupportedError, FenceError.
    """
    with state.locked(sandbox):
        seen = state.read(sandbox)
        if seen is None or seen.identity != identity or not namespace.has_identity(identity):
            return None
        moved = dataclasses.replace(seen, namespace=namespace)
        state.write(moved)
    return moved


def has_ended(
    sandbox: str, state: StateDirectory, identity: str, *, abandons: bool = False
) -> bool:
    """Return True if :func:`remove_record` would remove the record now; raises its errors."""
    seen = state.read(sandbox)
    if seen is None or seen.identity != identity:
        return False
    return abandons or not seen.namespace.has_identity(identity)


def remove_record(
    sandbox: str, state: StateDirectory, identity: str, *, abandons: bool = False
) -> bool:
    """Remove a sandbox's record, and its guard on the host, if the sandbox's namespace has ended.

    ``identity`` is that of the namespace. With ``abandons``, do it also if the namespace exists;
    its fence stays there. Return False, and change nothing, if the record is about another
    namespace now, or if the namespace exists. Blocks. Raises DeliveryError, UnsupportedError,
    FenceError.
    """
    with state.locked(sandbox):
        seen = state.read(sandbox)
        if seen is None or not has_ended(sandbox, state, identity, abandons=abandons):
            return False
        table_query.refuse_exclusive(HOST, seen.spec.guard_tables, state)
        installer.remove_guard(seen.spec)
        kernel_log_sysctl.release(sandbox, state)
        ip_forwarding.release(seen.identity, seen.namespace, state, besides=sandbox)
        state.delete(sandbox)
    return True
