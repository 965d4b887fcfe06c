"""Events and log lines about the changes of a sandbox's fence."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

import structlog

from ocsf_nft.fence import tamper_guard
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.fence_state_events import FenceState, Tampering
from ocsf_nft.ocsf.finding_parts import FENCE_REMOVED, RESTORE_STOPPED, TAMPERING
from ocsf_nft.service import fence_facts, fences
from ocsf_nft.state.change import Change

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.fence.fence_change import FenceChange
    from ocsf_nft.fence.state import InstalledFence
    from ocsf_nft.fence.verification import Verdict
    from ocsf_nft.flow import Mode
    from ocsf_nft.ocsf.event_base import Event
    from ocsf_nft.ocsf.fence_state_events import PolicyChange, SandboxEnd
    from ocsf_nft.ocsf.finding_parts import FindingKind
    from ocsf_nft.process import Process
    from ocsf_nft.service.event_rendering import Reporter
    from ocsf_nft.service.fences import Fence, Inspection

_log = structlog.get_logger()

_REMOVED: Final = "it was removed by `ocsf-nft remove`"
_REMOVED_BEFORE: Final = "another process had removed it before this run did"
_ACTIVE_AGAIN: Final = "it is active as installed again"
_FENCE_ACTIVE_AGAIN: Final = "the fence is active as installed again"
#: States of a fence that is present and unchanged.
ACTIVE_STATES: Final = frozenset(
    {FenceState.ACTIVE, FenceState.DEGRADED, FenceState.PERMISSIVE, FenceState.PERMISSIVE_DEGRADED}
)


#: Function that adds what is known to a process that existed at a time (ns since the epoch, UTC).
Describe: TypeAlias = "Callable[[Process, int], Awaitable[Process]]"


class FenceReports:
    """Reports about one sandbox's fence, and its state by the last report."""

    def __init__(
        self,
        sandbox: SandboxConfig,
        fence: Fence,
        reporter: Reporter,
        describe: Describe | None = None,
    ) -> None:
        """Create the reports; ``fence`` is the fence at the start of the service.

        ``describe`` is for the processes that change the fence.
        """
        #: Record of the fence by the latest inspection.
        self.installed = fence.installed
        self._fence = fence
        self._sandbox = sandbox
        self._reporter = reporter
        self._describe = describe
        self._reported = (fence.state, fence.reason)
        #: Whether it was reported that the fence is not restored for a while.
        self._given_up = False

    @property
    def sandbox(self) -> SandboxConfig:
        """Return the configuration of the sandbox, with the present policy."""
        return self._sandbox

    @property
    def has_given_up(self) -> bool:
        """Return true if the fence is not active, and restoring it is paused.

        Restoring pauses after too many restores in a short time.
        """
        return self._given_up and self._reported[0] not in ACTIVE_STATES

    @property
    def state(self) -> FenceState:
        """Return the last reported state of the fence."""
        return self._reported[0]

    @property
    def mode(self) -> Mode:
        """Return the mode of the installed fence: enforcing, or permissive (it refuses nothing)."""
        return "permissive" if self.installed.spec.is_permissive else "enforcing"

    @property
    def verdict(self) -> Verdict:
        """Return the last reported verdict on the fence: "as installed", "differs" or "absent"."""
        state, _ = self._reported
        if state in ACTIVE_STATES:
            return "as installed"
        return "absent" if state is FenceState.ABSENT else "differs"

    @property
    def fault(self) -> str | None:
        """Return the last reported reason why the fence is not active; None if it is active."""
        state, reason = self._reported
        return None if state in ACTIVE_STATES else reason or state.value.lower()

    async def report_policy(
        self, sandbox: SandboxConfig, installed: InstalledFence, change: PolicyChange
    ) -> None:
        """Emit an event that the fence has a new policy, as requested by ``change``.

        ``sandbox`` has the new policy, and ``installed`` is the new record of the fence.
        """
        self._sandbox, self.installed = sandbox, installed
        self._update_context(installed)
        state, reason = fence_facts.state_of(installed), installed.degraded
        await self._emit(state, reason, change=change)
        self._reported = (state, reason)
        if change.is_resolved:
            changes = "; ".join(change.changes)
            _log.info("addresses of host names changed", sandbox=sandbox.name, changes=changes)

    async def announce(self, added: PolicyChange | None = None) -> None:
        """Emit an event that describes the fence at the start of its watch.

        Emit no event if the fence was active before, equals its stored description, and no call has
        ``added`` the sandbox. Also store the facts that later events of the sandbox contain, such
        as the fence's rules.
        """
        fence, name = self._fence, self._sandbox.name
        self._update_context(fence.installed)
        is_news = fence.reason is not None or fence.tampering is not None
        is_news |= fence.before is not fence.state or added is not None
        if fence.is_ours or is_news or fence.state is not FenceState.ACTIVE:
            event = fences.first_event(fence, self._reporter.host, added, self._sandbox)
            reason = None if added is not None else fence.reason
            await self._commit(event, fence.state, reason, fence.tampering)
        if fence.reason is not None:
            _log.error("fence " + fence.state.value.lower(), sandbox=name, reason=fence.reason)
        elif fence.tampering is not None:
            _log.warning("fence restored", sandbox=name, difference=fence.tampering.changes)
        elif fence.installed.transport == "none":
            _log.warning("fence without log rules, as configured", sandbox=name)
        if fence.installed.spec.is_permissive:
            _log.warning("the fence is permissive, and refuses nothing", sandbox=name)

    async def report_active(
        self, inspection: Inspection, alterations: tuple[FenceChange, ...], *, has_new_links: bool
    ) -> None:
        """Emit events about the changes to a fence, after ``inspection`` found the fence active.

        ``alterations`` are the detected changes by other processes, which may be undone already.
        ``has_new_links`` is true if interfaces were fenced since the last inspection.
        """
        alterations = await self._described(alterations)
        fence = inspection.fence
        has_other_links = has_new_links or fence.installed.around != self.installed.around
        is_repair = inspection.was_renewed and not has_other_links
        change_text = fences.describe_change(
            self.installed, inspection, has_new_links=has_new_links
        )
        if change_text is not None or self._reported[0] is not fence.state:
            self._update_context(fence.installed)
        if inspection.was_renewed:  # a regular installation by others needed no repair
            alterations = tuple(each for each in alterations if not each.is_regular)
        for each in alterations:
            if each.restored_after_ns is not None:
                await self._report_restored(fence.state, each)
        others = [each for each in alterations if each.restored_after_ns is None]
        if others and others[-1].given_up:
            await self._give_up(fence.state, others[-1])
        else:
            self._given_up = False
            last = others[-1] if others else None
            if not is_repair:
                await self._report_other_change(inspection, change_text, last)
            elif last is not None:
                await self._report_restored(fence.state, last)
            # After an immediate restore, an inspection repairs the rest. Only the restore is
            # reported then.
            elif not alterations:
                tampering = Tampering(changes=inspection.difference)
                await self._report_change(fence.state, change_text, tampering)
        self._reported = (fence.state, fence.reason)
        self.installed = fence.installed

    async def _report_other_change(
        self, inspection: Inspection, change_text: str | None, last: FenceChange | None
    ) -> None:
        state, reason = inspection.fence.state, inspection.fence.reason
        if change_text is not None:
            is_same = inspection.fence.installed.spec == self.installed.spec
            if last is not None and inspection.was_renewed and is_same:  # a separate event
                await self._report_restored(state, last)
            by = "" if last is None or inspection.was_renewed else f", {_author_text(last)}"
            degraded = "" if reason is None else f"; {reason}"
            await self._report_change(state, f"{change_text}{by}{degraded}")
        elif last is not None and not self._sandbox.self_heal:
            await self._report_change(
                state, f"{_change_text(last)}; {_ACTIVE_AGAIN}", _tampering(last)
            )
        elif self._reported[0] is not state:
            await self._report_change(state, reason or _ACTIVE_AGAIN)

    async def report_fault(
        self,
        before: FenceState,
        state: FenceState,
        reason: str,
        alterations: tuple[FenceChange, ...],
    ) -> None:
        """Emit an event that the fence is absent or altered, unless this is already reported.

        The event has the ``reason``, and the last of ``alterations`` (changes by other processes).
        Earlier changes that were undone get their own events. ``before`` is the fence's state after
        such a change was undone.
        """
        alterations = await self._described(alterations)
        last = alterations[-1] if alterations else None
        for each in alterations[:-1]:
            if each.restored_after_ns is not None:
                await self._report_restored(before, each)
        # The event about the pause of restoring replaces the event about the fault.
        if last is not None and last.given_up:
            await self._give_up(state, last)
        elif self._given_up and self._reported[0] not in ACTIVE_STATES:
            return  # it was reported that the fence is not restored for a while
        elif self._reported != (state, reason):
            done = "" if last is None else f"{_change_text(last)}: "
            tampering = None if last is None else _tampering(last)
            await self._report_change(state, f"{done}{reason}", tampering)
        self._reported = (state, reason)

    async def report_removed(self) -> None:
        """Emit an event that `ocsf-nft remove` has removed the fence, unless it is reported."""
        if self._reported != (FenceState.ABSENT, _REMOVED):
            await self._emit(FenceState.ABSENT, _REMOVED, is_regular=True)
            _log.warning("fence removed", sandbox=self._sandbox.name)
            self._reported = (FenceState.ABSENT, _REMOVED)

    async def report_end(self, end: SandboxEnd, *, is_removed: bool) -> None:
        """Emit an event about the end of the watch; ``is_removed`` if the fence ended with it."""
        state = FenceState.ABSENT if is_removed else self._reported[0]
        await self._emit(state, None, end=end)
        await self._reporter.drop_context(self._sandbox.name)

    async def report_removed_before(self) -> None:
        """Emit an event that another process had removed the fence, unless that is reported."""
        if self._reported[0] is not FenceState.ABSENT:
            await self._emit(FenceState.ABSENT, _REMOVED_BEFORE)

    async def _described(self, changes: tuple[FenceChange, ...]) -> tuple[FenceChange, ...]:
        return tuple(
            [
                each
                if each.process is None
                else replace(each, process=await self.described(each.process, each.arrived_ns))
                for each in changes
            ]
        )

    async def described(self, process: Process, arrived_ns: int) -> Process:
        """Return a process with more details, if they are known.

        The process existed at ``arrived_ns`` (ns since the epoch, UTC).
        """
        return process if self._describe is None else await self._describe(process, arrived_ns)

    async def _give_up(self, state: FenceState, last: FenceChange) -> None:
        reason = (
            f"given up: restored {tamper_guard.MAX_RESTORES} times in "
            f"{tamper_guard.RESTORE_WINDOW_SECONDS:.0f} s and changed again each time, "
            f"last {_author_text(last)}: {last.changes}; "
            f"the next restore is in {tamper_guard.PAUSE_SECONDS:.0f} s"
        )
        self._given_up = True
        await self._report_change(state, reason, _tampering(last, given_up=True))

    def _update_context(self, installed: InstalledFence) -> None:
        known = fence_facts.context(installed, self._reporter.host, self._sandbox)
        self._reporter.set_context(self._sandbox.name, known)

    async def _report_restored(self, state: FenceState, change: FenceChange) -> None:
        # Zero: an inspection restored it before the tamper guard did.
        after_ns = change.restored_after_ns
        done = f"restored {after_ns / 1e6:.1f} ms later" if after_ns else "it was restored"
        await self._report_change(state, f"{_change_text(change)}; {done}", _tampering(change))

    async def _report_change(
        self, after: FenceState, reason: str | None, tampering: Tampering | None = None
    ) -> None:
        # The event comes first: standard error may be a pipe without a reader.
        await self._emit(after, reason, tampering)
        self._reported = (after, reason)
        log = _log.error if tampering and tampering.given_up else _log.warning
        log("fence changed", sandbox=self._sandbox.name, state=after.value, reason=reason)

    async def _emit(  # noqa: PLR0913 - each is one fact of the event, named at the call
        self,
        after: FenceState,
        reason: str | None,
        tampering: Tampering | None = None,
        *,
        change: PolicyChange | None = None,
        end: SandboxEnd | None = None,
        is_regular: bool = False,
    ) -> None:
        event = fence_facts.state_event(
            self.installed,
            self._reporter.host,
            before=self._reported[0],
            after=after,
            reason=reason,
            tampering=tampering,
            change=change,
            end=end,
            sandbox=self._sandbox,
            is_regular=is_regular,
        )
        cause = None if is_regular or change is not None or end is not None else reason
        await self._commit(event, after, cause, tampering)

    async def _commit(
        self, event: Event, after: FenceState, cause: str | None, tampering: Tampering | None
    ) -> None:
        """Store an event, with a finding if a fault or another process is its cause."""
        name, findings = self._sandbox.name, self._reporter.findings
        lines: list[bytes] = []
        if after in ACTIVE_STATES and not (tampering and tampering.given_up):
            was_active = tampering is not None or self._reported[0] in ACTIVE_STATES
            ended = (FENCE_REMOVED, RESTORE_STOPPED, *(() if was_active else (TAMPERING,)))
            for each in ended:
                lines += findings.end(each, name, _FENCE_ACTIVE_AGAIN, time_ns=time.time_ns())
        kind = _finding_kind(after, cause, tampering)
        if kind is None:
            lines.append(event.to_json())
        else:
            lines += findings.lines(
                event,
                kind,
                name,
                severity=Severity.HIGH if kind is TAMPERING else Severity.CRITICAL,
                tampering=tampering,
                lasts=kind is RESTORE_STOPPED or after not in ACTIVE_STATES,
            )
        await self._reporter.commit(Change(events=lines))


def _finding_kind(
    after: FenceState, cause: str | None, tampering: Tampering | None
) -> FindingKind | None:
    if tampering is not None and tampering.given_up:
        return RESTORE_STOPPED
    if after is FenceState.ABSENT and cause is not None:
        return FENCE_REMOVED
    return TAMPERING if tampering is not None or after is FenceState.ALTERED else None


def _author_text(change: FenceChange) -> str:
    process = change.process
    if process is not None:
        return f"by {process.name or 'a process'} (pid {process.pid})"
    if change.comm is not None:
        return f"by a process that calls itself {change.comm}, with an unknown pid"
    return "by an unknown process"


def _change_text(change: FenceChange) -> str:
    return f"{change.changes}, {_author_text(change)}"


def _tampering(change: FenceChange, *, given_up: bool = False) -> Tampering:
    return Tampering(
        changes=change.changes,
        process=change.process,
        since_ns=change.arrived_ns,
        lasted_ns=change.restored_after_ns,
        given_up=given_up,
    )
