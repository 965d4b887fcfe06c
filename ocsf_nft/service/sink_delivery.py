"""Delivery of events: first into the store, then to each sink, in that sink's OCSF version."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

import orjson
import structlog

from ocsf_nft.delivery.batch_settings import BatchSettings
from ocsf_nft.delivery.envelope import Message
from ocsf_nft.delivery.forwarder import Forwarder, Progress
from ocsf_nft.errors import DeliveryError, UsageError
from ocsf_nft.ocsf.events import CLASSES
from ocsf_nft.ocsf.versions import LATEST, line_at
from ocsf_nft.service.shielded import run_shielded

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from ocsf_nft.config.sinks.base import SinkTable
    from ocsf_nft.delivery.retention import DroppedEvents
    from ocsf_nft.delivery.retry_until_writable import StorageRetrier
    from ocsf_nft.delivery.sinks.base import Sink
    from ocsf_nft.delivery.store import Store

_log = structlog.get_logger()

#: Time for the delivery of the last events when a run ends. The next run delivers the rest.
_DRAIN_SECONDS: Final = 5.0
#: Time limit for opening a local sink: a sink whose last write was interrupted may block forever.
_OPEN_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlet:
    """Destination of events (``sink``), with its name and its delivery settings.

    The settings are the OCSF version and classes of the delivered events, and the batch settings.
    """

    name: str
    sink: Sink
    #: OCSF version of the events that the sink gets.
    version: str = LATEST
    #: The sink gets only events with these values of ``class_uid``.
    classes: frozenset[int] = frozenset(CLASSES)
    batch_settings: BatchSettings = field(default_factory=BatchSettings)
    #: True for a file or standard output. If it can't be opened, the service does not start.
    is_local: bool = False
    #: Whether the sink first gets a JSON line, the handshake. It is sent when all fences are active
    #: and all log sources are open.
    needs_handshake: bool = False
    #: File that the sink writes, if any. Only this service may write to it.
    file: Path | None = None

    @classmethod
    def of(cls, table: SinkTable) -> Self:
        """Create the outlet for a ``[[sink]]`` table of the configuration.

        Raises UnsupportedError if the sink needs a package extra that is not installed.
        """
        return cls(
            name=table.called,
            sink=table.sink(),
            version=table.ocsf_version,
            classes=table.class_uids,
            batch_settings=table.batch_settings,
            is_local=table.is_local,
            needs_handshake=table.needs_handshake,
            file=table.file,
        )

    def convert(self, line: bytes) -> bytes | None:
        """Convert an event (a JSON line) to the sink's OCSF version, and return it.

        Return None if the sink does not get events of this event's class.
        """
        if self.classes != CLASSES.keys() and orjson.loads(line)["class_uid"] not in self.classes:
            return None
        return line if self.version == LATEST else line_at(line, self.version)

    async def deliver(self, lines: Sequence[bytes], **_: str) -> None:
        """Send events (JSON lines) directly to the open sink, without storing them first.

        Raises DeliveryError if the sink does not accept some of the events; these events are
        not sent again. Use this method only for events from log files, which can be read again.
        """
        converted = map(self.convert, lines)
        messages = [Message("", line) for line in converted if line is not None]
        if not messages:
            return
        outcome = await self.sink.deliver(messages)
        if outcome.refused or outcome.again:
            reason = outcome.reason or outcome.refused[0].reason
            raise DeliveryError(f"{self.name} did not accept all events: {reason}")


def outlets(tables: Sequence[SinkTable]) -> tuple[Outlet, ...]:
    """Create an outlet (a sink with its settings) for each ``[[sink]]`` table of a configuration.

    Raises UsageError if two sinks write to one file. Raises UnsupportedError if a sink needs a
    package extra that is not installed.
    """
    _reject_shared_files(tables)
    return tuple(map(Outlet.of, tables))


class SinkDelivery:
    """Store of events, and for each sink a task that delivers events from the store to the sink.

    The tasks run inside ``async with``. If a task fails, the ``async with`` block is cancelled, and
    raises an ExceptionGroup.
    """

    def __init__(self, found: Sequence[Outlet], store: Store, retrier: StorageRetrier) -> None:
        self.store = store
        self.forwarders: tuple[Forwarder, ...] = ()
        #: Names of sinks that are not drained at the end, because nothing reads from them any more.
        self.undrained: set[str] = set()
        #: Whether to remove the store at the end, if every sink has all events.
        self.removes_store = False
        self._found = tuple(found)
        self._retrier = retrier
        self._stack = contextlib.AsyncExitStack()
        self._group: asyncio.TaskGroup
        self._handshake: bytes | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._replacing = asyncio.Lock()
        self._is_over = False

    async def __aenter__(self) -> Self:
        """Open the store, and start delivery to the sinks.

        Raises DeliveryError if the store, or a sink that is a file or standard output, can't be
        opened.
        """
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.store)
            stack.push_async_callback(self._remove_store)
            # Only the forwarders that never ran: the others have closed their sinks.
            stack.push_async_callback(lambda: _close(self.forwarders))
            self.forwarders = await self._opened(self._found)
            await self._register(self.forwarders)
            await _load_checkpoints(self.forwarders)
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
        """Deliver the remaining events for at most five seconds; then close the store.

        After a cancellation, deliver no more events. Events that are not delivered stay in the
        store.
        """
        try:
            async with self._replacing:  # a later replacement does nothing
                self._is_over = True
            if not isinstance(error, asyncio.CancelledError):
                await self._drain()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await self._stack.__aexit__(kind, error, traceback)

    def set_handshake(self, handshake: bytes) -> None:
        """Set the handshake, and start delivery to the sinks that wait for it.

        The handshake is a JSON line that these sinks get before the first event.
        """
        self._handshake = handshake
        for outlet, forwarder in zip(self._found, self.forwarders, strict=True):
            if outlet.needs_handshake:
                self._run(forwarder)

    async def replace(self, found: Sequence[Outlet]) -> None:
        """Replace all sinks by those in ``found``; do nothing if delivery has ended.

        A new sink begins after the last event that a sink of the same name has acknowledged. Raises
        DeliveryError if a new sink that is a file or standard output can't be opened. Then the old
        sinks remain.
        """
        async with self._replacing:
            if not self._is_over:
                await run_shielded(self._replace(tuple(found)))

    async def _replace(self, found: tuple[Outlet, ...]) -> None:
        forwarders = await self._opened(found)
        try:
            await self._register((*self.forwarders, *forwarders))
            await _load_checkpoints(forwarders)
        except BaseException:
            await _close(forwarders)
            raise
        old = self._tasks
        for each in self.forwarders:
            each.request_stop()
        self._found, self.forwarders, self._tasks = found, forwarders, {}
        # Each begins when its predecessor has ended, and does not wait for any other one.
        await asyncio.gather(
            *(self._succeed(each, old.pop(each.name, None)) for each in forwarders),
            *map(_await_end, old.values()),  # forwarders without a successor
        )
        await self._register(forwarders)

    async def _succeed(self, forwarder: Forwarder, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await _await_end(before)
        self._run(forwarder)

    async def _opened(self, found: Sequence[Outlet]) -> tuple[Forwarder, ...]:
        """Create a forwarder for each sink; open the new sinks that are files or standard output.

        A forwarder delivers stored events to its sink. All other sinks are opened later by their
        forwarders. This includes each sink that a running forwarder still uses.
        """
        before = {each.name: each.progress for each in self.forwarders}
        forwarders = tuple(
            Forwarder(
                each.name,
                each.sink,
                self.store,
                convert=each.convert,
                batch_settings=each.batch_settings,
                retrier=self._retrier,
                progress=before.get(each.name) or Progress(),
            )
            for each in found
        )
        taken = {_file_identity(each.file) for each in self._found if each.name in self._tasks}
        async with contextlib.AsyncExitStack() as stack:
            for outlet, forwarder in zip(found, forwarders, strict=True):
                # The forwarder of an existing sink may write to it until it has ended. The new
                # forwarder opens the sink before its first delivery.
                is_there = outlet.name in self._tasks or _file_identity(outlet.file) in taken - {
                    None
                }
                if outlet.is_local and not is_there:
                    await _open(forwarder)
                    stack.push_async_callback(forwarder.close)
            stack.pop_all()
        return forwarders

    async def _register(self, forwarders: Sequence[Forwarder]) -> None:
        names = [each.name for each in forwarders]
        for name, number in await self._retrier(lambda: self.store.register(names)):
            _log.warning("a sink is no longer configured", sink=name, never_delivered=number)

    def _run(self, forwarder: Forwarder) -> None:
        outlet = next(each for each in self._found if each.name == forwarder.name)
        if outlet.needs_handshake:
            if self._handshake is None:
                return
            forwarder.set_handshake(self._handshake)
        running = forwarder.run()
        try:
            self._tasks[forwarder.name] = self._group.create_task(running)
        except RuntimeError:  # the group is ending, because another sink has failed permanently
            running.close()

    async def store_events(
        self, lines: Sequence[bytes], *, source: str = "", position: str = ""
    ) -> None:
        """Store events (JSON lines) on the disk; after a failure, retry until the disk is writable.

        If ``source`` is the name of a log, also store ``position``, at which reading the log
        resumes. Raises DeliveryError if the service stops before a retry succeeds.
        """
        await self._retrier(lambda: self.store.put(lines, source=source, position=position))

    async def sweep(self) -> None:
        """Remove events and dead letters older than the store's age limit; retry after a failure.

        A dead letter is an event that a sink refused.
        """
        await self._retrier(self.store.sweep)

    async def dropped_events(self) -> tuple[DroppedEvents, ...]:
        """Return for each sink how many events the store removed before the sink got them.

        Events that were already reported (:meth:`confirm_reported`) are not counted.
        """
        return await self._retrier(self.store.dropped_events)

    async def confirm_reported(self, dropped: Sequence[DroppedEvents]) -> None:
        """Mark dropped events as reported: :meth:`dropped_events` no longer counts them.

        ``dropped`` is an earlier result of :meth:`dropped_events`. If the mark can't be stored,
        storing is retried.
        """
        await self._retrier(lambda: self.store.confirm_reported(dropped))

    async def _remove_store(self) -> None:
        if self.removes_store:
            await self.store.remove()

    async def _drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS), asyncio.TaskGroup() as group:
                for forwarder in self.forwarders:
                    if forwarder.name in self._tasks and forwarder.name not in self.undrained:
                        group.create_task(forwarder.drain())
        for forwarder in self.forwarders:
            if waiting := forwarder.pending:
                _log.warning(
                    "events wait in the store for the next run", sink=forwarder.name, events=waiting
                )


async def _load_checkpoints(forwarders: Sequence[Forwarder]) -> None:
    for each in forwarders:
        await each.load_checkpoint()


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


async def _await_end(task: asyncio.Task[None]) -> None:
    """Wait at most five seconds for a forwarder's task to end; then cancel the task."""
    # The task group raises the error of a failed task.
    _, stuck = await asyncio.wait([task], timeout=_DRAIN_SECONDS)
    if stuck:
        task.cancel()
        await asyncio.wait([task])


def _reject_shared_files(tables: Sequence[SinkTable]) -> None:
    # The lines of two sinks would mix.
    named: dict[object, str] = {}
    for table in tables:
        identity = _file_identity(table.file)
        if identity is not None and identity in named:
            raise UsageError(
                f"the sinks {named[identity]} and {table.called} are one file: give each its own"
            )
        named[identity] = table.called


def _file_identity(file: Path | None) -> object:
    """Return a value that is the same for all paths to one file, including links.

    The file need not exist. Return None if ``file`` is None.
    """
    if file is None:
        return None
    try:
        found = file.stat()
    except (OSError, ValueError):  # the file does not exist yet
        return os.path.realpath(file)
    return found.st_dev, found.st_ino
