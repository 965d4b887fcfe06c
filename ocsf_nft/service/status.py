"""How the accounts of the sandboxes stand, whether or not anybody runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocsf_nft.accounting.sandbox_accounting import SandboxAccount
from ocsf_nft.accounting.state_db import FILE, StateDatabase
from ocsf_nft.errors import AbsentError, OcsfNftError, UnsupportedError
from ocsf_nft.fence import installer
from ocsf_nft.fence.counters import Counters

if TYPE_CHECKING:
    from ocsf_nft.accounting.reconciliation import Balance, Mode
    from ocsf_nft.accounting.state_db import DroppedRecords
    from ocsf_nft.fence.installer import Verdict
    from ocsf_nft.fence.state import StateDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One sandbox: its rules, what its sources lost, and whether a run watches it now.

    ``mode`` is that of its fence as it was installed.
    ``absent`` are the rules that should have counters and have none: the fence does not stand.
    ``verdict`` is on the fence as a whole, None where nft is not there to tell.
    """

    sandbox: str
    is_watched: bool
    mode: Mode = "enforcing"
    absent: tuple[str, ...]
    verdict: Verdict | None = "as installed"
    balances: tuple[Balance, ...]
    lost: tuple[DroppedRecords, ...]


def statuses(
    state: StateDirectory, sandbox: str | None = None
) -> tuple[tuple[Status, ...], tuple[OcsfNftError, ...]]:
    """The status of one sandbox, or of all that are on record; blocks for milliseconds each.

    Needs CAP_NET_ADMIN over their namespaces. What keeps one from being read is given out beside
    the others. Raises AbsentError when no fence is on record, FenceError when the record can't be
    read.
    """
    names = [sandbox] if sandbox is not None else list(state.sandboxes())
    if not names:
        raise AbsentError(f"{state.path} has no sandbox on record: `ocsf-nft install` one")
    found: list[Status] = []
    faults: list[OcsfNftError] = []
    for name in names:
        try:
            found.append(_status(name, state))
        except OcsfNftError as error:
            faults.append(error)
    return tuple(found), tuple(faults)


def _status(sandbox: str, state: StateDirectory) -> Status:
    installed = state.read(sandbox)
    if installed is None:
        raise AbsentError(f"{state.path} has no record of sandbox {sandbox}: is it fenced?")
    account = SandboxAccount(sandbox, begun_ns=time.time_ns())
    lost: tuple[DroppedRecords, ...] = ()
    path = state.directory(sandbox) / FILE
    with Counters(installed) as counters:
        if path.exists():
            database = StateDatabase(path).open(read_only=True)
            try:
                database.load(account)
                lost = database.dropped_records()
            finally:
                database.close()
        # Twice: what one reading lacks may be on its way, what both lack has been forgotten.
        for reading in (counters.read(), counters.read()):
            for _ in account.observe(reading):
                pass
            absent = tuple(rule for rule in counters.rules if rule not in reading.rules)
    return Status(
        sandbox=sandbox,
        is_watched=state.is_watched(sandbox),
        mode="permissive" if installed.spec.is_permissive else "enforcing",
        absent=absent,
        verdict=_verdict(sandbox, state),
        balances=account.balances(),
        lost=lost,
    )


def _verdict(sandbox: str, state: StateDirectory) -> Verdict | None:
    try:
        return installer.verify(sandbox, state).verdict
    except UnsupportedError:  # the counters are read without nft
        return None
