"""Turning off a fence before its removal, so that its last counts can be read."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from ocsf_nft.errors import AbsentError, DeliveryError
from ocsf_nft.fence import installer, ip_forwarding, nft, table_changes, table_query

if TYPE_CHECKING:
    from ocsf_nft.fence.spec import TableId
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.netns import Namespace
    from ocsf_nft.nfnetlink import Generation


def turn_off(sandbox: str, state: StateDirectory) -> Generation | None:
    """Turn off a sandbox's fence before its removal; its tables keep their counts.

    So nothing is counted, logged or refused any more. Return the generation of the ruleset in the
    sandbox's namespace after that; None if another process has turned the fence on again, or if it
    has no record. After an error, call :func:`turn_on`. Raises the errors of
    :func:`installer.remove`, and DeliveryError if the record can't be written.
    """
    with state.locked(sandbox):
        installed = state.read(sandbox)
        if installed is None:
            return None
        of_fence = _tables(installed)
        for namespace, tables in of_fence:
            for table_id in tables:
                table_query.refuse_other_sandbox(sandbox, namespace, table_id)
            table_query.refuse_exclusive(namespace, tables, state)
        # After a crash, the next run would take it for tampering.
        state.write(dataclasses.replace(installed, is_ending=True))
        # First the forwarding that lets the VM's packets through the host. Then the guard, which
        # would count what the fence does not refuse any more.
        ip_forwarding.release(installed.identity, installed.namespace, state, besides=sandbox)
        *guards, (namespace, tables) = reversed(of_fence)
        for guard in guards:
            table_changes.turn_off(*guard)
        return table_changes.turn_off(namespace, tables)


def turn_on(sandbox: str, state: StateDirectory) -> None:
    """Undo :func:`turn_off`; raises the errors of :func:`installer.renew`.

    While the disk is full, only the forwarding of a VM's packets stays off.
    """
    with state.locked(sandbox):
        installed = state.read(sandbox)
        if installed is None:
            return
        for namespace, tables in _tables(installed):
            table_changes.turn_on(namespace, tables)
        with contextlib.suppress(DeliveryError):
            state.write(dataclasses.replace(installed, is_ending=False))
            # Another process may have changed it meanwhile.
            installer.renew_locked(sandbox, state, nft.load)


def _tables(installed: InstalledFence) -> list[tuple[Namespace, tuple[TableId, ...]]]:
    if not installed.namespace.has_identity(installed.identity):
        raise AbsentError(f"the network namespace of sandbox {installed.spec.sandbox} has ended")
    return installed.tables_by_namespace()
