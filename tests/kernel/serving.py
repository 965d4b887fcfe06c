"""A service in the test's own process, of which the test reads all events."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ocsf_nft
from ocsf_nft.config import SandboxConfig
from tests.kernel import namespaces

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

_LONG_SECONDS = 60.0


@dataclass
class Served:
    """Running service, and its events so far."""

    service: ocsf_nft.Service
    events: list[dict[str, Any]] = field(default_factory=list)
    _more: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def collect(self) -> None:
        async for event in self.service:
            async with self._more:
                self.events.append(event)
                self._more.notify_all()

    async def wait_for(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first event for which ``holds`` is true, when there is one."""
        async with asyncio.timeout(_LONG_SECONDS), self._more:
            while True:
                for event in self.events:
                    if holds(event):
                        return event
                await self._more.wait()

    def attempts(self, sandbox: str) -> dict[int, int]:
        """Return the numbers of refused packets of a sandbox by port, in the events so far."""
        found: dict[int, int] = {}
        for event in self.events:
            if event["class_uid"] == 4001 and event["unmapped"]["sandbox"] == sandbox:
                port = event["dst_endpoint"].get("port", 0)
                found[port] = found.get(port, 0) + event["count"]
        return found

    def messages(self, sandbox: str) -> list[str]:
        """Return the messages about the fence of a sandbox."""
        return [
            event["message"]
            for event in self.events
            if event["class_uid"] == 5019 and event["unmapped"]["sandbox"] == sandbox
        ]


@contextlib.asynccontextmanager
async def serving(state_dir: Path, *sandboxes: SandboxConfig, **keys: Any) -> AsyncIterator[Served]:
    """Run a service that collects events until the end of the ``async with`` block, and after it.

    Its network namespaces may be missing at the start.
    """
    found = ocsf_nft.Config(
        sandbox=sandboxes, state_dir=state_dir, control="/run/not-served.sock", **keys
    )
    async with (
        asyncio.TaskGroup() as group,
        ocsf_nft.Service(found, iterates=True, must_exist=False) as service,
    ):
        served = Served(service)
        group.create_task(served.collect())
        yield served


def sandbox(name: str, **keys: Any) -> SandboxConfig:
    """Return the configuration of a sandbox that is fenced by the service."""
    return SandboxConfig.model_validate(
        {"name": name, "netns": name, "proxy": [namespaces.PROXY], "install": True} | keys
    )


async def connect_to(name: str, *ports: int) -> dict[int, str]:
    """Connect in a namespace to ports, in a thread; return the outcome by port."""
    return await asyncio.to_thread(namespaces.connect, name, *ports)


async def until(holds: Callable[[], bool]) -> None:
    """Wait until ``holds`` is true."""
    async with asyncio.timeout(_LONG_SECONDS):
        while not holds():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)
