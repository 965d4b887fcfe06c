"""Containers as sandboxes: calls of the control API by an OCI runtime, a hook or a CNI plugin."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft import proc
from ocsf_nft.control.attach import decide
from ocsf_nft.control.container_facts import sandbox_name
from ocsf_nft.errors import AbsentError, ConflictError, FenceError, OcsfNftError
from ocsf_nft.namespace_members import NamespaceId, members
from ocsf_nft.netns import Namespace, named, of_process
from ocsf_nft.service.keyed_locks import KeyedLocks
from ocsf_nft.service.sandbox_view import no_condition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ocsf_nft.config.attach import AttachConfig
    from ocsf_nft.control.container_facts import ContainerFacts
    from ocsf_nft.process import Process
    from ocsf_nft.service.run import Service
    from ocsf_nft.service.sandbox_view import SandboxView
    from ocsf_nft.service.status import Status

#: States of a sandbox with an active fence.
_ACTIVE: Final = frozenset(("active", "degraded"))


class Attached(NamedTuple):
    """Result of adding a container.

    ``sandbox`` is the name of the sandbox that encloses it; None for a container that starts
    without a fence. ``table`` is the name of the ``[[attach]]`` table; None if the container joins
    the network namespace of another sandbox.
    """

    sandbox: str | None
    table: str | None = None
    is_new: bool = False
    changes: Sequence[str] = ()


class Containers:
    """Containers of a service.

    ``tables`` returns the present ``[[attach]]`` tables; a reload may change them. A container has
    no state of its own: its sandbox is found by its name and its container's id.
    """

    def __init__(self, sandboxes: Service, tables: Callable[[], Sequence[AttachConfig]]) -> None:
        self._sandboxes = sandboxes
        self._tables = tables
        #: By the key of a container: a late release must not end the sandbox of its next start.
        self._keys = KeyedLocks[str]()
        #: By the identity of a network namespace: none is joined while its fence is removed.
        self._namespaces = KeyedLocks[str]()

    async def put(self, key: str, facts: ContainerFacts, caller: Process | None = None) -> Attached:
        """Fence a container if the tables require it; return when it may start.

        ``key`` identifies the container. Raises ContainerRefusedError if it must not start,
        AbsentError without its network namespace, ConflictError if a sandbox of another origin has
        its name, and the errors of adding a sandbox.
        """
        async with self._keys.hold(key):
            namespace = of_process(facts.pid) if facts.pid is not None else named(facts.netns or "")
            identity = namespace.identity()
            async with self._namespaces.hold(identity):
                return await self._put(key, facts, identity, caller)

    async def _put(
        self, key: str, facts: ContainerFacts, identity: str, caller: Process | None
    ) -> Attached:
        before = self._find(key)
        if before is not None and _identity(before) != identity:
            # The container has been started again. Others may still be in its former namespace.
            await self._sandboxes.release(before.name, caller, no_condition, keeps_fence=True)
            before = None
        if identity == Namespace().identity():
            facts = facts.model_copy(update={"network": "host"})
        elif before is not None:
            # The other processes in it are its own.
            facts = facts.model_copy(update={"network": "own"})
        # A CNI plugin and a hook may call for the same container, with different names.
        renamed = before is not None and before.name != sandbox_name(key, facts.called)
        own_name = None if before is None or renamed else before.name
        covering = next((each for each in self._enclosing(identity) if each != own_name), None)
        decision = decide(key, facts, self._tables(), is_covered=covering is not None)
        if decision is None:
            return Attached(covering)
        # Its process may exit, and one of the host may get the id of it.
        done = await self._sandboxes.put(
            decision.sandbox, caller, no_condition, namespace_id=identity
        )
        view = self._sandboxes.view(decision.sandbox.name)
        if view.state not in _ACTIVE:
            reason = "" if view.fault is None else f": {view.fault}"
            raise FenceError(f"the fence of sandbox {view.name} is not active{reason}")
        return Attached(decision.sandbox.name, decision.table, done.is_new, done.changes)

    async def release(self, key: str, caller: Process | None = None) -> Status:
        """Release the sandbox of a container.

        Raises AbsentError if it has none. Raises ConflictError if processes of others are in its
        network namespace: the sandbox remains, and ends with the namespace.
        """
        async with self._keys.hold(key):
            found = self._find(key)
            if found is None:
                raise AbsentError(
                    f"container {key} has no sandbox: it was released, or has no fence"
                )
            identity = _identity(found)
            async with self._namespaces.hold(identity or ""):
                if identity is not None and await asyncio.to_thread(_has_processes, identity):
                    raise ConflictError(
                        f"other containers use the network of container {key}: its sandbox "
                        f"{found.name} ends with their processes, so nothing needs to be done"
                    )
                return await self._sandboxes.release(found.name, caller, no_condition)

    def _find(self, key: str) -> SandboxView | None:
        """Return the sandbox of a container.

        Raises ConflictError if its name belongs to the configuration file.
        """
        for view in self._sandboxes.views():
            names = view.config.container
            if names is None or names.uid is None:
                continue
            if view.name == sandbox_name(key, names.name or names.uid):
                if view.origin == "file":
                    raise ConflictError(
                        f"sandbox {view.name} of the configuration file has the name of container "
                        f"{key}: rename one"
                    )
                return view
        return None

    def _enclosing(self, identity: str) -> Iterator[str]:
        """Yield the names of the sandboxes with an active fence in a network namespace."""
        for view in self._sandboxes.views():
            # The fence of a VM encloses only the VM.
            is_whole = view.state in _ACTIVE and view.config.profile != "tap"
            if is_whole and _identity(view) == identity:
                yield view.name


def _identity(view: SandboxView) -> str | None:
    """Return the identity of a sandbox's network namespace; None if it has ended."""
    # While it is watched, the kernel gives its number to no other namespace.
    namespace = view.config.namespace
    if view.identity is not None or namespace is None:
        return view.identity
    try:
        return namespace.identity()
    except OcsfNftError:
        return None


def _has_processes(identity: str) -> bool:
    device, inode = map(int, identity.split(":"))
    return any(not _is_ours(each) for each in members(NamespaceId(device, inode)))


def _is_ours(pid: int) -> bool:
    """Return True for a child of this process, such as nft, and for a process that has exited."""
    try:
        found = proc.parsed_stat(Path(f"/proc/{pid}/stat").read_bytes())
    except OSError:
        return True
    return found.is_dead or found.parent == os.getpid()
