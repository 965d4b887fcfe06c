"""Removal of what the state directory has of sandboxes whose namespaces are gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft.errors import AbsentError, OcsfNftError
from ocsf_nft.fence import installer
from ocsf_nft.service.shielded import run_shielded

if TYPE_CHECKING:
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.state.state_store import StateStore

_log = structlog.get_logger()

#: Pause between two checks. A namespace is gone if two checks in succession do not find it.
_SECONDS: Final = 600.0


async def reap(state: StateDirectory, store: StateStore) -> None:
    """Remove the records and packet counts of sandboxes whose namespaces are gone.

    Check every ten minutes, until cancelled. A sandbox that a run watches stays, and so do its
    stored events.
    """
    missing: frozenset[str] = frozenset()
    while True:
        await asyncio.sleep(_SECONDS)
        found = await asyncio.to_thread(_without_namespace, state)
        for name in sorted(found & missing):
            await run_shielded(_remove(name, state, store))
        missing = found


def _without_namespace(state: StateDirectory) -> frozenset[str]:
    """Return the recorded sandboxes that no run watches, and whose namespaces do not exist."""
    try:
        return frozenset(name for name in state.sandboxes() if _is_gone(name, state))
    except OcsfNftError as error:
        _log.warning("records of fences can't be read", reason=str(error))
        return frozenset()


def _is_gone(name: str, state: StateDirectory) -> bool:
    try:
        installed = state.read(name)
        if installed is None or state.is_watched(name):
            return False
        installed.namespace.identity()
    except AbsentError:
        return True
    except OcsfNftError:  # it is not known
        return False
    return False


async def _remove(name: str, state: StateDirectory, store: StateStore) -> None:
    try:
        with state.run_lock(name):  # no other run can begin to watch it meanwhile
            await asyncio.to_thread(installer.remove, name, state)
            # The place first: rows without their place are an old copy, and the reverse is a fault.
            state.delete_account_place(name)
            await store.remove_account(name)
    except OcsfNftError as error:
        _log.warning("the record of a fence can't be removed", sandbox=name, reason=str(error))
    else:
        _log.info("record of a fence removed, its namespace is gone", sandbox=name)
