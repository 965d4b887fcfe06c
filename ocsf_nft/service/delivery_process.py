"""Service's side of the delivery process: starts it, and receives the sinks' progress."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import structlog

from ocsf_nft import redaction
from ocsf_nft.delivery.backoff import Backoff
from ocsf_nft.delivery.name_resolver import ResolverFiles
from ocsf_nft.errors import OcsfNftError, UsageError
from ocsf_nft.service import delivery_start
from ocsf_nft.service.delivery_answers import SinkStatus, Status
from ocsf_nft.service.delivery_run import DeliveryRun
from ocsf_nft.service.delivery_start import Start
from ocsf_nft.service.granted_files import GrantedFiles
from ocsf_nft.service.iteration import NAME
from ocsf_nft.service.name_requests import NameRequests

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from ocsf_nft.service.iteration import Iteration
    from ocsf_nft.service.outlet import Outlet
    from ocsf_nft.state.dropped_events import DroppedEvents
    from ocsf_nft.state.state_store import StateStore

_log = structlog.get_logger()

#: Time for the process to end, apart from the time for the last events.
_END_SECONDS: Final = 5.0
#: Longest pause before the process is started again.
_MAX_PAUSE_SECONDS: Final = 30.0
#: Time after which a process that has ended counts as having worked.
_WORKED_SECONDS: Final = 60.0
#: Time for which the id of a process that has ended is known. Another process gets it later: the
#: kernel assigns all other ids first.
_RECENT_SECONDS: Final = 60.0
#: Time for reading the last frames of a process that has ended.
_LAST_SECONDS: Final = 1.0


class _Plan(NamedTuple):
    """Sinks of the next process, and the future that gets the error of its start, or None."""

    outlets: tuple[Outlet, ...]
    #: See :class:`Start`.
    opens_local: bool
    answer: asyncio.Future[OcsfNftError | None]

    def end(self, error: OcsfNftError | None) -> None:
        """Set the answer, unless the waiting task was cancelled."""
        if not self.answer.done():
            self.answer.set_result(error)


class DeliveryProcess:
    """Process that delivers stored events to the sinks, without any privilege.

    If it ends by itself or hangs, another one is started: the service goes on meanwhile, and events
    wait in the store.
    """

    def __init__(  # noqa: PLR0913 - the parts of a delivery
        self,
        outlets: Sequence[Outlet],
        store: StateStore,
        *,
        sinks: Path,
        max_bytes: int,
        max_seconds: float,
        iteration: Iteration | None = None,
        resolver: ResolverFiles | None = None,
    ) -> None:
        """Create the delivery of the events of ``store``; nothing is started yet.

        ``sinks`` is the path of the database of checkpoints. Its dead letters use at most
        ``max_bytes`` on the disk, and are at most ``max_seconds`` old. The end waits for
        ``iteration`` as for a sink. ``resolver`` has the files for host names; None for those of
        the system.
        """
        #: Host names that the process resolves for the fences.
        self.names = NameRequests()
        #: Reason why no process works now; None while one does.
        self.fault: str | None = None
        #: Whether no program will take the remaining events of the iteration.
        self.is_abandoned = False
        self._outlets = tuple(outlets)
        self._store = store
        self._sinks = sinks
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._iteration = iteration
        self._resolver = resolver or ResolverFiles()
        self._files = GrantedFiles(events=store.database.path, sinks=sinks, resolver=self._resolver)
        self._status = Status(acknowledged={})
        #: What no event has reported, by the latest answer, and what events have reported since.
        self._dropped: tuple[DroppedEvents, ...] = ()
        self._faults: tuple[str, ...] = ()
        self._reported: list[DroppedEvents] = []
        self._reported_faults: list[str] = []
        #: Number of the latest request that the present process has answered.
        self._answered = 0
        self._handshake: bytes | None = None
        #: Sinks of the next process, and the future that its start resolves; None: no such plan.
        self._planned: _Plan | None = None
        self._run: DeliveryRun | None = None
        #: All processes that run, or have ended a short time ago.
        self._runs: tuple[DeliveryRun, ...] = ()
        self._replacing = asyncio.Lock()
        #: Whether the log has the reason why no other process takes over.
        self._is_outdated = False
        self._is_ending = False
        self._group = asyncio.TaskGroup()
        self._serving: asyncio.Task[None]
        self._supervision: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        """Start the process, and wait until its local sinks are open.

        A sink is local if it is a file or standard output. Raises an OcsfNftError if one can't be
        opened.
        """
        await self._group.__aenter__()
        if self._iteration is not None:
            self._iteration.on_taken = self._set_acknowledged
        self._store.on_stored = self._note_stored
        try:
            run = await self._start(opens_local=True)
        except BaseException:
            self._store.on_stored = None
            await self._group.__aexit__(None, None, None)
            raise
        self._supervision = self._group.create_task(self._supervise(run))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Deliver the remaining events for some seconds, and end the process.

        After a cancellation, or if the process does not answer, end it at once.
        """
        self._is_ending = True
        self._store.on_stored = None
        is_cancelled = isinstance(error, asyncio.CancelledError)
        self._supervision.cancel()  # it starts no other process any more
        await asyncio.wait([self._supervision])
        if self._planned is not None:  # nothing starts its process any more
            self._planned.end(None)
        run = self._run
        try:
            draining = [] if run is None else [self._drain(run, is_cancelled=is_cancelled)]
            if not (is_cancelled or self.is_abandoned):
                draining.append(self._drain_iteration())
            await asyncio.gather(*draining)
        finally:
            if self._iteration is not None:
                self._iteration.end()
            if run is not None:
                await run.close()
            await self._group.__aexit__(kind, error, traceback)

    async def _drain(self, run: DeliveryRun, *, is_cancelled: bool) -> None:
        if run.is_late:
            return
        seconds = _END_SECONDS
        if is_cancelled:
            run.end()
        else:
            seconds += delivery_start.DRAIN_SECONDS
            run.drain(self._store.database.end, *self._take_reported())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await run.ended.wait()
                await asyncio.wait([self._serving])  # its last frames

    async def _drain_iteration(self) -> None:
        if self._iteration is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delivery_start.DRAIN_SECONDS):
                    await self._iteration.drain()

    def has_run(self, pid: int) -> bool:
        """Return True for the id of the process, and of one that has ended within a minute.

        A connection that a process made before its end may be accepted afterwards.
        """
        return any(each.pid == pid for each in self._recent())

    def _recent(self) -> tuple[DeliveryRun, ...]:
        since = time.monotonic() - _RECENT_SECONDS
        return tuple(each for each in self._runs if each.ended_at > since)

    @property
    def sinks(self) -> tuple[SinkStatus, ...]:
        """Return the progress of all sinks, and of the iteration."""
        names = {each.name for each in self._outlets}
        by_name = {each.name: each for each in self._status.sinks if each.name in names}
        found = [replace(each, fault=self.fault or each.fault) for each in by_name.values()]
        if self._iteration is not None:
            found.append(self._iteration.status)
        return tuple(
            replace(each, waiting=max(0, self._store.database.end - each.done)) for each in found
        )

    @property
    def storage_fault(self) -> str | None:
        """Return the reason why the sinks' progress can't be stored; None if it can."""
        return self._status.storage_fault

    def set_handshake(self, handshake: bytes) -> None:
        """Set the handshake, and start delivery to the sinks that wait for it.

        The handshake is a JSON line that these sinks get before the first event.
        """
        self._handshake = handshake
        if self._run is not None:
            self._run.set_handshake(handshake)

    async def replace(self, outlets: Sequence[Outlet]) -> None:
        """Replace all sinks; do nothing if the delivery has ended.

        A new sink continues after the last event acknowledged under the same name. If a new sink
        that is a file or standard output can't be opened, raises an OcsfNftError and keeps the old
        sinks. But if no process works now, the next one retries that until it succeeds.
        """
        async with self._replacing:
            while not self._is_ending:
                run = self._run
                if run is None:
                    self._outlets = tuple(outlets)
                    return
                can_open = await self._files.suffice(outlets)
                if run is self._run and not self._is_ending:
                    await self._replace(run, outlets, can_open=can_open)
                    return

    async def _replace(
        self, run: DeliveryRun, outlets: Sequence[Outlet], *, can_open: bool
    ) -> None:
        if can_open:
            await run.replace(outlets)
        elif delivery_start.is_outdated():  # the next process could not start
            raise UsageError(delivery_start.OUTDATED)
        else:
            await self._start_next(run, outlets, opens_local=True)

    async def synchronize(self) -> bool:
        """Let the process remove old dead letters, and wait for a report of the sinks' progress.

        Return True if it has come. A process that does not answer for a minute is killed, so that
        another one is started.
        """
        await self._renew_files()
        run = self._run
        if run is None:
            return False
        if run.is_late:  # the caller must not wait for it again and again
            run.kill_if_hung()
            return False
        return await run.synchronize(self._store.database.end, *self._take_reported())

    def _take_reported(self) -> tuple[list[DroppedEvents], list[str]]:
        # One process only may get a number: it subtracts the number from that in the database.
        taken = self._reported, self._reported_faults
        self._reported, self._reported_faults = [], []
        return taken

    async def dropped_events(self) -> tuple[DroppedEvents, ...]:
        """Return how many dead letters of each sink were removed, since the last confirmed report.

        They were too old, or used too much of the disk.
        """
        return self._dropped if await self.synchronize() else ()

    async def confirm_reported(self, dropped: Sequence[DroppedEvents]) -> None:
        """Confirm that events have reported ``dropped``, a result of :meth:`dropped_events`."""
        self._dropped = ()
        self._reported += dropped

    async def faults(self) -> tuple[str, ...]:
        """Return the reports about damaged files of checkpoints that were renamed.

        A report stays, over restarts, until :meth:`confirm_fault` has confirmed it.
        """
        return self._faults if await self.synchronize() else ()

    async def confirm_fault(self, report: str) -> None:
        """Confirm that an event has a report: :meth:`faults` no longer returns it."""
        self._faults = tuple(each for each in self._faults if each != report)
        self._reported_faults.append(report)

    def _note_stored(self, end: int) -> None:
        if self._run is not None:
            self._run.note_stored(end)
        if self._iteration is not None:
            self._iteration.wake()

    async def _renew_files(self) -> None:
        """Start another process if a file or directory of this one was replaced, such as a secret.

        A process that can't be started is tried again, as after a crash.
        """
        run = self._run
        if run is None or run.is_late or not await self._files.are_replaced():
            return
        if delivery_start.is_outdated():  # the next process could not start
            if not self._is_outdated:
                _log.warning(
                    "the delivery process can't open replaced files", reason=delivery_start.OUTDATED
                )
            self._is_outdated = True
            return
        async with self._replacing:
            if run is self._run and not self._is_ending:
                try:
                    await self._start_next(run, self._outlets, opens_local=False)
                except OcsfNftError as error:
                    _log.error("the delivery process can't be started", reason=str(error))

    async def _start_next(
        self, run: DeliveryRun, outlets: Sequence[Outlet], *, opens_local: bool
    ) -> None:
        """Let a process with the files of ``outlets`` take over: no process can gain access.

        Raises as :meth:`replace`; then a process with the old sinks is started. Without
        ``opens_local``, a file that can't be opened is no error: opening it is retried.
        """
        _log.info("another delivery process takes over", reason="the files of its sinks differ")
        answer: asyncio.Future[OcsfNftError | None] = asyncio.get_running_loop().create_future()
        self._planned = _Plan(tuple(outlets), opens_local, answer)
        await self._drain(run, is_cancelled=False)
        if not run.ended.is_set():
            run.kill("it has not ended in time")
        if (error := await answer) is not None:
            raise error

    async def _take_over(self, plan: _Plan, backoff: Backoff) -> DeliveryRun:
        before, self._outlets = self._outlets, plan.outlets
        error: OcsfNftError | None = None
        try:
            return await self._start(opens_local=plan.opens_local)
        except OcsfNftError as failure:
            error, self._outlets = failure, before
        finally:
            plan.end(error)
        return await self._start_again(backoff, is_again=False)

    async def _supervise(self, run: DeliveryRun) -> None:
        """Start another process whenever the running one ends."""
        backoff = Backoff(max_seconds=_MAX_PAUSE_SECONDS)
        while True:
            await run.ended.wait()
            if self._is_ending:
                return
            await asyncio.wait([self._serving], timeout=_LAST_SECONDS)  # its last log records
            await run.close()
            self._run = None
            self.names.use(None)
            if self._planned is not None:
                plan, self._planned = self._planned, None
                run = await self._take_over(plan, backoff)
                self.fault = None
                continue
            self.fault = f"the delivery process has ended with {run.describe_end()}"
            _log.error("the delivery process is started again", reason=self.fault)
            if time.monotonic() - run.began_at > _WORKED_SECONDS:
                backoff = Backoff(max_seconds=_MAX_PAUSE_SECONDS)
            await asyncio.sleep(backoff.wait_seconds(None))
            run = await self._start_again(backoff)
            self.fault = None

    async def _start_again(self, backoff: Backoff, *, is_again: bool = True) -> DeliveryRun:
        while True:
            try:
                return await self._start(is_again=is_again)
            except OcsfNftError as error:
                self.fault = str(error)
                _log.error("the delivery process can't be started", reason=self.fault)
            await asyncio.sleep(backoff.wait_seconds(None))

    async def _start(self, *, is_again: bool = False, opens_local: bool = False) -> DeliveryRun:
        """Start a process; with ``opens_local``, return when its local sinks are open."""
        files = await self._files.grant(self._outlets)
        run = await DeliveryRun.spawn(self._take_status, self._take_outlets, self.names.take)
        self._runs = (*self._recent(), run)
        self._answered = 0
        self._serving = self._group.create_task(run.serve())
        self._run = run  # learns of the events that are stored from now on
        try:
            await run.start(
                Start(
                    outlets=self._outlets,
                    is_again=is_again,
                    opens_local=opens_local,
                    events=self._store.database.path,
                    identity=self._store.database.identity,
                    end=self._store.database.end,
                    sinks=self._sinks,
                    max_bytes=self._max_bytes,
                    max_seconds=self._max_seconds,
                    handshake=self._handshake,
                    drain_seconds=delivery_start.DRAIN_SECONDS,
                    log_level=_log_level(),
                    resolver=self._resolver,
                    redactor=redaction.current().with_random_key(),
                    files=files,
                )
            )
        except BaseException:
            self._run = None
            await run.close()
            self._serving.cancel()
            raise
        self.names.use(run.resolve)
        return run

    def _take_outlets(self, outlets: Sequence[Outlet]) -> None:
        self._outlets = tuple(outlets)
        self._set_acknowledged()

    def _take_status(self, status: Status) -> None:
        if status.synchronized > self._answered:
            self._answered = status.synchronized
            self._dropped, self._faults = status.dropped, status.faults
        self._status = status
        self._set_acknowledged()

    def _set_acknowledged(self) -> None:
        known = self._status.acknowledged
        found = {
            each.name: min(known.get(each.name, 0), self._store.database.end)
            for each in self._outlets
        }
        if self._iteration is not None:
            found[NAME] = self._iteration.acknowledged
        self._store.database.retention.acknowledged = found


def _log_level() -> int:
    # The program may have its own kind of logger.
    level = getattr(_log, "get_effective_level", None)
    return logging.INFO if level is None else int(level())
