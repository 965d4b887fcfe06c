"""Monitor of a sandbox's fence: restores a changed fence, and emits an event for each change.

A fence has changed if its nftables rules differ from the description that the installer stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final, TypeAlias

import structlog

from ocsf_nft.errors import AbsentError, OcsfNftError, SourceError
from ocsf_nft.fence import installer, listing, restore_batch, tamper_guard
from ocsf_nft.fence.fence_events import FenceEvents
from ocsf_nft.ocsf.operational_events import FenceState, Tampering
from ocsf_nft.service import fences
from ocsf_nft.service.shielded import run_shielded

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.fence.guard_thread import GuardThread
    from ocsf_nft.fence.installer import Verdict
    from ocsf_nft.fence.restore_batch import RestoreBatch
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.fence.tamper_guard import FenceChange
    from ocsf_nft.flow import Mode
    from ocsf_nft.service.event_rendering import Reporter
    from ocsf_nft.service.fences import Fence, Inspection

_log = structlog.get_logger()

_REMOVED: Final = "it was removed by `ocsf-nft remove`"
_REMOVED_BEFORE: Final = "another process had removed it before this run did"
_ACTIVE_AGAIN: Final = "it is active as installed again"
#: Pause between an inspection that found a change and the next one.
_RETRY_SECONDS: Final = 0.1
#: A fence is checked at least so often, although the kernel has reported no change of its rules;
#: and once so long after the start.
_FULL_CHECK_SECONDS: Final = 600.0
_FIRST_CHECK_SECONDS: Final = 60.0
#: States of a fence that is present and unchanged.
_ACTIVE_STATES: Final = frozenset(
    {
        FenceState.ACTIVE,
        FenceState.DEGRADED,
        FenceState.PERMISSIVE,
        FenceState.PERMISSIVE_DEGRADED,
    }
)


class FenceMonitor:
    """Monitor of one sandbox's fence: restores the fence, and emits an event for each change."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of a monitor
        self,
        sandbox: SandboxConfig,
        fence: Fence,
        state: StateDirectory,
        reporter: Reporter,
        thread: GuardThread,
        preparing: asyncio.Semaphore,
    ) -> None:
        """Create the monitor of a fence; nothing is watched before :meth:`start`.

        All monitors of a service share ``thread``, and ``preparing``, which limits how many of them
        prepare a restore at the same time.
        """
        self.name = sandbox.name
        self._preparing = preparing
        self._thread = thread
        self._heals = sandbox.self_heal
        self._sandbox = sandbox
        self._fence = fence
        self._state = state
        self._reporter = reporter
        self._installed = fence.installed
        self._reported = (fence.state, fence.reason)
        self._watch: FenceEvents | None = None
        #: Version of the record that the guard restores, and whether its messages are prepared.
        self._prepared_version: tuple[int, ...] | None = None
        self._is_prepared = False
        #: Whether it was reported that the fence is not restored for a while.
        self._given_up = False
        #: What a check that found the fence as installed depends on; None after another check.
        self._checked: object = None
        self._checked_at = 0.0

    @property
    def has_given_up(self) -> bool:
        """Return true if the fence is not active, and restoring it is paused.

        Restoring pauses after too many restores in a short time.
        """
        return self._given_up and self._reported[0] not in _ACTIVE_STATES

    @property
    def mode(self) -> Mode:
        """Return the mode of the installed fence: enforcing, or permissive (it refuses nothing)."""
        return "permissive" if self._installed.spec.is_permissive else "enforcing"

    @property
    def verdict(self) -> Verdict:
        """Return the last reported verdict on the fence: "as installed", "differs" or "absent"."""
        state, _ = self._reported
        if state in _ACTIVE_STATES:
            return "as installed"
        return "absent" if state is FenceState.ABSENT else "differs"

    @property
    def fault(self) -> str | None:
        """Return the last reported reason why the fence is not active; None if it is active."""
        state, reason = self._reported
        return None if state in _ACTIVE_STATES else reason or state.value.lower()

    async def announce(self) -> None:
        """Emit an event that describes the fence at the start of the service.

        Emit no event if the fence was active before the start and equals its stored description.
        Also store the facts that later events of the sandbox contain, such as the fence's rules.
        """
        fence, name = self._fence, self.name
        self._update_context(fence.installed)
        is_news = fence.reason is not None or fence.tampering is not None
        is_news |= fence.before is not fence.state
        if fence.is_ours or is_news or fence.state is not FenceState.ACTIVE:
            await self._reporter.emit(fences.first_event(fence, self._reporter.host))
        if fence.reason is not None:
            _log.error("fence " + fence.state.value.lower(), sandbox=name, reason=fence.reason)
        elif fence.tampering is not None:
            _log.warning("fence restored", sandbox=name, difference=fence.tampering.changes)
        elif fence.installed.transport == "none":
            _log.warning("fence without log rules, as configured", sandbox=name)
        if fence.installed.spec.is_permissive:
            _log.warning("the fence is permissive, and refuses nothing", sandbox=name)

    async def start(self) -> None:
        """Start the tamper guard, which detects changes of the fence at once.

        If exclusive table ownership is configured, the guard becomes the owner of the
        fence's tables. Raises the errors of :meth:`FenceEvents.started` and
        :meth:`TamperGuard.take_ownership`.
        """
        # Shielded, so that a cancelled start can still be stopped.
        watch = await run_shielded(self._start_events())
        if self._installed.spec.is_owned:
            await run_shielded(asyncio.to_thread(watch.tamper_guard.take_ownership))
        if self._heals:
            version = self._version()
            if await run_shielded(self._prepare()):
                self._checked = version
                self._checked_at = time.monotonic() - _FULL_CHECK_SECONDS + _FIRST_CHECK_SECONDS

    async def prepare(self) -> None:
        """Prepare the netlink messages that restore the fence.

        Until then, a restore takes about 0.1 s, and 0.01 s afterwards. A new interface is fenced
        by a check until then, and at once afterwards.
        """
        if self._heals:
            async with self._preparing:
                self._is_prepared, self._prepared_version = True, None
                await run_shielded(self._prepare())

    async def _start_events(self) -> FenceEvents:
        self._watch = await FenceEvents.started(
            self._installed, self._state, self._thread, self_heal=self._heals
        )
        return self._watch

    @property
    def namespace_socket(self) -> socket.socket:
        """Return a socket in the sandbox's namespace, which is open from start to stop.

        Raises RuntimeError before :meth:`start`.
        """
        if self._watch is None:
            raise RuntimeError("call start first")
        return self._watch.tamper_guard.namespace_socket

    async def watch(self) -> None:
        """Restore the fence after each change, and emit an event about the change, until cancelled.

        Without ``self_heal``, nothing is restored. A failed restore is reported once, and
        monitoring continues. Raises SourceError if the sandbox's namespace was created again, and
        the errors of :meth:`FenceEvents.changes`.
        """
        if self._watch is None:
            raise RuntimeError("call start first")
        async for alterations in self._watch.changes():
            if alterations is None and self._is_unchanged():
                continue
            await run_shielded(self._inspect(alterations or ()))

    def _is_unchanged(self) -> bool:
        """Return True if the last check found the fence as installed, and another is not needed."""
        spec = self._installed.spec
        # The kernel gives no notice of a changed sysctl, of the host's links, and of a lost owner.
        is_kmsg = self._installed.transport == "kmsg"
        has_more = is_kmsg or spec.tap or spec.guard_device or spec.is_owned
        is_recent = time.monotonic() < self._checked_at + _FULL_CHECK_SECONDS
        if has_more or not is_recent or self._checked is None:
            return False
        return self._version() == self._checked

    def _version(self) -> object:
        """Return a value that changes if the rules, the record or the namespace may have changed.

        Return None if that is not known.
        """
        if self._watch is None:
            return None
        generations = self._watch.tamper_guard.generations_now()
        try:
            namespace = self._installed.namespace.identity()
        except OcsfNftError:
            return None
        record = self._state.version(self.name)
        return None if generations is None else (generations, namespace, record)

    async def stop(self) -> None:
        """Stop monitoring the fence, and emit events about changes that are not reported yet.

        A second call does nothing.
        """
        if self._watch is not None:
            await self._watch.stop()
            left, self._watch = self._watch.take_pending(), None
            if left:
                await self._inspect(left)

    async def remove(self) -> bool:
        """Remove the fence if this process installed it, and emit an event about the removal.

        Return true if this process installed the fence, even if another process has already
        deleted it. Raises the errors of :func:`installer.remove`.
        """
        if self._fence.is_ours:
            was_there = await asyncio.to_thread(_remove, self._installed, self._state)
            if was_there or self._reported[0] is not FenceState.ABSENT:
                await self._emit(FenceState.ABSENT, None if was_there else _REMOVED_BEFORE)
        return self._fence.is_ours

    async def _inspect(self, alterations: tuple[FenceChange, ...] = ()) -> None:
        """Check the fence for changes, restore it if necessary, and report the changes.

        ``alterations`` are changes by other processes that the tamper guard has already detected.
        """
        may_heal = self._heals and not (self._watch and self._watch.tamper_guard.is_paused)
        version, self._checked = self._version(), None
        try:
            inspection = await self._inspect_and_own(may_heal=may_heal)
        except OcsfNftError as error:
            state = FenceState.ABSENT if isinstance(error, AbsentError) else FenceState.ALTERED
            more = await self._with_pending(alterations)
            before = fences.state_of(self._installed)
            await self._report_fault(before, state, str(error), more)
            return
        if inspection is None:
            await self._report_removed()
            return
        fence = inspection.fence
        if fence.state not in _ACTIVE_STATES:
            more = await self._with_pending(alterations)
            await self._report_fault(fence.before, fence.state, fence.reason or "", more)
            return
        if inspection.was_renewed:
            alterations = await self._with_pending(alterations)
        await self._report_active(inspection, alterations)
        is_elsewhere = fence.installed.identity != self._installed.identity
        self._installed = fence.installed
        if is_elsewhere:
            raise SourceError(
                f"the namespace of sandbox {self.name} was created again, and this run does "
                "not read the new namespace's records and counters: restart it"
            )
        if self._heals:
            await self._prepare()
        if not inspection.was_renewed:
            self._checked, self._checked_at = version, time.monotonic()

    async def _inspect_and_own(self, *, may_heal: bool) -> Inspection | None:
        """Compare the fence with its stored description; if ``may_heal``, restore a changed fence.

        Then take exclusive ownership of the fence's tables, if configured. Return None if `ocsf-nft
        remove` has removed the fence.
        """
        inspection = await self._inspect_or_renew(may_heal=may_heal)
        if (
            inspection is not None
            and inspection.fence.installed.spec.is_owned
            and self._watch is not None
        ):
            # The tables belong to the guard's thread, also if nothing was restored.
            await asyncio.to_thread(self._watch.tamper_guard.take_ownership)
        return inspection

    async def _inspect_or_renew(self, *, may_heal: bool) -> Inspection | None:
        if may_heal:
            with contextlib.suppress(OcsfNftError):
                inspection = await asyncio.to_thread(fences.inspect, self.name, self._state)
                if inspection is None or inspection.fence.state in _ACTIVE_STATES:
                    return inspection
            # The tamper guard may be restoring the fence right now. This pause holds no lock that
            # blocks it.
            await asyncio.sleep(_RETRY_SECONDS)
        renew = self._renew if may_heal else None
        return await asyncio.to_thread(fences.inspect, self.name, self._state, renew)

    def _renew(self) -> InstalledFence | None:
        if self._watch is None:
            return installer.renew(self.name, self._state)
        return self._watch.tamper_guard.renew()

    async def _with_pending(self, alterations: tuple[FenceChange, ...]) -> tuple[FenceChange, ...]:
        """Return all detected changes to the fence: ``alterations``, then the changes in the queue.

        If ``alterations`` is empty, first wait 0.1 s for the tamper guard to detect a change.
        """
        if self._watch is None:
            return alterations
        # The caller may have found a change that the tamper guard is about to detect.
        if not alterations:
            await asyncio.sleep(_RETRY_SECONDS)
        return (*alterations, *self._watch.take_pending())

    async def _report_active(
        self, inspection: Inspection, alterations: tuple[FenceChange, ...]
    ) -> None:
        """Emit events about the changes to a fence, after ``inspection`` found the fence active.

        ``alterations`` are the detected changes by other processes, which may be undone already.
        """
        fence = inspection.fence
        # New interfaces were fenced at once, also those that are removed again.
        has_new_links = self._watch is not None and self._watch.tamper_guard.has_attached_interfaces
        is_repair = (
            inspection.was_renewed
            and not has_new_links
            and not fences.has_other_links(self._installed, inspection)
        )
        change_text = fences.describe_change(
            self._installed, inspection, has_new_links=has_new_links
        )
        if change_text is not None or self._reported[0] is not fence.state:
            self._update_context(fence.installed)
        if inspection.was_renewed:  # a regular installation by others needed no repair
            alterations = tuple(each for each in alterations if not each.is_regular)
        for each in alterations:
            if each.restored_after_ns is not None:
                await self._report_change(fence.state, _restored_text(each), _tampering(each))
        others = [each for each in alterations if each.restored_after_ns is None]
        if others and others[-1].given_up:
            await self._give_up(fence.state, others[-1])
        else:
            self._given_up = False
            # After an immediate restore, an inspection repairs the rest. Only the restore is
            # reported then.
            if others or not alterations or not is_repair:
                last = others[-1] if others else None
                await self._report_change_of_active(
                    inspection, change_text, last, is_repair=is_repair
                )
        self._reported = (fence.state, fence.reason)

    async def _report_change_of_active(
        self,
        inspection: Inspection,
        change_text: str | None,
        last: FenceChange | None,
        *,
        is_repair: bool,
    ) -> None:
        state = inspection.fence.state
        if is_repair:
            if last is None:
                await self._report_change(
                    state, change_text, Tampering(changes=inspection.difference)
                )
            else:
                await self._report_change(
                    state, f"{_change_text(last)}; it was restored", _tampering(last)
                )
        elif change_text is not None:
            is_same = inspection.fence.installed.spec == self._installed.spec
            if last is not None and inspection.was_renewed and is_same:  # a separate event
                await self._report_change(
                    state, f"{_change_text(last)}; it was restored", _tampering(last)
                )
            by = "" if last is None or inspection.was_renewed else f", {_author_text(last)}"
            degraded = "" if inspection.fence.reason is None else f"; {inspection.fence.reason}"
            await self._report_change(state, f"{change_text}{by}{degraded}")
        elif last is not None and not self._heals:
            await self._report_change(
                state, f"{_change_text(last)}; {_ACTIVE_AGAIN}", _tampering(last)
            )
        elif self._reported[0] is not state:
            await self._report_change(state, inspection.fence.reason or _ACTIVE_AGAIN)

    async def _report_fault(
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
        last = alterations[-1] if alterations else None
        for each in alterations[:-1]:
            if each.restored_after_ns is not None:
                await self._report_change(before, _restored_text(each), _tampering(each))
        # The event about the pause of restoring replaces the event about the fault.
        if last is not None and last.given_up:
            await self._give_up(state, last)
        elif self._given_up and self._reported[0] not in _ACTIVE_STATES:
            return  # it was reported that the fence is not restored for a while
        elif self._reported != (state, reason):
            done = "" if last is None else f"{_change_text(last)}: "
            await self._report_change(
                state, f"{done}{reason}", None if last is None else _tampering(last)
            )
        self._reported = (state, reason)

    async def _give_up(self, state: FenceState, last: FenceChange) -> None:
        reason = (
            f"given up: restored {tamper_guard.MAX_RESTORES} times in "
            f"{tamper_guard.RESTORE_WINDOW_SECONDS:.0f} s and changed again each time, "
            f"last {_author_text(last)}: {last.changes}; "
            f"the next restore is in {tamper_guard.PAUSE_SECONDS:.0f} s"
        )
        self._given_up = True
        await self._report_change(state, reason, _tampering(last, given_up=True))

    async def _report_removed(self) -> None:
        if self._reported != (FenceState.ABSENT, _REMOVED):
            await self._emit(FenceState.ABSENT, _REMOVED, is_regular=True)
            _log.warning("fence removed", sandbox=self.name)
            self._reported = (FenceState.ABSENT, _REMOVED)

    async def _prepare(self) -> bool:
        """Let the tamper guard restore the present record of the fence.

        After :meth:`prepare`, the guard gets netlink messages, and restores the fence without
        running nft. Return True if the fence was found as installed. Do nothing, and return False,
        if the record has not changed since the last call.
        """
        if self._watch is None:
            return False
        guard = self._watch.tamper_guard
        prepared = await asyncio.to_thread(
            _prepare,
            self._fence,
            self._state,
            self._prepared_version,
            guard.generations,
            compiles=self._is_prepared,
        )
        if prepared is None:
            return False
        guard.use_restore_batch(*prepared)
        _, self._prepared_version, generations = prepared
        return generations is not None

    def _update_context(self, installed: InstalledFence) -> None:
        known = fences.context(installed, self._reporter.host, self._sandbox.event_container)
        self._reporter.set_context(self.name, known)

    async def _report_change(
        self, after: FenceState, reason: str | None, tampering: Tampering | None = None
    ) -> None:
        # The event comes first: standard error may be a pipe without a reader.
        await self._emit(after, reason, tampering)
        self._reported = (after, reason)
        log = _log.error if tampering and tampering.given_up else _log.warning
        log("fence changed", sandbox=self.name, state=after.value, reason=reason)

    async def _emit(
        self,
        after: FenceState,
        reason: str | None,
        tampering: Tampering | None = None,
        *,
        is_regular: bool = False,
    ) -> None:
        before, _ = self._reported
        await self._reporter.emit(
            fences.state_event(
                self._installed,
                self._reporter.host,
                before=before,
                after=after,
                reason=reason,
                tampering=tampering,
                is_regular=is_regular,
            )
        )


def _author_text(alteration: FenceChange) -> str:
    process = alteration.process
    if process is not None:
        return f"by {process.name or 'a process'} (pid {process.pid})"
    if alteration.comm is not None:
        return f"by a process that calls itself {alteration.comm}, with an unknown pid"
    return "by an unknown process"


def _change_text(alteration: FenceChange) -> str:
    return f"{alteration.changes}, {_author_text(alteration)}"


def _restored_text(alteration: FenceChange) -> str:
    if not alteration.restored_after_ns:  # an inspection restored it first
        return f"{_change_text(alteration)}; it was restored"
    return f"{_change_text(alteration)}; restored {alteration.restored_after_ns / 1e6:.1f} ms later"


def _tampering(alteration: FenceChange, *, given_up: bool = False) -> Tampering:
    return Tampering(
        changes=alteration.changes,
        process=alteration.process,
        since_ns=alteration.arrived_ns,
        lasted_ns=alteration.restored_after_ns,
        given_up=given_up,
    )


_Version: TypeAlias = "tuple[int, ...] | None"


def _prepare(
    fence: Fence,
    state: StateDirectory,
    known: _Version,
    now: Callable[[], tuple[int, ...]],
    *,
    compiles: bool,
) -> tuple[RestoreBatch | None, _Version, tuple[int, ...] | None] | None:
    """Prepare the netlink messages that restore a fence to its stored description.

    Return the arguments of :meth:`TamperGuard.use_restore_batch`; unavailable arguments are None.
    Without ``compiles``, the messages are not prepared. ``fence`` is the fence at the start of the
    service. ``now`` returns the argument ``generations``. If the description still has the version
    ``known``, return None instead of a tuple.
    """
    sandbox = fence.installed.spec.sandbox
    version = state.version(sandbox)  # read before the record, so that it is never too new
    if version == known:
        return None
    generations = None
    # Without an answer in time, the guard may take unread notices of an installation for tampering.
    with contextlib.suppress(OSError):
        generations = now()
    try:
        installed = state.read(sandbox)
        if installed is None:
            return None, version, None
        prepared = restore_batch.prepare(installed) if compiles else None
    except OcsfNftError as error:
        _log.warning("restoring the fence will take longer", sandbox=sandbox, reason=str(error))
        return None, version, None
    # The guard reverts no changes up to ``generations``, so they must not include a difference.
    return prepared, version, generations if _is_as_installed(fence, installed, state) else None


def _is_as_installed(fence: Fence, installed: InstalledFence, state: StateDirectory) -> bool:
    """Return True if the fence of the record ``installed`` is as installed.

    Nothing is listed if nothing has changed since ``fence`` was found as installed.
    """
    if fence.version is not None and fence.installed == installed:
        found = listing.ruleset_version(installed, installed.namespace)
        if found == fence.version:
            return True
    with contextlib.suppress(OcsfNftError):  # the next check reports it
        return installer.verify(installed.spec.sandbox, state).verdict == "as installed"
    return False


def _remove(installed: InstalledFence, state: StateDirectory) -> bool:
    """Remove a fence and its stored description; return false if the fence was already deleted."""
    sandbox, namespace = installed.spec.sandbox, installed.namespace
    try:
        verdict = installer.verify(sandbox, state, namespace).verdict
        installer.remove(sandbox, state, namespace)
    except AbsentError:
        return False
    return verdict != "absent"
