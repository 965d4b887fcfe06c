"""Sandboxes of a service: those of its configuration file, and those that calls add."""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog

from ocsf_nft.errors import AbsentError, ConflictError, DeliveryError, OcsfNftError, SourceError
from ocsf_nft.ocsf.fence_state_events import PolicyChange
from ocsf_nft.service import added_sandboxes
from ocsf_nft.service.calls import Calls
from ocsf_nft.service.policy_changes import (
    change_of_all,
    change_of_policy,
    is_same_namespace,
)
from ocsf_nft.service.sandbox import Sandbox
from ocsf_nft.service.sandbox_view import PutResult, no_condition, view_of
from ocsf_nft.service.shielded import run_shielded
from ocsf_nft.service.status import Status
from ocsf_nft.service.task_errors import run_all, run_each

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.process import Process
    from ocsf_nft.service.sandbox_start import FenceParts, WatchParts
    from ocsf_nft.service.sandbox_view import Condition, Origin, SandboxView

_log = structlog.get_logger()

#: Longest pause between two checks of a sandbox that is ending, but may have got a file again.
_END_SECONDS: Final = 0.02
#: Pause between two searches for sandboxes that were connected to the host later.
_GUARD_SECONDS: Final = 1.0
#: Longest time of a call for a sandbox that is ending.
_MAX_END_SECONDS: Final = 10.0
_STOPPED: Final = "has ended: ocsf-nft has stopped, and removed its fence"
_UNCONFIGURED: Final = "has ended: the configuration no longer has it, and its fence was removed"
_RELEASED: Final = "was released"


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
        self._calls = Calls()
        self._fence_parts: FenceParts
        self._parts: WatchParts
        self._group: asyncio.TaskGroup

    @property
    def all(self) -> tuple[Sandbox, ...]:
        """Return all sandboxes."""
        return tuple(self._sandboxes.values())

    def views(self) -> tuple[SandboxView, ...]:
        """Return the state of each sandbox, in the order of their names."""
        return tuple(view_of(self._sandboxes[name]) for name in sorted(self._sandboxes))

    def view(self, name: str) -> SandboxView:
        """Return the state of a sandbox; raises AbsentError if there is none of this name."""
        return view_of(self.find(name))

    def find(self, name: str) -> Sandbox:
        """Return a sandbox; raises AbsentError if there is none of this name."""
        found = self._sandboxes.get(name)
        if found is None:
            raise AbsentError(f"there is no sandbox {name} here: see `ocsf-nft list`")
        return found

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
        for config, has_ended, namespace_id in added_sandboxes.stored(self._state):
            if config.name in self._sandboxes:
                _log.warning("sandbox is now that of the configuration file", sandbox=config.name)
                self._state.delete_added(config.name)
                continue
            try:
                created = self._create(config, "api", namespace_id=namespace_id)
            except SourceError as error:  # another run watches it
                _log.error("sandbox not watched", sandbox=config.name, reason=str(error))
            else:
                if has_ended:
                    created.end_before()
                else:
                    others.append(created)
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

    async def wait_until_prepared(self) -> None:
        """Wait until the restores of all fences are prepared."""
        for each in self.all:
            if each.watched is not None:
                await each.watched.monitor.prepared.wait()

    async def close(self) -> None:
        """Close the resources of a failed start; the fences stay."""
        for each in self.all:
            await each.close()
        for lock in self._run_locks.values():
            lock.close()
        self._run_locks.clear()

    async def finish(self) -> list[str]:
        """End all sandboxes, remove the fences that were installed, but not those of calls.

        Return the names of sandboxes with a fence that the guard has stopped restoring. Raises the
        errors of :meth:`Sandbox.finish`.
        """
        await self._calls.stop()
        for each in self.all:
            each.stop()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        await run_each(self._finish(each) for each in self.all)
        return [each.name for each in self.all if each.has_given_up]

    async def _finish(self, sandbox: Sandbox, end: str = _STOPPED) -> None:
        removes = sandbox.origin == "file" and sandbox.has_installed
        await sandbox.finish(end if removes else None, removes=removes)

    async def reload(self, configured: Sequence[SandboxConfig]) -> None:
        """Replace the sandboxes of the configuration file by ``configured``.

        Each one is added, changed or ended by itself. Raises the first error after that; the
        sandbox of the error is as before, or not watched if it is new.
        """
        given = {each.name: each for each in configured}
        works: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            each.name: partial(self._end_configured, each.name)
            for each in self.all
            if each.origin == "file" and each.name not in given
        }
        works |= {name: partial(self._configure, config) for name, config in given.items()}
        errors: list[OcsfNftError] = []
        for name, work in works.items():
            try:
                await self._calls.run(name, work)
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
        if found is None:
            await self._start_new(config, "file")
        elif found.config != config or found.failure is not None:
            try:
                change, is_policy = change_of_policy(found.config, config), True
            except ConflictError:  # another namespace, for example
                change, is_policy = change_of_all(found.config, config), False
            if is_policy and found.failure is None:
                await found.change(config, change)
            else:
                await self._renew(found, config, change)

    async def _start_new(
        self,
        config: SandboxConfig,
        origin: Origin,
        added: PolicyChange | None = None,
        namespace_id: str | None = None,
    ) -> None:
        """Watch a new sandbox; after an error, nothing of it is left."""
        sandbox = self._create(
            config, origin, must_exist=origin == "api", namespace_id=namespace_id
        )
        try:
            if origin == "api":
                # First, so that a service that is killed meanwhile completes it after its restart.
                await self._store(config)
            await sandbox.activate(self._fence_parts)
            await sandbox.begin(self._parts, added)
        except BaseException:
            try:
                await sandbox.undo(self._state)
                self._state.delete_added(config.name)
            finally:
                self._drop(sandbox)
            raise
        self._start(sandbox)

    async def _end_configured(self, name: str) -> None:
        # Calls before this one may have watched it again, or ended it.
        sandbox = self._sandboxes.get(name)
        if sandbox is None or sandbox.origin != "file":
            return
        await self._halt(sandbox)
        if name in self._sandboxes:
            with sandbox.noting_failure():
                await self._finish(sandbox, _UNCONFIGURED)
            self._drop(sandbox)

    async def guard_later_links(self) -> None:
        """Watch sandboxes again that lack a guard on the host, until it is cancelled.

        Some engines connect a container to the host after its fence was installed.
        """
        while True:
            await asyncio.sleep(_GUARD_SECONDS)
            for each in self.all:
                if each.lacks_guard:
                    try:
                        await self._calls.run(each.name, partial(self._guard, each))
                    except OcsfNftError as error:
                        _log.warning("no guard", sandbox=each.name, reason=str(error))

    async def _guard(self, sandbox: Sandbox) -> None:
        if self._sandboxes.get(sandbox.name) is sandbox and sandbox.lacks_guard:
            config = sandbox.config
            change = change_of_all(config, config)
            await self._renew(sandbox, config, change, sandbox.namespace_id)

    async def _halt(self, sandbox: Sandbox) -> None:
        sandbox.stop()
        await asyncio.wait([self._tasks[sandbox.name]])

    async def _renew(
        self,
        found: Sandbox,
        config: SandboxConfig,
        change: PolicyChange,
        namespace_id: str | None = None,
    ) -> None:
        """Watch a sandbox again, with another configuration; its fence stays until it is replaced.

        After an error, it has its configuration of before.
        """
        await self._halt(found)
        if self._sandboxes.get(found.name) is not found:
            raise AbsentError(f"sandbox {found.name} has ended")
        stays, renewed = is_same_namespace(found.config, config), found
        try:
            await found.finish(None, removes=found.has_installed and not stays)
            self._sandboxes[found.name] = renewed = found.successor(
                config, has_fence=stays, namespace_id=namespace_id
            )
            await renewed.activate(self._fence_parts)
            await renewed.begin(self._parts, change if change.changes else None)
        except OcsfNftError:
            # After an error of the end, the fence is that of before, also for another namespace.
            stays |= renewed is found
            await (renewed.close() if stays else renewed.undo(self._state))
            self._sandboxes[found.name] = renewed = renewed.successor(
                found.config, has_fence=stays, namespace_id=found.namespace_id
            )
            await renewed.try_activate(self._fence_parts)
            await renewed.try_begin(self._parts)
            raise
        finally:
            self._start(renewed)

    async def put(
        self,
        config: SandboxConfig,
        caller: Process | None = None,
        require: Condition = no_condition,
        *,
        namespace_id: str | None = None,
    ) -> PutResult:
        """Add a sandbox, or change its policy; return when the fence is active and watched.

        If its policy has host names, also wait for the first answers about them, for at most 5 s.
        ``namespace_id`` is the identity of the only network namespace that is fenced; None for the
        one that is found first.
        ``require`` is called with the present state, and may raise an OcsfNftError. No other call
        changes the sandbox between this check and the change. After an error, the sandbox is as
        before. Raises UsageError if a value is invalid. Raises ConflictError if the configuration
        file has the sandbox, or if a key differs that can't be changed. Raises the errors of
        :func:`sandbox_start.activate` and :meth:`FenceMonitor.change`.
        """
        config.check()
        work = partial(self._put, config, caller, require, namespace_id)
        return await self._calls.run(config.name, work)

    async def release(
        self,
        name: str,
        caller: Process | None = None,
        require: Condition = no_condition,
        *,
        keeps_fence: bool = False,
    ) -> Status:
        """Release a sandbox: remove its fence if it was installed, and return the final counts.

        ``require`` is that of :meth:`put`. With ``keeps_fence``, the fence stays in the network
        namespace as long as that exists. Raises AbsentError if there is no such sandbox,
        ConflictError if the configuration file has it, and the errors of :func:`installer.remove`.
        """
        work = partial(self._release, name, caller, require, keeps_fence)
        return await self._calls.run(name, work)

    async def _put(
        self,
        config: SandboxConfig,
        caller: Process | None,
        require: Condition,
        namespace_id: str | None,
    ) -> PutResult:
        found = self._sandboxes.get(config.name)
        if found is not None and found.origin == "file":
            raise _of_file(config.name)
        # It may not end: its namespace may have lost only its file.
        until = time.monotonic() + _MAX_END_SECONDS
        while found is not None and found.has_ended:
            if time.monotonic() > until:
                raise SourceError(f"sandbox {config.name} has not ended yet: call it again")
            await asyncio.wait([self._tasks[config.name]], timeout=_END_SECONDS)
            found = self._sandboxes.get(config.name)
        require(None if found is None else view_of(found))
        if found is None:
            return await self._add(config, caller, namespace_id)
        change = change_of_policy(found.config, config, identity=found.identity, caller=caller)
        is_watched = found.is_watched
        if is_watched and found.config == config:
            return PutResult(is_new=False, changes=())
        if not is_watched:
            await self._halt(found)
            if config.name not in self._sandboxes:  # its namespace has ended
                return await self._add(config, caller, namespace_id)
        await self._change(found, config, change, namespace_id, renews=not is_watched)
        await self._settle(config.name)
        return PutResult(is_new=False, changes=change.changes)

    async def _change(
        self,
        found: Sandbox,
        config: SandboxConfig,
        change: PolicyChange,
        namespace_id: str | None,
        *,
        renews: bool,
    ) -> None:
        """Change a sandbox that was added by a call, also in the store; with ``renews``, watch it.

        After an error, both are as before.
        """
        await self._store(config)
        try:
            if renews:
                await self._renew(found, config, change, namespace_id)
            else:
                await found.change(config, change)
        except BaseException:
            await self._store(found.config)
            if config.name not in self._sandboxes:  # its namespace has ended meanwhile
                self._state.delete_added(config.name)
            raise

    async def _add(
        self, config: SandboxConfig, caller: Process | None, namespace_id: str | None
    ) -> PutResult:
        added = PolicyChange(process=caller, after=config.given())
        await self._start_new(config, "api", added, namespace_id)
        self._on_change()
        await self._settle(config.name)
        return PutResult(is_new=True, changes=())

    async def _settle(self, name: str) -> None:
        if (sandbox := self._sandboxes.get(name)) is not None:  # it may end meanwhile
            await sandbox.settle()

    async def _store(self, config: SandboxConfig) -> None:
        await run_shielded(asyncio.to_thread(added_sandboxes.store, self._state, config))

    async def _release(
        self, name: str, caller: Process | None, require: Condition, keeps_fence: bool
    ) -> Status:
        sandbox = self.find(name)
        require(view_of(sandbox))
        if sandbox.origin == "file":
            raise _of_file(name)
        await self._halt(sandbox)
        if name not in self._sandboxes:  # its namespace has ended meanwhile
            raise AbsentError(f"sandbox {name} has ended")
        if keeps_fence:
            status = await sandbox.abandon()
        else:
            removes = sandbox.config.install
            with sandbox.noting_failure():
                status = await sandbox.finish(_RELEASED, removes=removes, process=caller)
        self._state.delete_added(name)
        self._drop(sandbox)
        self._on_change()
        return status or Status.of_none(name)

    def _create(
        self,
        config: SandboxConfig,
        origin: Origin,
        *,
        must_exist: bool = True,
        namespace_id: str | None = None,
    ) -> Sandbox:
        lock = contextlib.ExitStack()
        lock.enter_context(self._state.run_lock(config.name))
        sandbox = Sandbox(
            config, origin, self._note_failure, must_exist=must_exist, namespace_id=namespace_id
        )
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
            try:
                if sandbox.origin == "api":
                    self._state.delete_added(sandbox.name)
            except DeliveryError as error:  # the next start finds that it has ended
                _log.error("sandbox is still stored", sandbox=sandbox.name, reason=str(error))
            self._drop(sandbox)
            self._on_change()
            _log.info("sandbox has ended, with its network namespace", sandbox=sandbox.name)

    async def _note_failure(self, error: BaseException) -> None:
        """Raise the failure of a sandbox if no other one is watched."""
        if self._is_needed and all(each.failure is not None for each in self.all):
            raise error


def _of_file(name: str) -> ConflictError:
    return ConflictError(
        f"sandbox {name} is that of the configuration file: change it there, and reload"
    )
