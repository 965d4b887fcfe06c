"""A store and the forwarder of a sink, created from the sink's table as in a run."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.config import parse
from ocsf_nft.delivery.forwarder import Forwarder
from ocsf_nft.delivery.sinks.base import BatchSettings, Message
from ocsf_nft.service.outlet import outlets
from ocsf_nft.state.retry_until_writable import StorageRetrier
from ocsf_nft.state.state_db import FILE
from tests.delivery.receiver import Receiver as InMemory
from tests.delivery.stores import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path


#: The name of each tested sink, so that another table can replace it.
NAME: Final = "tried"
_MEMORY: Final = "memory"
#: Replacements for a sink's defaults; its table has priority.
_QUICK: Final = {"batch_seconds": 0.02, "retry_seconds": 0.1}


@dataclass
class Run:
    """Delivery of ``sent`` to the tested sink, and to one in memory that is always up."""

    store: Store
    #: Additional seconds for each wait.
    more_seconds: float = 0.0
    sent: list[Message] = field(default_factory=list)
    memory: InMemory = field(default_factory=InMemory)
    _forwarder: Forwarder | None = None
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    @property
    def forwarder(self) -> Forwarder:
        """The forwarder of the tested sink."""
        assert self._forwarder is not None
        return self._forwarder

    async def begin(self) -> None:
        """Start the delivery to memory."""
        await self.store.register([NAME, _MEMORY])
        self._start(
            Forwarder(
                _MEMORY,
                self.memory,
                self.store.stream,
                self.store.sinks,
                batch_settings=BatchSettings(),
                retrier=_retrier(),
                on_advance=self.store.advanced,
            )
        )

    async def deliver(self, table: dict[str, Any]) -> None:
        """Deliver with the sink of a table from now on, as after a reload of the configuration."""
        await self._end(NAME)
        written = {"host_log": "kmsg", "sink": [_QUICK | table | {"name": NAME}]}
        (outlet,) = outlets(parse(written, where="trial").sinks)
        self._forwarder = Forwarder(
            outlet.name,
            outlet.sink,
            self.store.stream,
            self.store.sinks,
            convert=outlet.convert,
            batch_settings=outlet.batch_settings,
            retrier=_retrier(),
            on_advance=self.store.advanced,
        )
        self._start(self._forwarder)

    async def end(self) -> None:
        for name in tuple(self._tasks):
            await self._end(name)

    async def put(self, messages: Iterable[Message]) -> None:
        """Store events, all in one transaction."""
        found = list(messages)
        await self.store.put([each.line for each in found])
        self.sent += found

    async def until(self, is_so: Callable[[], bool], what: str) -> None:
        """Poll a condition of this process; fail with ``what`` at the deadline."""
        try:
            async with asyncio.timeout(self.deadline):
                while not is_so():  # noqa: ASYNC110 - no event signals it
                    await asyncio.sleep(0.005)
        except TimeoutError:
            progress = None if self._forwarder is None else self._forwarder.progress
            raise AssertionError(f"never {what}: {progress}") from None

    async def drained(self) -> None:
        """Wait until the sink has or has refused each stored event."""
        try:
            await asyncio.wait_for(self.forwarder.drain(), self.deadline)
        except TimeoutError:
            raise AssertionError(f"not all delivered: {self.forwarder.progress}") from None

    @property
    def deadline(self) -> float:
        return 60 + self.more_seconds

    @property
    def uids(self) -> list[str]:
        """The uids of the stored events."""
        return [each.uid for each in self.sent]

    def _start(self, forwarder: Forwarder) -> None:
        self._tasks[forwarder.name] = asyncio.create_task(forwarder.run())

    async def _end(self, name: str) -> None:
        if (task := self._tasks.pop(name, None)) is None:
            return
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def running(folder: Path, *, more_seconds: float = 0.0) -> AsyncIterator[Run]:
    """Yield a store in a folder, with its forwarders."""
    async with Store(folder / FILE) as store:
        run = Run(store, more_seconds)
        try:
            await run.begin()
            yield run
        finally:
            await run.end()


def _retrier() -> StorageRetrier:
    return StorageRetrier(asyncio.Event())
