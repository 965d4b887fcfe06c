"""Delivery of stored events to each sink, in that sink's OCSF version."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Final, Self, TypeVar

import structlog

from ocsf_nft.delivery.forwarder import Forwarder, Progress
from ocsf_nft.errors import DeliveryError
from ocsf_nft.service import delivery_start
from ocsf_nft.service.outlet import file_identity
from ocsf_nft.service.shielded import run_shielded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from ocsf_nft.delivery.event_stream import EventStream
    from ocsf_nft.delivery.sink_db import SinkDatabase
    from ocsf_nft.service.outlet import Outlet
    from ocsf_nft.state.retry_until_writable import StorageRetrier

T = TypeVar("T")

_log = structlog.get_logger()

#: Time limit for opening a local sink: a sink whose last write was interrupted may block forever.
_OPEN_SECONDS: Final = 10.0


class SinkDelivery:
    """Tasks that deliver events from the store to the sinks, one for each sink.

    The tasks run inside ``async with``. If a task fails, the ``async with`` block is cancelled, and
    raises an ExceptionGroup.
    """

    def __init__(  # noqa: PLR0913 - the parts of a delivery
        self,
        found: Sequence[Outlet],
        stream: EventStream,
        database: SinkDatabase,
        retrier: StorageRetrier,
        *,
        on_change: Callable[[], None] = lambda: None,
        drain_seconds: float | None = None,
        opens_local: bool = True,
    ) -> None:
        """Create the delivery of the events of ``stream``; ``database`` has the checkpoints.

        ``on_change`` is called if the progress of a sink has changed. ``drain_seconds`` is the time
        for the last events; None means ``delivery_start.DRAIN_SECONDS``. Without ``opens_local``,
        opening a file or standard output at the start is retried, as for any other sink.
        """
        self._opens_local = opens_local
        self._drain_seconds = (
            delivery_start.DRAIN_SECONDS if drain_seconds is None else drain_seconds
        )
        #: Number of the last event that each sink has acknowledged.
        self.acknowledged: Mapping[str, int] = {}
        #: Whether to end without waiting for the sinks.
        self.is_abandoned = False
        self._on_change = on_change
        self._stream = stream
        self._database = database
        self.forwarders: tuple[Forwarder, ...] = ()
        self._found = tuple(found)
        self._retrier = retrier
        self._stack = contextlib.AsyncExitStack()
        self._group: asyncio.TaskGroup
        self._handshake: bytes | None = None
        #: Forwarders that begin when there is a handshake.
        self._waiting: list[Forwarder] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._replacing = asyncio.Lock()
        self._is_over = False

    async def __aenter__(self) -> Self:
        """Open the database, and start delivery to the sinks.

        Raises DeliveryError if the database, or a sink that is a file or standard output, can't be
        opened; for the sink, see the constructor.
        """
        async with contextlib.AsyncExitStack() as stack:
            self._database.open()
            stack.callback(self._database.close)
            stack.callback(self._stream.close)
            # Only the forwarders that never ran: the others have closed their sinks.
            stack.push_async_callback(lambda: _close(self.forwarders))
            self.forwarders = await self._opened(self._found, opens_local=self._opens_local)
            await self._register(self.forwarders, self.forwarders)
            self._group = await stack.enter_async_context(asyncio.TaskGroup())
            for each in self.forwarders:
                self._run(each)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Deliver the remaining events for at most five seconds; then stop.

        After a cancellation, deliver no more events. Events that are not delivered stay in the
        store.
        """
        try:
            async with self._replacing:  # a later replacement does nothing
                self._is_over = True
            if not isinstance(error, asyncio.CancelledError) and not self.is_abandoned:
                await self._drain()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await self._stack.__aexit__(kind, error, traceback)

    def set_handshake(self, handshake: bytes) -> None:
        """Set the handshake, and start delivery to the sinks that wait for it.

        It changes with each sandbox that is added or released. A sink that has begun gets the
        latest one when it is opened next.
        """
        self._handshake = handshake
        for outlet, forwarder in zip(self._found, self.forwarders, strict=True):
            if outlet.needs_handshake:
                forwarder.set_handshake(handshake)
        waiting, self._waiting = self._waiting, []
        for forwarder in waiting:
            self._run(forwarder)

    async def replace(self, found: Sequence[Outlet]) -> None:
        """Replace all sinks by those in ``found`` (see ``DeliveryProcess.replace``).

        Raises DeliveryError if a new sink that is a file or standard output can't be opened. Call
        :meth:`forget_removed` later.
        """
        async with self._replacing:
            if not self._is_over:
                await run_shielded(self._replace(tuple(found)))

    async def forget_removed(self) -> None:
        """Delete the checkpoints of the sinks that :meth:`replace` has removed."""
        async with self._replacing:
            if not self._is_over:
                await run_shielded(self._register(self.forwarders))

    async def _replace(self, found: tuple[Outlet, ...]) -> None:
        forwarders = await self._opened(found)
        try:
            await self._register((*self.forwarders, *forwarders), forwarders)
        except BaseException:
            await _close(forwarders)
            raise
        for each in self.forwarders:
            each.request_stop()
        self._found, self.forwarders = found, forwarders
        old, self._tasks, self._waiting = self._tasks, {}, []
        # Each begins when its predecessor has ended, and does not wait for any other one.
        await asyncio.gather(
            *(self._succeed(each, old.pop(each.name, None)) for each in forwarders),
            # Forwarders without a successor.
            *(_await_end(task, self._drain_seconds) for task in old.values()),
        )

    async def _succeed(self, forwarder: Forwarder, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await _await_end(before, self._drain_seconds)
        self._run(forwarder)

    async def _opened(
        self, found: Sequence[Outlet], *, opens_local: bool = True
    ) -> tuple[Forwarder, ...]:
        """Create a forwarder for each sink; open the sinks that are files or standard output."""
        before = {each.name: each.progress for each in self.forwarders}
        forwarders = tuple(
            Forwarder(
                each.name,
                each.sink,
                self._stream,
                self._database,
                convert=each.convert,
                batch_settings=each.batch_settings,
                retrier=self._retrier,
                progress=before.get(each.name) or Progress(),
                on_advance=self._advanced,
                on_change=self._on_change,
            )
            for each in found
        )
        taken = {file_identity(each.file) for each in self._found if each.name in self._tasks}
        async with contextlib.AsyncExitStack() as stack:
            for outlet, forwarder in zip(found, forwarders, strict=True):
                # The forwarder of an existing sink may write to it until it has ended. The new
                # forwarder opens the sink before its first delivery.
                is_there = outlet.name in self._tasks or file_identity(outlet.file) in taken - {
                    None
                }
                if opens_local and outlet.is_local and not is_there:
                    await _open(forwarder)
                    stack.push_async_callback(forwarder.close)
            stack.pop_all()
        return forwarders

    async def _register(
        self, forwarders: Sequence[Forwarder], new: Sequence[Forwarder] = ()
    ) -> None:
        names = [each.name for each in forwarders]
        identity, end = self._stream.identity, self._stream.end
        removed = await self._retrier(lambda: self._database.register(names, identity, end))
        for name, acknowledged in removed.items():
            if number := await self._retrier(partial(self._stream.count_beyond, acknowledged)):
                _log.warning("a sink is no longer configured", sink=name, never_delivered=number)
        for each in new:
            await each.load_checkpoint()
        self.acknowledged = await self._retrier(self._database.checkpoints)
        self._on_change()

    def _advanced(self, name: str, number: int) -> None:
        self.acknowledged = {**self.acknowledged, name: number}
        self._on_change()

    def _run(self, forwarder: Forwarder) -> None:
        outlet = next(each for each in self._found if each.name == forwarder.name)
        if outlet.needs_handshake:
            if self._handshake is None:
                self._waiting.append(forwarder)
                return
            forwarder.set_handshake(self._handshake)
        running = forwarder.run()
        try:
            self._tasks[forwarder.name] = self._group.create_task(running)
        except RuntimeError:  # the group is ending, because another sink has failed permanently
            running.close()

    async def _drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_seconds), asyncio.TaskGroup() as group:
                for forwarder in self.forwarders:
                    if forwarder.name in self._tasks:
                        group.create_task(forwarder.drain())
        for forwarder in self.forwarders:
            if waiting := forwarder.pending:
                _log.warning(
                    "events wait in the store for the next run", sink=forwarder.name, events=waiting
                )


async def _close(forwarders: Sequence[Forwarder]) -> None:
    for each in forwarders:
        await each.close()


async def _open(forwarder: Forwarder) -> None:
    try:
        async with asyncio.timeout(_OPEN_SECONDS):
            await forwarder.open()
    except TimeoutError as error:
        raise DeliveryError(
            f"{forwarder.name} could not be opened within {_OPEN_SECONDS:.0f} s"
        ) from error


async def _await_end(task: asyncio.Task[None], seconds: float) -> None:
    """Wait at most ``seconds`` for a forwarder's task to end; then cancel the task."""
    # The task group raises the error of a failed task.
    _, stuck = await asyncio.wait([task], timeout=seconds)
    if stuck:
        task.cancel()
        await asyncio.wait([task])
