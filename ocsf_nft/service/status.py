"""Status of sandboxes for the command `status`: their fences and their packet counts."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from ocsf_nft.errors import AbsentError, OcsfNftError, SourceError, UnsupportedError
from ocsf_nft.fence import verification
from ocsf_nft.fence.counters import Counters
from ocsf_nft.fence.surroundings import comparison
from ocsf_nft.flows import codec
from ocsf_nft.flows.sandbox_account import SandboxAccount
from ocsf_nft.service import fence_facts, stored_account

if TYPE_CHECKING:
    from collections.abc import Collection

    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.fence.verification import Verdict
    from ocsf_nft.flow import Mode
    from ocsf_nft.flows.sandbox_account import Balance
    from ocsf_nft.state.change import DroppedRecords


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Status of one sandbox: its fence, its packet counts, and how many log records were missed."""

    sandbox: str
    #: Whether a running service monitors the sandbox.
    is_watched: bool
    mode: Mode = "enforcing"
    #: Rules of the fence whose counters are missing in the kernel. If there are any, a part of the
    #: fence was deleted, and the fence is not active.
    absent: tuple[str, ...]
    #: Result of comparing the fence with its record in the state directory. None if the comparison
    #: is not possible, for example without nft.
    verdict: Verdict | None = "as installed"
    #: Why there is no guard on the host, or what it does not check; else empty.
    guard_note: str = ""
    #: Changes of the surroundings that weaken the fence.
    surroundings: tuple[str, ...] = ()
    balances: tuple[Balance, ...]
    #: Number of log records that each source could not read.
    dropped_records: tuple[DroppedRecords, ...]

    @classmethod
    def of_none(cls, sandbox: str) -> Self:
        """Return the status of a sandbox that has no fence, and no counts."""
        return cls(
            sandbox=sandbox, is_watched=False, verdict="absent", absent=(), balances=(),
            dropped_records=(),
        )  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """Return a JSON object for each rule, as `ocsf-nft status --json` prints them."""
        return [
            asdict(balance)
            | {
                "fence": self.mode,
                "counter_mismatch": balance.counter_mismatch,
                "is_watched": self.is_watched,
                "verdict": self.verdict,
                "surroundings": list(self.surroundings),
            }
            for balance in self.balances
        ]


def statuses(
    state: StateDirectory, sandbox: str | None = None, *, known: Collection[str] = ()
) -> tuple[tuple[Status, ...], tuple[OcsfNftError, ...]]:
    """Return the status of one sandbox, or of all recorded sandboxes if ``sandbox`` is None.

    Those in ``known`` are left out. The second tuple has an error for each sandbox without a
    readable status. Blocks. Needs CAP_NET_ADMIN over the sandboxes' namespaces. Raises AbsentError
    if there is no record of any sandbox, FenceError if the records can't be listed.
    """
    names = [sandbox] if sandbox is not None else list(state.sandboxes())
    if not names and not known:
        raise AbsentError(f"{state.path} has no record of a sandbox: run `ocsf-nft install`")
    found: list[Status] = []
    faults: list[OcsfNftError] = []
    for name in names:
        if name in known:
            continue
        try:
            found.append(_status(name, state))
        except OcsfNftError as error:
            faults.append(error)
    return tuple(found), tuple(faults)


def _status(sandbox: str, state: StateDirectory) -> Status:
    installed = state.read(sandbox)
    if installed is None:
        raise AbsentError(f"{state.path} has no record of sandbox {sandbox}: is it fenced?")
    balances, absent, dropped = _counts(installed, state)
    return Status(
        sandbox=sandbox,
        is_watched=state.is_watched(sandbox),
        mode="permissive" if installed.spec.is_permissive else "enforcing",
        absent=absent,
        verdict=_verdict(sandbox, state),
        guard_note=fence_facts.guard_note(installed),
        surroundings=_surroundings(installed, state),
        balances=balances,
        dropped_records=dropped,
    )


def unreported_packets(installed: InstalledFence, state: StateDirectory) -> int | None:
    """Return how many packets of a fence no event has reported, since a run has stopped.

    Return None if a run watches the sandbox now, or if the number is not known. Blocks. Needs
    CAP_NET_ADMIN over the sandbox's namespace.
    """
    sandbox = installed.spec.sandbox
    try:
        if state.is_watched(sandbox):
            return None
        balances, absent, _ = _counts(installed, state)
    except OcsfNftError:
        return None
    if absent or any(each.counter_mismatch for each in balances):
        return None
    return sum(each.pending for each in balances)


def _counts(
    installed: InstalledFence, state: StateDirectory
) -> tuple[tuple[Balance, ...], tuple[str, ...], tuple[DroppedRecords, ...]]:
    """Return the present balances of a fence, its rules without counters, and dropped records."""
    sandbox = installed.spec.sandbox
    account = SandboxAccount(sandbox, begun_ns=time.time_ns())
    with Counters(installed) as counters:
        stored = stored_account.read(state, sandbox)
        try:
            codec.restore(account, stored.parts, with_open=False)
        except codec.DAMAGE as error:
            raise SourceError(
                f"the stored counts of sandbox {sandbox} are damaged: {error}"
            ) from error
        # Two readings: packets that one of them lacks may be pending, packets that both lack are
        # evicted.
        for reading in (counters.read(), counters.read()):
            for _ in account.observe(reading):
                pass
            absent = tuple(rule for rule in counters.rules if rule not in reading.rules)
    return account.balances(), absent, tuple(stored.dropped)


def _surroundings(installed: InstalledFence, state: StateDirectory) -> tuple[str, ...]:
    try:
        return tuple(each.text for each in comparison.compare(installed, state).changes)
    except UnsupportedError:  # a privilege is missing
        return ()


def _verdict(sandbox: str, state: StateDirectory) -> Verdict | None:
    try:
        return verification.verify(sandbox, state).verdict
    except UnsupportedError:  # the counters are read without nft
        return None
