"""Sandboxes of a service: those of its configuration file, and those that calls add."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from ocsf_nft.errors import AbsentError, ConflictError, OcsfNftError, SourceError
from ocsf_nft.ocsf.fence_state_events import PolicyChange
from ocsf_nft.process import Process
from ocsf_nft.service import added_sandboxes
from ocsf_nft.service.keyed_locks import KeyedLocks
from ocsf_nft.service.policy_changes import policy_changes
from ocsf_nft.service.sandbox import Sandbox
from ocsf_nft.service.sandbox_view import PutResult, view_of
from ocsf_nft.service.shielded import run_shielded
from ocsf_nft.service.status import Status
from ocsf_nft.service.task_errors import run_all

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.service.caller import Caller
    from ocsf_nft.service.sandbox import Origin
    from ocsf_nft.service.sandbox_start import FenceParts, WatchParts
    from ocsf_nft.service.sandbox_view import SandboxView

_log = structlog.get_logger()
T = TypeVar("T")

_STOPPED: Final = "has ended: ocsf-nft has stopped, and removed its fence"
_RELEASED: Final = "was released"
#: Interval of checks whether a namespace was found by another process.
_SETTLE_SECONDS: Final = 0.02


class Sandboxes:
    """Sandboxes of a service by name.

    Calls for the same name run one after the other, those for different names at the same time.
    """

    def __init__(
        self, state: StateDirectory, *, is_needed: bool, on_change: Callable[[], None]
    ) -> None:
        """Create the collection, which has no sandbox yet.

        With ``is_needed``, the service fails with the last sandbox that is watched. ``on_change``
        is called after a sandbox was added or has ended.
        """
        self._state = state
        self._is_needed = is_needed
        self._on_change = on_change
        self._sandboxes: dict[str, Sandbox] = {}
        self._run_locks: dict[str, contextlib.ExitStack] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._calls = KeyedLocks[str]()
        self._running: set[asyncio.Task[Any]] = set()
        self._fence_parts: FenceParts
        self._parts: WatchParts
        self._group: asyncio.TaskGroup
        self._is_stopping = False

    @property
    def all(self) -> tuple[Sandbox, ...]:
        """Return all sandboxes."""
        return tuple(self._sandboxes.values())

    def views(self) -> tuple[SandboxView, ...]:
        """Return the state of each sandbox, in the order of their names."""
        return tuple(view_of(self._sandboxes[name]) for name in sorted(self._sandboxes))

    def view(self, name: str) -> SandboxView:
        """Return the state of a sandbox; raises AbsentError if there is none of this name."""
        return view_of(self._find(name))

    async def activate(
        self, parts: FenceParts, configured: Sequence[SandboxConfig], *, must_exist: bool
    ) -> None:
        """Activate the fences of the configured sandboxes, and of those that calls have added.

        With ``must_exist``, a missing network namespace of a configured sandbox is an error.
        Otherwise it is waited for. Raises an OcsfNftError, or an ExceptionGroup of them, if a
        configured fence can't be active.
        """
        self._fence_parts = parts
        await asyncio.to_thread(self._state.remove_leftovers)
        for config in configured:
            self._create(config, "file", must_exist=must_exist)
        file = tuple(self._sandboxes)
        others = []
        for config, has_ended in added_sandboxes.stored(self._state):
            if config.name in self._sandboxes:
                _log.warning("sandbox is now that of the configuration file", sandbox=config.name)
                self._state.delete_added(config.name)
            elif has_ended:
                self._create(config, "api").end_before()
            else:
                others.append(self._create(config, "api"))
        await run_all(self._sandboxes[name].activate(parts) for name in file)
        await run_all(each.try_activate(parts) for each in others)

    async def begin(self, parts: WatchParts, group: asyncio.TaskGroup) -> None:
        """Begin to watch the sandboxes with active fences, by tasks of ``group``.

        Raises the errors of :meth:`Sandbox.begin` for configured sandboxes.
        """
        self._parts, self._group = parts, group
        await run_all(
            each.begin(parts) if each.origin == "file" else each.try_begin(parts)
            for each in self._sandboxes.values()
        )

    def start(self) -> None:
        """Start the tasks that watch the sandboxes."""
        for each in self.all:
            self._start(each)

    async def prepare(self) -> None:
        """Prepare the restores of all fences."""
        watched = [each.watched for each in self.all if each.watched is not None]
        await run_all(each.monitor.prepare() for each in watched)

    async def close(self) -> None:
        """Close what a failed start has opened; the fences stay."""
        for each in self.all:
            await each.close()
        for lock in self._run_locks.values():
            lock.close()
        self._run_locks.clear()

    async def finish(self) -> list[str]:
        """End all sandboxes, remove the fences that were installed, but not those of calls.

        Return the names of sandboxes of which restoring the fence was given up. Raises the errors
        of :meth:`Sandbox.finish`.
        """
        self._is_stopping = True
        if self._running:
            await asyncio.wait(self._running)
        for each in self.all:
            each.stop()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        await run_all(self._finish(each) for each in self.all)
        return [each.name for each in self.all if each.has_given_up]

    async def _finish(self, sandbox: Sandbox) -> None:
        removes = sandbox.origin == "file" and sandbox.has_installed
        await sandbox.finish(_STOPPED if removes else None, removes=removes)

    async def reload(self, configured: Sequence[SandboxConfig]) -> None:
        """Replace the sandboxes of the configuration file by ``configured``.

        Each one is added, changed or ended by itself. Raises the first error after that; the
        sandbox of the error is as before, or not watched if it is new.
        """
        given = {each.name: each for each in configured}
        errors: list[OcsfNftError] = []
        for sandbox in self.all:
            if sandbox.origin == "file" and sandbox.name not in given:
                await self._call(sandbox.name, partial(self._end_configured, sandbox))
        for name, config in given.items():
            try:
                await self._call(name, partial(self._configure, config))
            except OcsfNftError as error:
                errors.append(error)
        self._on_change()
        if errors:
            raise errors[0]

    async def _configure(self, config: SandboxConfig) -> None:
        found = self._sandboxes.get(config.name)
        if found is not None and found.origin == "api":
            raise ConflictError(
                f"sandbox {config.name} was added by a call: release it, and reload again"
            )
        if found is not None and found.config == config:
            return
        if found is not None:
            try:
                changes = policy_changes(found.config, config)
            except ConflictError:  # another namespace, for example
                await self._end_configured(found)
            else:
                before, after = found.config.given(), config.given()
                change = PolicyChange(changes=changes, before=before, after=after)
                await found.change(config, change)
                return
        sandbox = self._create(config, "file", must_exist=False)
        try:
            await sandbox.activate(self._fence_parts)
            await sandbox.begin(self._parts)
        except BaseException:
            await sandbox.undo()
            self._drop(sandbox)
            raise
        self._start(sandbox)

    async def _end_configured(self, sandbox: Sandbox) -> None:
        sandbox.stop()
        await asyncio.wait([self._tasks[sandbox.name]])
        if sandbox.name in self._sandboxes:
            await self._finish(sandbox)
            self._drop(sandbox)

    async def put(
        self, config: SandboxConfig, caller: Caller | None = None, *, is_new: bool | None = None
    ) -> PutResult:
        """Add a sandbox, or change its policy; return when the fence is active and watched.

        With ``is_new``, only add it; with False, only change it. After an error, the sandbox is as
        before. Raises UsageError if a value is invalid. Raises ConflictError if the configuration
        file has the sandbox, or if a key differs that can't be changed. Raises the errors of
        :func:`sandbox_start.activate` and :meth:`FenceMonitor.change`.
        """
        config.check()
        return await self._call(config.name, partial(self._put, config, caller, is_new))

    async def release(
        self, name: str, caller: Caller | None = None, *, keeps_fence: bool = False
    ) -> Status:
        """Release a sandbox: remove its fence if it was installed, and return the final counts.

        With ``keeps_fence``, the fence stays in the network namespace as long as that exists.
        Raises AbsentError if there is no such sandbox, ConflictError if the configuration file has
        it, and the errors of :func:`installer.remove`.
        """
        return await self._call(name, partial(self._release, name, caller, keeps_fence))

    async def _call(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a call for a sandbox after the calls before; a caller that leaves does not end it."""

        async def run() -> T:
            async with self._calls.hold(name):
                if self._is_stopping:
                    raise SourceError("the service is stopping: call it again when it runs")
                return await work()

        task = asyncio.ensure_future(run())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _put(
        self, config: SandboxConfig, caller: Caller | None, is_new: bool | None
    ) -> PutResult:
        found = self._sandboxes.get(config.name)
        if found is not None and found.origin == "file":
            raise _of_file(config.name)
        if found is not None:
            await self._settle(found)
            found = self._sandboxes.get(config.name)
        if found is None:
            if is_new is False:
                self._find(config.name)
            await self._add(config, caller)
            return PutResult(is_new=True, changes=())
        if is_new:
            raise ConflictError(f"there is a sandbox {config.name} already: change or release it")
        changes = policy_changes(found.config, config, found.identity)
        if changes or found.config != config:
            before = found.config.given()
            change = PolicyChange(
                changes=changes, process=_process(caller), before=before, after=config.given()
            )
            await self._store(config)
            try:
                await found.change(config, change)
            except BaseException:
                if self._sandboxes.get(config.name) is found:
                    await self._store(found.config)
                raise
        return PutResult(is_new=False, changes=changes)

    async def _settle(self, sandbox: Sandbox) -> None:
        """Wait until a sandbox has ended whose network namespace seems to have ended.

        A namespace that has only lost the process that names it goes on, found by another one.
        """
        task = self._tasks[sandbox.name]
        while sandbox.has_ended and not task.done():
            await asyncio.wait([task], timeout=_SETTLE_SECONDS)

    async def _add(self, config: SandboxConfig, caller: Caller | None) -> None:
        sandbox = self._create(config, "api")
        added = PolicyChange(process=_process(caller), after=config.given())
        try:
            # First, so that a service that is killed meanwhile completes it after its restart.
            await self._store(config)
            await sandbox.activate(self._fence_parts)
            await sandbox.begin(self._parts, added)
        except BaseException:
            await sandbox.undo()
            self._state.delete_added(config.name)
            self._drop(sandbox)
            raise
        self._start(sandbox)
        self._on_change()

    async def _store(self, config: SandboxConfig) -> None:
        await run_shielded(asyncio.to_thread(added_sandboxes.store, self._state, config))

    async def _release(self, name: str, caller: Caller | None, keeps_fence: bool) -> Status:
        sandbox = self._find(name)
        if sandbox.origin == "file":
            raise _of_file(name)
        sandbox.stop()
        await asyncio.wait([self._tasks[name]])
        if name not in self._sandboxes:  # its namespace has ended meanwhile
            raise AbsentError(f"sandbox {name} has ended")
        if keeps_fence:
            status = await sandbox.abandon()
        else:
            process = _process(caller)
            removes = sandbox.config.install
            status = await sandbox.finish(_RELEASED, removes=removes, process=process)
        self._state.delete_added(name)
        self._drop(sandbox)
        self._on_change()
        return status or Status(
            sandbox=name, is_watched=False, verdict="absent", absent=(), balances=(),
            dropped_records=(),
        )  # fmt: skip

    def _create(self, config: SandboxConfig, origin: Origin, *, must_exist: bool = True) -> Sandbox:
        lock = contextlib.ExitStack()
        lock.enter_context(self._state.run_lock(config.name))
        sandbox = Sandbox(config, origin, self._note_failure, must_exist=must_exist)
        self._run_locks[config.name] = lock
        self._sandboxes[config.name] = sandbox
        return sandbox

    def _drop(self, sandbox: Sandbox) -> None:
        del self._sandboxes[sandbox.name]
        self._tasks.pop(sandbox.name, None)
        self._run_locks.pop(sandbox.name).close()

    def _start(self, sandbox: Sandbox) -> None:
        self._tasks[sandbox.name] = self._group.create_task(self._run(sandbox))

    async def _run(self, sandbox: Sandbox) -> None:
        await sandbox.run()
        if not sandbox.is_stopping:  # its namespace has ended for good
            if sandbox.origin == "api":
                self._state.delete_added(sandbox.name)
            self._drop(sandbox)
            self._on_change()
            _log.info("sandbox has ended, with its network namespace", sandbox=sandbox.name)

    async def _note_failure(self, error: BaseException) -> None:
        """Raise the failure of a sandbox if no other one is watched."""
        if self._is_needed and all(each.failure is not None for each in self.all):
            raise error

    def _find(self, name: str) -> Sandbox:
        found = self._sandboxes.get(name)
        if found is None:
            raise AbsentError(f"there is no sandbox {name} here: see `ocsf-nft list`")
        return found


def _of_file(name: str) -> ConflictError:
    return ConflictError(
        f"sandbox {name} is that of the configuration file: change it there, and reload"
    )


def _process(caller: Caller | None) -> Process | None:
    if caller is None:
        return None
    name = None if caller.program is None else caller.program.rpartition("/")[2]
    path = caller.program if caller.program and "/" in caller.program else None
    return Process(pid=caller.pid, name=name, path=path, uid=caller.uid, gid=caller.gid)
