"""Removal of the records and packet counts of sandboxes whose namespaces are deleted."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence import installer
from ocsf_nft.service.shielded import run_shielded

if TYPE_CHECKING:
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.state.state_store import StateStore

_log = structlog.get_logger()

#: Pause between two checks. A namespace is deleted if two checks in succession do not find it.
_SECONDS: Final = 600.0


async def reap(state: StateDirectory, store: StateStore) -> None:
    """Remove the records and packet counts of sandboxes whose namespaces are deleted.

    A namespace is deleted if it had a name of ``ip netns`` and has it no more. Check every ten
    minutes, until cancelled. A sandbox that a run watches stays. The stored events of all sandboxes
    stay.
    """
    missing: dict[str, InstalledFence] = {}
    while True:
        await asyncio.sleep(_SECONDS)
        found = await asyncio.to_thread(_without_namespace, state)
        for name, installed in found.items():
            if missing.get(name) == installed:
                await run_shielded(_remove(name, installed, state, store))
        missing = found


def _without_namespace(state: StateDirectory) -> dict[str, InstalledFence]:
    """Return the records of the sandboxes that no run watches, and whose namespaces are deleted."""
    found: dict[str, InstalledFence] = {}
    try:
        for name in state.sandboxes():
            installed = _read(name, state)
            if installed is not None and installed.namespace.is_deleted():
                found[name] = installed
    except OcsfNftError as error:
        _log.warning("records of fences can't be read", reason=str(error))
    return found


def _read(name: str, state: StateDirectory) -> InstalledFence | None:
    try:
        return None if state.is_watched(name) else state.read(name)
    except OcsfNftError:  # `status` and `verify` report it
        return None


async def _remove(
    name: str, installed: InstalledFence, state: StateDirectory, store: StateStore
) -> None:
    try:
        with state.run_lock(name):  # no other run can begin to watch it meanwhile
            if not await asyncio.to_thread(installer.remove_record, name, state, installed):
                return
            # The place first: rows without their place are an old copy, and the reverse is a fault.
            state.delete_account_place(name)
            await store.retry(partial(store.database.remove_account, name))
    except (OcsfNftError, OSError) as error:
        _log.warning("the record of a fence can't be removed", sandbox=name, reason=str(error))
    else:
        _log.info("record of a fence removed, its namespace is deleted", sandbox=name)
