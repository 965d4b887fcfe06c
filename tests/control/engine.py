"""Engine in memory, in place of a service's, and a server of the control API for it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from ocsf_nft.control import server
from ocsf_nft.control.engine import Engine
from ocsf_nft.control.event_log import EventLog
from ocsf_nft.control.socket_file import SocketFile
from ocsf_nft.errors import AbsentError, ConflictError, OcsfNftError
from ocsf_nft.flows.sandbox_account import Balance
from ocsf_nft.service.delivery_answers import SinkStatus
from ocsf_nft.service.health import Fault
from ocsf_nft.service.sandbox_view import PutResult, SandboxView
from ocsf_nft.service.status import Status
from ocsf_nft.state.change import DroppedRecords

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Sequence
    from pathlib import Path

    from ocsf_nft.config import SandboxConfig
    from ocsf_nft.config.attach import AttachConfig
    from ocsf_nft.http_connections import Limits
    from ocsf_nft.process import Process
    from ocsf_nft.service.run import Service
    from ocsf_nft.service.sandbox_view import Condition

#: More than fits into 64 bits.
HUGE = 1 << 70


def view(name: str, config: SandboxConfig) -> SandboxView:
    """Return the state of a sandbox that was added."""
    return SandboxView(
        name=name,
        config=config,
        origin="api",
        state="active",
        mode="permissive" if config.permissive else "enforcing",
        fault=None,
        since_ns=1_700_000_000_123_456_789,
    )


def _sink(name: str, fault: str | None) -> SinkStatus:
    return SinkStatus(name=name, fault=fault, done=0, delivered=0, refused=0, failures=0, dead=0)


@dataclass
class Sandboxes:
    """Sandboxes in memory. ``is_held`` lets calls wait for ``released``."""

    found: dict[str, SandboxView] = field(default_factory=dict)
    calls: list[tuple[str, str, Process | None]] = field(default_factory=list)
    #: Error of the next calls.
    error: OcsfNftError | None = None
    #: Exception that is a bug.
    bug: Exception | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    #: Calls that change a sandbox wait for this.
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    completed: int = 0
    cancelled: int = 0

    def __post_init__(self) -> None:
        self.may_end.set()

    async def _work(self, what: str, name: str, caller: Process | None) -> None:
        self.calls.append((what, name, caller))
        if self.bug is not None:
            raise self.bug
        if self.error is not None:
            raise self.error
        self.begun.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.completed += 1

    async def put(
        self,
        sandbox: SandboxConfig,
        caller: Process | None,
        require: Condition,
        *,
        namespace_id: str | None = None,  # noqa: ARG002 - nothing is fenced
    ) -> PutResult:
        before = self.found.get(sandbox.name)
        require(before)
        if before is not None and before.origin == "file":
            raise ConflictError(f"sandbox {sandbox.name} is in the configuration file: change it")
        await self._work("put", sandbox.name, caller)
        self.found[sandbox.name] = view(sandbox.name, sandbox)
        changed = before is not None and before.config != sandbox
        return PutResult(before is None, ("policy: changed",) if changed else ())

    async def release(
        self, name: str, caller: Process | None, require: Condition, *, keeps_fence: bool = False
    ) -> Status:
        require(self.view(name))
        await self._work("abandon" if keeps_fence else "release", name, caller)
        del self.found[name]
        return status(name)

    def view(self, name: str) -> SandboxView:
        if name not in self.found:
            raise AbsentError(f"there is no sandbox {name}: `ocsf-nft list` shows all")
        return self.found[name]

    def views(self) -> tuple[SandboxView, ...]:
        return tuple(self.found[name] for name in sorted(self.found))

    async def status(self, name: str) -> Status | None:
        await asyncio.sleep(0)
        return status(name) if self.view(name).state == "active" else None


def status(name: str) -> Status:
    return Status(
        sandbox=name,
        is_watched=True,
        absent=("forward",),
        balances=(
            Balance(
                sandbox=name, rule="egress", refused=HUGE, reported=7, aggregated=0, pending=0,
                dropped=1,
            ),
        ),
        dropped_records=(DroppedRecords("nflog", 1, 2),),
    )  # fmt: skip


@dataclass
class Served:
    """A server, its socket, and the sandboxes behind it."""

    path: Path
    sandboxes: Sandboxes
    socket: SocketFile
    reloads: int = 0


@contextlib.asynccontextmanager
async def serving(
    path: Path,
    *,
    limits: Limits = server.LIMITS,
    store: Path | None = None,
    end: Callable[[], int] = lambda: 0,
    attach: Sequence[AttachConfig] = (),
    delivery: Collection[int] = (),
) -> AsyncIterator[Served]:
    """Serve the control API at ``path``; ``store`` and ``end`` are those of its events.

    ``attach`` has the policies of containers, ``delivery`` the ids of delivery processes.
    """
    sandboxes = Sandboxes()
    with SocketFile(path, 0o660) as socket_file:
        served = Served(path, sandboxes, socket_file)

        async def reload() -> None:
            await asyncio.sleep(0)
            if sandboxes.error is not None:
                raise sandboxes.error
            served.reloads += 1

        engine = Engine(
            state_dir=path.parent,
            sandboxes=cast("Service", sandboxes),
            events=EventLog(store or path.with_name("store"), end),
            faults=lambda: (Fault("sink siem is down", "refused", None),),
            sinks=lambda: (_sink("siem", "refused"), _sink("-", None)),
            reload=reload,
            attach=lambda: attach,
            is_delivery=lambda pid: pid in delivery,
        )
        async with server.serve(engine, socket_file, limits):
            yield served


async def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until a condition is true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "not in time"
        await asyncio.sleep(0.005)
