"""One sandbox of a service, from its add to its release; its network namespace may end before."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from ocsf_nft.errors import (
    AbsentError,
    DeliveryError,
    FenceError,
    OcsfNftError,
    SourceError,
    UnsupportedError,
    UsageError,
)
from ocsf_nft.fence import host_end, installer
from ocsf_nft.namespace_watch import present_identity
from ocsf_nft.netns import HOST
from ocsf_nft.service import sandbox_start
from ocsf_nft.service.ended_sandboxes import (
    ABANDONED,
    ENDED,
    forget_account,
    forget_ended,
    remove_record,
    sandbox_end,
)
from ocsf_nft.service.shielded import run_shielded
from ocsf_nft.service.task_errors import first_of
from ocsf_nft.service.waits import until_stop, wait_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.ocsf.fence_state_events import PolicyChange
    from ocsf_nft.process import Process
    from ocsf_nft.service.fences import Fence
    from ocsf_nft.service.sandbox_start import FencedSandbox, FenceParts, WatchParts
    from ocsf_nft.service.sandbox_view import Origin
    from ocsf_nft.service.status import Status
    from ocsf_nft.service.watched_sandbox import WatchedSandbox

_log = structlog.get_logger()

#: Errors that are about one sandbox: the others are still watched.
OF_A_SANDBOX: Final = (AbsentError, FenceError, SourceError, UnsupportedError, UsageError)
#: Pauses between two attempts to fence a namespace.
_FIRST_PAUSE_SECONDS: Final = 0.5
_MAX_PAUSE_SECONDS: Final = 60.0
_PROC: Final = Path("/proc")


class Sandbox:
    """Sandbox of a service, and the watch over it while its network namespace exists."""

    def __init__(
        self,
        config: SandboxConfig,
        origin: Origin,
        on_failure: Callable[[BaseException], Awaitable[None]],
        *,
        must_exist: bool = True,
        namespace_id: str | None = None,
    ) -> None:
        """Create a sandbox; nothing is fenced before :meth:`activate`.

        ``on_failure`` is called with an error after which the sandbox is not watched any more.
        Without ``must_exist``, a network namespace that is missing at the start is waited for.
        ``namespace_id`` is the identity of the only namespace to fence, if the caller knows it.
        """
        self.config = config
        self.origin: Final = origin
        self.since_ns = time.time_ns()
        #: Reason why the sandbox is not watched; None if it is, or if its namespace is missing.
        self.failure: str | None = None
        #: True if the guard had stopped restoring the fence, so that it was not active at the end.
        self.has_given_up = False
        #: True if its fence was installed where there was none.
        self.has_installed = False
        self.watched: WatchedSandbox | None = None
        self._on_failure = on_failure
        self._must_exist = must_exist
        self._fenced: FencedSandbox | None = None
        self._has_ended_before = False
        #: Record of its fence before the present one.
        self._previous: InstalledFence | None = None
        namespace = config.namespace
        path = None if namespace is None else namespace.path
        # The file of a process never comes again.
        comes_again = path is not None and not path.is_relative_to(_PROC)
        self._waits = origin == "file" and comes_again
        #: Identity of the only namespace to fence: a later process may have the id of its process,
        #: and is maybe one of the host. None if each next one is fenced, or if none was present.
        self.namespace_id = namespace_id
        self._parts: WatchParts
        self._stop = asyncio.Event()
        #: Set to end the pause before the next attempt to watch the sandbox.
        self._retry = asyncio.Event()

    @property
    def name(self) -> str:
        """Return the name of the sandbox."""
        return self.config.name

    @property
    def is_stopping(self) -> bool:
        """Return True after :meth:`stop`."""
        return self._stop.is_set()

    @property
    def is_watched(self) -> bool:
        """Return True if the sandbox is watched, as far as is known."""
        return self.watched is not None and self.failure is None

    @property
    def lacks_guard(self) -> bool:
        """Return True if it must be watched again to get a guard: its link came after its fence."""
        watched = self.watched
        if watched is None or self.failure is not None:
            return False
        return watched.monitor.reports.installed.around.host.absence == host_end.LATER

    @property
    def identity(self) -> str | None:
        """Return the identity of the sandbox's network namespace; None if it is not watched."""
        return None if self.watched is None else self.watched.identity

    @property
    def has_ended(self) -> bool:
        """Return True if the sandbox's network namespace exists no more, as :meth:`run` will see.

        Raises UnsupportedError if that can't be found out.
        """
        return self.watched is not None and self.watched.has_ended

    def status(self) -> Status | None:
        """Return the status by the last reading of the counters; None if it is not watched."""
        watched = self.watched
        return None if watched is None else watched.status(is_watched=self.failure is None)

    async def activate(self, parts: FenceParts) -> None:
        """Activate the fence, unless the sandbox waits for its network namespace.

        Raises the errors of :func:`sandbox_start.activate`.
        """
        self._previous = parts.state.read_or_none(self.name)
        if not self._waits and self.namespace_id is None and self.config.namespace is not None:
            self.namespace_id = self.config.namespace.identity()
        try:
            self._fenced = await self._activated(parts)
        except AbsentError:
            if self._must_exist or not self._waits or not self._is_absent():
                raise
            self.failure = None
            _log.info("waiting for a network namespace", sandbox=self.name)

    async def _activated(self, parts: FenceParts) -> FencedSandbox:
        return await sandbox_start.activate(parts, self.config, self._note_fence, self.namespace_id)

    def _note_fence(self, fence: Fence) -> None:
        self.has_installed |= fence.is_ours

    def end_before(self) -> None:
        """Note that its network namespace has ended before the service started."""
        self._has_ended_before = True

    async def try_activate(self, parts: FenceParts) -> None:
        """Activate the fence; :meth:`run` tries it again after an error of the sandbox."""
        await self._try(self.activate(parts))

    async def begin(self, parts: WatchParts, added: PolicyChange | None = None) -> None:
        """Begin to watch the sandbox, if its fence is active; call :meth:`run` then.

        ``added`` is the request that has added it. Raises the errors of
        :func:`sandbox_start.watch`.
        """
        self._parts = parts
        fenced, self._fenced = self._fenced, None
        if fenced is not None:
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(fenced.stack.aclose)
                previous = self._previous
                if previous is not None and previous.identity != fenced.fence.installed.identity:
                    state, store, reporter = parts.fences.state, parts.store, parts.reporter
                    await forget_account(self.name, previous, state, store, reporter)
                stack.pop_all()  # the watch closes it
            self.watched = await sandbox_start.watch(parts, fenced, added)

    async def try_begin(self, parts: WatchParts) -> None:
        """Begin to watch the sandbox; :meth:`run` tries it again after an error of the sandbox."""
        await self._try(self.begin(parts))

    async def close(self) -> None:
        """Close all resources, but leave the fence; for a failed start."""
        fenced, self._fenced = self._fenced, None
        if fenced is not None:
            await fenced.stack.aclose()
        if self.watched is not None:
            await self.watched.close()

    async def change(self, config: SandboxConfig, change: PolicyChange) -> None:
        """Change the policy of the sandbox, as requested by ``change``.

        A configured sandbox that waits for its namespace gets it there. Raises the errors of
        :meth:`FenceMonitor.change`; the policy is as before then.
        """
        watched = self.watched
        if watched is not None and self.failure is None:
            chain = self._parts.fences.chain
            if watched.attached is not None:
                await chain.set_permissive(watched.attached, is_permissive=config.permissive)
            try:
                watched.names.follow(self.config, config)
                await watched.monitor.change(config, change, watched.names.addresses)
            except BaseException:
                watched.names.follow(self.config)
                if watched.attached is not None:
                    is_permissive = self.config.permissive
                    await chain.set_permissive(watched.attached, is_permissive=is_permissive)
                raise
            watched.config = config
            watched.names.follow(config)
        elif self.origin == "api":
            raise SourceError(f"sandbox {self.name} is no longer watched: call it again")
        self.config = config
        self._retry.set()

    async def settle(self) -> None:
        """Wait some seconds for the first answers about the host names in the policy."""
        if self.watched is not None and self.failure is None:
            await self.watched.names.settle()

    async def undo(self, state: StateDirectory) -> None:
        """Close a sandbox that could not be added, and remove its fence if it was installed."""
        await self.close()
        if self.has_installed:
            with contextlib.suppress(OcsfNftError):  # the first error is raised
                await self._remove_record(state)

    def successor(
        self, config: SandboxConfig, *, has_fence: bool, namespace_id: str | None
    ) -> Sandbox:
        """Return a sandbox with another configuration, in place of this one, which has stopped.

        ``has_fence`` is true if it has the fence of this one. ``namespace_id`` is the identity of
        the only namespace to fence; None for the one that is found first.
        """
        found = Sandbox(
            config, self.origin, self._on_failure, must_exist=False, namespace_id=namespace_id
        )
        found.since_ns = self.since_ns
        found.has_installed = has_fence and self.has_installed and config.install
        return found

    @contextlib.contextmanager
    def noting_failure(self) -> Iterator[None]:
        """Note an error of the ``with`` block, in which the stopped sandbox is ended."""
        try:
            yield
        except OcsfNftError as error:
            self._note(error)
            raise

    def stop(self) -> None:
        """Let :meth:`run` end soon."""
        self._stop.set()

    async def run(self) -> None:
        """Watch the sandbox until :meth:`stop`, or until its network namespace has ended.

        A sandbox that waits for its namespace is watched again when that exists again.
        """
        while not self._stop.is_set():
            try:
                if await self._run_once():
                    return
            except OF_A_SANDBOX as error:  # its namespace can't be accessed, for example
                self._note(error)
                await until_stop(self._stop, wait_for(self._retry, _FIRST_PAUSE_SECONDS))

    async def _run_once(self) -> bool:
        """Begin to watch the sandbox, or watch it to its end; return True if it is not to go on."""
        if self.watched is None:
            return not await self._begin_when_present()
        if not await self._watch(self.watched):
            return False
        await run_shielded(self._end(self.watched))
        return not self._waits

    async def finish(
        self, end: str | None, *, removes: bool, process: Process | None = None
    ) -> Status | None:
        """Report all packets that no event has reported yet, and close the sandbox.

        With ``removes``, also remove its fence and its counts. If ``end`` is given, emit an event
        with this end of the sentence; ``process`` has released the sandbox. Call it once, after
        :meth:`run`. Return the final status; None if the sandbox was not watched. Raises the errors
        of :func:`installer.remove`, and DeliveryError.
        """
        watched = self.watched
        if watched is None:
            if removes:
                await self._remove_record(self._parts.fences.state)
            return None
        balances = await watched.finish(removes=removes)
        self.has_given_up = watched.monitor.reports.has_given_up
        was_there = removes and await watched.remove()
        status = watched.status(is_watched=False)
        await watched.close()
        if removes:
            await watched.account.remove()
        if end is not None and (was_there or self.origin == "api"):
            ended = sandbox_end(balances, end, process, is_requested=True)
            await watched.monitor.reports.report_end(ended, is_removed=removes)
        self.watched = None
        return status

    async def abandon(self) -> Status | None:
        """Close the sandbox, but leave its fence in the network namespace; emit an event.

        Call it once, after :meth:`run`. Return the final status; None if it was not watched. Raises
        the errors of :func:`ended_namespaces.remove_record`, and DeliveryError.
        """
        watched = self.watched
        if watched is None:
            return None
        await run_shielded(self._end(watched, abandons=True))
        return watched.status(is_watched=False)

    async def _watch(self, watched: WatchedSandbox) -> bool:
        """Watch the sandbox until its namespace ends; return False if it is stopped before."""
        if self.failure is None:
            try:
                return await watched.watch(self._stop)
            except* OF_A_SANDBOX as group:
                self.failure = str(first_of(group))
                await self._on_failure(first_of(group))
            failure = f"it is no longer watched: {self.failure}"
            await watched.account.gaps.report(failure, lasts=True)
            _log.error("sandbox no longer watched", sandbox=self.name, reason=self.failure)
        return await until_stop(self._stop, watched.wait_until_ended())

    async def _end(self, watched: WatchedSandbox, *, abandons: bool = False) -> None:
        """Report the end of the sandbox's namespace, and watch the next one if there is one.

        With ``abandons``, the namespace may exist, even if its last known file does not.
        """
        state, is_abandoned = self._parts.fences.state, abandons or watched.exists
        if is_abandoned:  # a sandbox has one fence on record
            await remove_record(self.name, state, watched.identity, abandons=True)
        activating = asyncio.create_task(self._activate_next())
        balances = await watched.finish()
        fenced = await activating
        await watched.close()
        # If the record is not yet that of the next namespace.
        await remove_record(self.name, state, watched.identity)
        try:
            await watched.account.remove()
        except DeliveryError as error:  # the next watch of this name removes them with the record
            _log.error("counts can't be removed", sandbox=self.name, reason=str(error))
        end = sandbox_end(balances, ABANDONED if is_abandoned else ENDED)
        await watched.monitor.reports.report_end(end, is_removed=not is_abandoned)
        self.watched = self.failure = None
        if fenced is not None:
            self._fenced = fenced
            await self._try(self.begin(self._parts))

    async def _activate_next(self) -> FencedSandbox | None:
        """Fence the namespace that already has the path of the one that has ended, if any."""
        if not self._waits or not self.config.install or self._is_absent():
            return None
        try:
            return await self._activated(self._parts.fences)
        except (*OF_A_SANDBOX, DeliveryError):  # it is tried again
            return None

    async def _begin_when_present(self) -> bool:
        """Watch the sandbox as soon as its namespace exists; return False if it never does."""
        pause = _FIRST_PAUSE_SECONDS
        namespace = self.config.namespace or HOST
        await self._forget_previous()
        while True:
            is_absent = self._is_absent()
            if self._has_ended_before or (is_absent and not self._waits):
                return False
            if is_absent:
                self.failure = None
            present = asyncio.ensure_future(self._parts.namespaces.wait_until_present(namespace))
            if not await until_stop(self._stop, present):
                return False
            tried = present.result()  # it may have ended meanwhile
            if self.namespace_id not in {None, tried}:
                return False
            if await self._try(self._activate_and_begin()):
                return True
            if not namespace.has_identity(tried):  # the next one is fenced without a pause
                continue
            self._retry.clear()
            if not await until_stop(self._stop, wait_for(self._retry, pause)):
                return False
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    async def _activate_and_begin(self) -> None:
        await self.activate(self._parts.fences)
        await self.begin(self._parts)

    async def _try(self, work: Coroutine[Any, Any, object]) -> bool:
        """Run ``work``; note and log an error of the sandbox. Return True if it is watched then."""
        try:
            await run_shielded(work)
        except (*OF_A_SANDBOX, DeliveryError) as error:  # or its record can't be stored
            self._note(error)
            return False
        if self.watched is None:
            return False
        self.failure = None
        return True

    def _note(self, error: OcsfNftError) -> None:
        if self.failure != str(error):
            _log.error("sandbox not watched", sandbox=self.name, reason=str(error))
        self.failure = str(error)

    async def _forget_previous(self) -> None:
        """Remove the record and the counts of a namespace that ended while no service ran."""
        parts = self._parts
        found = parts.fences.state.read_or_none(self.name)
        if found is not None:
            forgetting = forget_ended(
                self.name, found, parts.fences.state, parts.store, parts.reporter,
                is_certain=self._has_ended_before,
            )  # fmt: skip
            await self._try(forgetting)

    async def _remove_record(self, state: StateDirectory) -> None:
        """Remove the record of the fence, and the fence if its namespace exists."""
        if state.read_or_none(self.name) is not None:
            with contextlib.suppress(AbsentError):  # another process has removed it
                await run_shielded(asyncio.to_thread(installer.remove, self.name, state))

    def _is_absent(self) -> bool:
        present = present_identity(self.config.namespace or HOST)
        return present is None or self.namespace_id not in {None, present}
