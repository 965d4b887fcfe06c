"""Accounts of sandboxes in the state databases.

A run of one sandbox has a database of its own in the sandbox's folder. A run with a configuration
file has one database for all its sandboxes. A sandbox may change from one to the other. So the
state directory has, for each sandbox, the path and the identity of the database with its account.
Rows about the sandbox in other databases are old copies.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence.state import AccountPlace
from ocsf_nft.state.archive import Archive
from ocsf_nft.state.change import Account

if TYPE_CHECKING:
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.state.state_db import StateDatabase
    from ocsf_nft.state.state_store import StateStore


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAccount:
    """Account of a sandbox, as some state database has it."""

    account: Account = field(default_factory=Account)
    #: Whether the store of this run has the account.
    is_in_store: bool = False
    #: Reason why an account that was stored can't be read; None if there is no fault.
    fault: str | None = None


def read(state: StateDirectory, sandbox: str) -> Account:
    """Return the stored account of a sandbox; an empty one if none is stored.

    Raises an OcsfNftError if it can't be read.
    """
    place = state.account_place(sandbox)
    return Account() if place is None else _read(place, sandbox)


def _read(place: AccountPlace, sandbox: str) -> Account:
    with Archive(place.path, place.identity) as archive:
        return archive.account(sandbox)


async def find(store: StateStore, state: StateDirectory, sandbox: str) -> StoredAccount:
    """Return the stored account of a sandbox, for a run that stores accounts in ``store``.

    If it can't be read, the result is an empty account with a fault. Raises DeliveryError if the
    store can't be read or written.
    """
    await store.flush()  # an earlier watch may have ended before its last counts were stored
    try:
        place = state.account_place(sandbox)
        if place is None:
            return StoredAccount()
        if place.identity != store.database.identity:
            return StoredAccount(account=await asyncio.to_thread(_read, place, sandbox))
    except OcsfNftError as error:
        return StoredAccount(fault=f"its stored counts can't be read: {error}")
    if not store.database.has_account(sandbox):
        return StoredAccount(fault=f"its stored counts are no longer in {store.database.path}")
    return StoredAccount(account=await _in_store(store.database, sandbox), is_in_store=True)


async def _in_store(database: StateDatabase, sandbox: str) -> Account:
    # The event loop must not wait for the thousands of flows that an account may have.
    try:
        place = AccountPlace(database.path, database.identity)
        return await asyncio.to_thread(_read, place, sandbox)
    except OcsfNftError:  # the file was removed: the database itself restores it
        return database.account(sandbox)
