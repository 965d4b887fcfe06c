"""Removal of what an ended network namespace has left: record, guard on the host, and counts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence import ended_namespaces
from ocsf_nft.flows import codec
from ocsf_nft.flows.sandbox_account import SandboxAccount
from ocsf_nft.ocsf.fence_state_events import FenceState, SandboxEnd
from ocsf_nft.service import fence_facts, stored_account
from ocsf_nft.service.shielded import run_shielded
from ocsf_nft.state.change import AccountChange, Change

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.flows.sandbox_account import Balance
    from ocsf_nft.process import Process
    from ocsf_nft.service.event_rendering import Reporter
    from ocsf_nft.state.state_store import StateStore

_log = structlog.get_logger()

#: Attempts in one transaction.
_BATCH: Final = 256
#: Ends of the sentences about an ended sandbox.
ENDED: Final = "has ended, with its network namespace"
ABANDONED: Final = (
    "has ended, since another network namespace has its name: the attempts of processes that are "
    "left in the former one are still refused, but not reported"
)


def sandbox_end(
    balances: Sequence[Balance],
    description: str = ENDED,
    process: Process | None = None,
    *,
    is_requested: bool = False,
) -> SandboxEnd:
    """Return the end of a sandbox with these final counts, for an event.

    ``description`` is the end of the sentence. ``process`` has released the sandbox, or None.
    ``is_requested`` is true for a release, and false if the network namespace ended.
    """
    return SandboxEnd(
        description=description,
        refused=sum(each.refused for each in balances),
        allowed=sum(each.allowed for each in balances),
        process=process,
        is_requested=is_requested,
    )


async def remove_record(
    sandbox: str, state: StateDirectory, identity: str, *, abandons: bool = False
) -> None:
    """Do the same as :func:`ended_namespaces.remove_record`; log an error, and raise none."""
    remove = ended_namespaces.remove_record
    try:
        await asyncio.to_thread(remove, sandbox, state, identity, abandons=abandons)
    except OcsfNftError as error:
        _log.error("a fence can't be removed", sandbox=sandbox, reason=str(error))


async def forget_ended(  # noqa: PLR0913 - the parts that have something of the sandbox
    sandbox: str,
    seen: InstalledFence,
    state: StateDirectory,
    store: StateStore,
    reporter: Reporter,
    *,
    is_certain: bool = False,
) -> bool:
    """Remove the record and the counts of a sandbox, if its network namespace has ended.

    ``seen`` is the record of the fence. The sandbox must not be watched, and its run lock must be
    held. With ``is_certain``, the namespace has ended although another one has its number. An event
    reports the end. Return False, and change nothing, if there is another record now, or if the
    namespace exists. Raises the errors of :func:`ended_namespaces.remove_record`, and
    DeliveryError.
    """
    ended = partial(ended_namespaces.has_ended, sandbox, state, seen.identity, abandons=is_certain)
    if not await asyncio.to_thread(ended):
        return False
    # Before the record is removed: without it, no later run would report them.
    account = await _report_account(sandbox, seen, state, reporter)
    remove = partial(ended_namespaces.remove_record, sandbox, state, seen.identity)
    if not await asyncio.to_thread(remove, abandons=is_certain):
        return False
    await _remove_account(account, seen, state, store, reporter)
    return True


async def forget_account(
    sandbox: str, seen: InstalledFence, state: StateDirectory, store: StateStore, reporter: Reporter
) -> None:
    """Remove the counts of a sandbox with an ended network namespace, and emit an event about that.

    Before, emit the events about stored packets that no event has reported, and the last events of
    open findings. ``seen`` was the record of its fence. Raises DeliveryError.
    """
    account = await _report_account(sandbox, seen, state, reporter)
    await _remove_account(account, seen, state, store, reporter)


async def _remove_account(
    account: SandboxAccount,
    seen: InstalledFence,
    state: StateDirectory,
    store: StateStore,
    reporter: Reporter,
) -> None:
    event = fence_facts.state_event(
        seen,
        reporter.host,
        before=fence_facts.state_of(seen),
        after=FenceState.ABSENT,
        end=sandbox_end(account.balances()),
    )
    # The place first: rows without their place are an old copy, and the reverse is a fault.
    state.delete_account_place(account.sandbox)
    await run_shielded(store.retry(partial(store.database.remove_account, account.sandbox)))
    await reporter.emit(event)


async def _report_account(
    sandbox: str, seen: InstalledFence, state: StateDirectory, reporter: Reporter
) -> SandboxAccount:
    with reporter.facts_of_ended(sandbox, fence_facts.context(seen, reporter.host)):
        # In a thread, since an account may have thousands of flows.
        account = await asyncio.to_thread(_stored, sandbox, state, reporter)
        await _report_rest(account, reporter)
    return account


async def _report_rest(account: SandboxAccount, reporter: Reporter) -> None:
    # If this is interrupted, the next run goes on. It makes events with the same uids if another
    # database has the account.
    due = account.due(time.monotonic_ns(), closing=True)
    while found := await asyncio.to_thread(lambda: list(islice(due, _BATCH))):
        lines = await reporter.lines(found)
        change = AccountChange(account.sandbox)
        for _ in codec.collect(account, change):
            await asyncio.sleep(0)
        await reporter.commit(Change(events=lines, account=change))


def _stored(sandbox: str, state: StateDirectory, reporter: Reporter) -> SandboxAccount:
    account = SandboxAccount(sandbox, begun_ns=time.time_ns(), is_finding=reporter.is_finding)
    with contextlib.suppress(OcsfNftError, *codec.DAMAGE):  # the event has no counts then
        parts = stored_account.read(state, sandbox).parts
        try:
            codec.restore(account, parts)
        except codec.DAMAGE:
            codec.restore(account, parts, with_open=False)
    return account
