"""Monitor of a sandbox's fence: restores a changed fence, and reports each change.

A fence has changed if its nftables rules differ from the description that the installer stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import AbsentError, OcsfNftError
from ocsf_nft.fence import ended_namespaces, host_end, installer, listing
from ocsf_nft.fence.fence_events import FenceEvents
from ocsf_nft.ocsf.fence_state_events import FenceState
from ocsf_nft.service import fence_facts, fences
from ocsf_nft.service.address_changes import change_of_addresses
from ocsf_nft.service.fence_removal import FenceRemoval
from ocsf_nft.service.fence_reports import ACTIVE_STATES, FenceReports
from ocsf_nft.service.restore_preparation import prepare_restore
from ocsf_nft.service.sandbox_gate import SandboxGate
from ocsf_nft.service.shielded import run_shielded
from ocsf_nft.service.surroundings_reports import SurroundingsReports

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.fence.fence_change import FenceChange
    from ocsf_nft.fence.guard_thread import GuardThread
    from ocsf_nft.fence.host_names import Addresses
    from ocsf_nft.fence.listing import RulesetVersion
    from ocsf_nft.fence.rule_counters import NamedCounter
    from ocsf_nft.fence.spec import FenceSpec, LogTransport, TableId
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.fence.tamper_guard import TamperGuard
    from ocsf_nft.netns import Namespace
    from ocsf_nft.ocsf.fence_state_events import PolicyChange
    from ocsf_nft.service.event_rendering import Reporter
    from ocsf_nft.service.fence_reports import Describe
    from ocsf_nft.service.fences import Fence, Inspection

#: Pause between an inspection that found a change and the next one.
_RETRY_SECONDS: Final = 0.1
#: A fence is checked at least so often, although the kernel has reported no change of its rules;
#: and once so long after the start.
_FULL_CHECK_SECONDS: Final = 600.0
_FIRST_CHECK_SECONDS: Final = 60.0


class FenceMonitor:
    """Monitor of one sandbox's fence: restores the fence, and reports each change."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of a monitor
        self,
        sandbox: SandboxConfig,
        fence: Fence,
        state: StateDirectory,
        reporter: Reporter,
        thread: GuardThread,
        preparing: asyncio.Semaphore,
        describe: Describe | None = None,
        gate: SandboxGate | None = None,
    ) -> None:
        """Create the monitor of a fence; nothing is watched before :meth:`start`.

        ``describe`` is for the events: see :class:`FenceReports`.
        All monitors of a service share ``thread``, and ``preparing``, which limits how many of them
        prepare a restore at the same time.
        """
        self.name = sandbox.name
        #: Last gate of the fence.
        self.gate = SandboxGate(sandbox.name, None, state) if gate is None else gate
        self._preparing = preparing
        self._thread = thread
        self._heals = sandbox.self_heal
        self._fence = fence
        self._state = state
        self.reports = FenceReports(sandbox, fence, reporter, describe)
        self.surroundings = SurroundingsReports(self.reports, reporter)
        self.removal = FenceRemoval(self.reports, state, self._has_ended)
        self._watch: FenceEvents | None = None
        #: Version of the record that the guard restores, and whether its messages are prepared.
        self._prepared_version: tuple[int, ...] | None = None
        self._is_prepared = False
        #: What a check that found the fence as installed depends on; None after another check.
        self._checked: object = None
        self._checked_at = 0.0
        #: Attachments to new interfaces until the latest inspection began.
        self._inspected_attachments = 0
        #: Set as soon as the messages of a restore are prepared.
        self.prepared = asyncio.Event()
        self._has_changed = asyncio.Event()
        #: Held while the fence is inspected or changed.
        self._inspecting = asyncio.Lock()

    async def start(self) -> None:
        """Start the tamper guard, and make it the owner of the fence's tables, if configured.

        Raises the errors of :meth:`FenceEvents.started` and :meth:`TamperGuard.take_ownership`.
        """
        # Shielded, so that a cancelled start can still be stopped.
        watch = await run_shielded(self._start_events())
        if self.reports.installed.spec.is_owned:
            await run_shielded(asyncio.to_thread(watch.tamper_guard.take_ownership))
        await self.gate.open(self.reports.installed, watch.tamper_guard.namespace_socket)
        if self._heals:
            await run_shielded(self._prepare_unchanged())

    async def prepare(self) -> None:
        """Prepare the netlink messages that restore the fence, and again after each change of it.

        Until then, a restore takes about 0.1 s, and 0.01 s afterwards. A new interface is fenced
        by a check until then, and at once afterwards. Runs until it is cancelled.
        """
        while True:
            if self._heals:
                async with self._preparing:
                    self._is_prepared, self._prepared_version = True, None
                    await run_shielded(self._prepare())
            self.prepared.set()
            await self._has_changed.wait()
            self._has_changed.clear()

    async def _start_events(self) -> FenceEvents:
        self._watch = await FenceEvents.started(
            self.reports.installed, self._state, self._thread, self_heal=self._heals
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

    def counters_now(self, table: TableId, names: Sequence[str]) -> list[NamedCounter] | None:
        """Return counters in the sandbox's namespace: see :meth:`NftMonitor.counters_now`.

        Return None before :meth:`start` and after :meth:`stop`.
        """
        watch = self._watch
        return None if watch is None else watch.tamper_guard.counters_now(table, names)

    async def watch(self) -> None:
        """Restore the fence after each change, and emit an event about the change, until cancelled.

        Without ``self_heal``, nothing is restored. A failed restore is reported once, and
        monitoring continues. Nothing is reported after the end of the sandbox's namespace. Raises
        the errors of :meth:`FenceEvents.changes`.
        """
        if self._watch is None:
            raise RuntimeError("call start first")
        async for alterations in self._watch.changes():
            await run_shielded(self._report_surroundings(self._watch))
            if alterations is None and self._is_unchanged():
                continue
            await run_shielded(self._inspect(alterations or ()))

    async def _report_surroundings(self, watch: FenceEvents) -> None:
        for news in watch.take_surroundings():
            if not self._has_ended():
                await self.surroundings.report(news)

    @property
    def has_record(self) -> bool:
        """Return False if the fence was removed by ``ocsf-nft remove``, or by its run."""
        return self._state.version(self.name) is not None

    def _is_unchanged(self) -> bool:
        spec = self.reports.installed.spec
        # The kernel gives no notice of a changed sysctl, and of a lost owner.
        is_kmsg = self.reports.installed.transport == "kmsg"
        has_more = is_kmsg or spec.tap or spec.is_owned
        is_recent = time.monotonic() < self._checked_at + _FULL_CHECK_SECONDS
        if has_more or not is_recent or self._checked is None:
            return False
        return self._version() == self._checked

    def _version(self) -> object:
        """Return a value that changes with the rules, the record and the namespace, or None."""
        if self._watch is None:
            return None
        generations = self._watch.tamper_guard.versions_now()
        try:
            namespace = self.reports.installed.namespace.identity()
            ends = host_end.state(self.reports.installed.around.host)
        except (OcsfNftError, OSError):
            return None
        record = self._state.version(self.name)
        return None if generations is None else (generations, namespace, record, ends)

    async def stop(self) -> None:
        """Stop monitoring the fence, and emit events about changes that are not reported yet.

        A second call does nothing.
        """
        await self.gate.close()
        if self._watch is not None:
            await self._watch.stop()
            await self._report_surroundings(self._watch)
            left, self._watch = self._watch.take_pending(), None
            if left:
                await self._inspect(left)

    async def change(
        self,
        sandbox: SandboxConfig,
        change: PolicyChange,
        addresses: Callable[[], Addresses] = dict,
    ) -> None:
        """Replace the fence's policy in one transaction, and emit an event about that.

        The counts stay. ``sandbox`` has the new policy; ``change`` is the request; ``addresses``
        returns those of its host names. Raises AbsentError after :meth:`stop`, and the errors of
        :meth:`TamperGuard.replace`; the fence is unchanged then.
        """
        async with self._inspecting:
            await self._replace(sandbox, sandbox.spec(addresses()), change)

    async def change_addresses(self, addresses: Callable[[], Addresses]) -> None:
        """Do the same as :meth:`change` with the same policy, if its host names have new addresses.

        A fence that another process has removed, or installed with another policy, stays so.
        """
        async with self._inspecting:
            reports = self.reports
            is_there = self._state.version(self.name) is not None and not self._has_ended()
            if is_there and reports.sandbox.names:
                spec = reports.sandbox.spec(addresses())
                change = change_of_addresses(reports.sandbox, reports.installed.spec, spec)
                if change is not None:
                    await self._replace(reports.sandbox, spec, change)

    async def _replace(self, sandbox: SandboxConfig, spec: FenceSpec, change: PolicyChange) -> None:
        if self._watch is None:
            raise AbsentError(f"the network namespace of sandbox {self.name} has ended")
        # The records of the present group are read: it may differ from the configured one.
        spec = dataclasses.replace(spec, group=self.reports.installed.spec.group)
        guard = self._watch.tamper_guard
        replace = partial(_replace, guard, spec, fences.requested_transport(sandbox))
        await self.gate.widen(spec)
        try:
            installed, version = await run_shielded(asyncio.to_thread(replace))
            if version is not None:  # then its listing needs no second comparison
                self._fence = dataclasses.replace(self._fence, installed=installed, version=version)
            await self.reports.report_policy(sandbox, installed, change)
        finally:
            await self.gate.follow(self.reports.installed)
            # The messages are prepared afterwards, since the caller waits.
            self._checked, self._prepared_version, self._is_prepared = None, None, False
            if self._heals:
                await self._prepare_unchanged()
            self._has_changed.set()

    async def move(self, namespace: Namespace) -> bool:
        """Go on with another file of the sandbox's network namespace; return false if it is none.

        Raises the errors of :func:`ended_namespaces.move_record`.
        """
        async with self._inspecting:
            identity = self._fence.installed.identity
            move = partial(
                ended_namespaces.move_record, self.name, self._state, identity, namespace
            )
            moved = await run_shielded(asyncio.to_thread(move))
            if moved is not None:
                self.reports.installed = moved
                self._checked = self._prepared_version = None
                if self._heals:
                    await self._prepare()
        return moved is not None

    @property
    def is_ours(self) -> bool:
        """Return true if this process installed the fence where there was none."""
        return self._fence.is_ours

    async def _inspect(self, alterations: tuple[FenceChange, ...] = ()) -> None:
        """Check the fence for changes, restore it if necessary, and report the changes.

        ``alterations`` are changes by other processes that the tamper guard has already detected.
        """
        async with self._inspecting:
            if not self._has_ended():
                await self._inspect_present(alterations)

    async def _inspect_present(self, alterations: tuple[FenceChange, ...]) -> None:
        reports, watch = self.reports, self._watch
        may_heal = self._heals and not (watch and watch.tamper_guard.is_paused)
        version, self._checked = self._version(), None
        attachments = self._attachments()
        try:
            inspection = await self._inspect_and_own(may_heal=may_heal)
        except OcsfNftError as error:
            if self._has_ended():
                return
            state = FenceState.ABSENT if isinstance(error, AbsentError) else FenceState.ALTERED
            more = await self._with_pending(alterations)
            before = fence_facts.state_of(reports.installed)
            await reports.report_fault(before, state, str(error), more)
            return
        if inspection is None:
            if not self._has_ended():
                await reports.report_removed()
            return
        fence = inspection.fence
        if fence.state not in ACTIVE_STATES:
            more = await self._with_pending(alterations)
            await reports.report_fault(fence.before, fence.state, fence.reason or "", more)
            return
        if inspection.was_renewed:
            alterations = await self._with_pending(alterations)
        # New interfaces were fenced at once, also those that are removed again. This inspection may
        # not have seen the latest ones: they count for the next one too.
        has_new_links = self._attachments() != self._inspected_attachments
        self._inspected_attachments = attachments
        await reports.report_active(inspection, alterations, has_new_links=has_new_links)
        await self.gate.follow(reports.installed)
        if self._heals:
            await self._prepare()
        if not inspection.was_renewed:
            self._checked, self._checked_at = version, time.monotonic()

    def _attachments(self) -> int:
        return 0 if self._watch is None else self._watch.tamper_guard.attachments

    def _has_ended(self) -> bool:
        """Return true if the sandbox's network namespace exists no more, which others report."""
        namespace = self.reports.installed.namespace
        return not namespace.has_identity(self._fence.installed.identity)

    async def _inspect_and_own(self, *, may_heal: bool) -> Inspection | None:
        inspection, watch = await self._inspect_or_renew(may_heal=may_heal), self._watch
        if inspection is not None and inspection.fence.installed.spec.is_owned and watch:
            # The tables belong to the guard's thread, also if nothing was restored.
            await asyncio.to_thread(watch.tamper_guard.take_ownership)
        return inspection

    async def _inspect_or_renew(self, *, may_heal: bool) -> Inspection | None:
        if may_heal:
            with contextlib.suppress(OcsfNftError):
                inspection = await asyncio.to_thread(fences.inspect, self.name, self._state)
                if inspection is None or inspection.fence.state in ACTIVE_STATES:
                    return inspection
            # The tamper guard may be restoring the fence right now. This pause holds no lock that
            # blocks it.
            await asyncio.sleep(_RETRY_SECONDS)
        renew = self._renew if may_heal else None
        # Nothing is restored now that the lock of an installation could hold up.
        inspect = partial(fences.inspect, self.name, self._state, renew, waits=not may_heal)
        return await asyncio.to_thread(inspect)

    def _renew(self) -> InstalledFence | None:
        if self._watch is None:
            return installer.renew(self.name, self._state)
        return self._watch.tamper_guard.renew()

    async def _with_pending(self, alterations: tuple[FenceChange, ...]) -> tuple[FenceChange, ...]:
        if self._watch is None:
            return alterations
        # The caller may have found a change that the tamper guard is about to detect.
        if not alterations:
            await asyncio.sleep(_RETRY_SECONDS)
        return (*alterations, *self._watch.take_pending())

    async def _prepare_unchanged(self) -> None:
        """Do the same as :meth:`_prepare`; omit the next check if nothing has changed since."""
        version = self._version()
        if await self._prepare():
            self._checked = version
            self._checked_at = time.monotonic() - _FULL_CHECK_SECONDS + _FIRST_CHECK_SECONDS

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
            prepare_restore,
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


def _replace(
    guard: TamperGuard, spec: FenceSpec, transport: LogTransport | None
) -> tuple[InstalledFence, RulesetVersion | None]:
    """Replace a fence; return its record, and the version of the ruleset if no other changed it."""
    installed = guard.replace(spec, transport)
    version = listing.ruleset_version(installed, installed.namespace)
    return installed, version if guard.is_untouched else None
