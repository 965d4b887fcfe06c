"""Delivery process: delivers stored events to the sinks, without any privilege.

The service starts it, and sends it the sinks and the number of the last stored event over a socket.
The process ends when the service closes the socket, or ends itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import structlog

from ocsf_nft import landlock, malloc_trim, privileges, redaction, seccomp
from ocsf_nft.delivery.event_stream import EventStream
from ocsf_nft.delivery.name_resolver import NameResolver
from ocsf_nft.delivery.sink_db import SinkDatabase
from ocsf_nft.delivery.sinks.stdout import Stdout
from ocsf_nft.errors import (
    DeliveryError,
    OcsfNftError,
    UnsupportedError,
    UsageError,
    reason_of,
)
from ocsf_nft.service import delivery_log
from ocsf_nft.service.daemon_thread import run_in_daemon_thread
from ocsf_nft.service.delivery_link import Kind, Link, clean
from ocsf_nft.service.delivery_start import CODE, OUTDATED, SERVICE_SIGNALS, Start
from ocsf_nft.service.sink_delivery import SinkDelivery
from ocsf_nft.state.dropped_events import DroppedEvents
from ocsf_nft.state.retry_until_writable import StorageRetrier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.service.delivery_link import Frame
    from ocsf_nft.service.outlet import Outlet

_log = structlog.get_logger()

#: Longest time between a change of the sinks' progress and the report of it.
_STATUS_SECONDS: Final = 0.05
#: Time for the last frames at the end.
_CLOSE_SECONDS: Final = 1.0
_STDERR: Final = 2
_OOM: Final = Path("/proc/self/oom_score_adj")


class DeliveryChild:
    """Delivery process, from its start until the service requests the end or closes the link."""

    def __init__(self, link: Link, start: Start) -> None:
        self._link = link
        self._stop = asyncio.Event()
        self._stream = EventStream(start.events, start.identity, start.end)
        self._retrier = StorageRetrier(self._stop, consequence="sinks get no events meanwhile")
        if start.is_again:
            for each in start.outlets:
                if isinstance(each.sink, Stdout):
                    each.sink.note_crash()
        self._handshake = start.handshake
        self._database = SinkDatabase(
            start.sinks, max_bytes=start.max_bytes, max_seconds=start.max_seconds
        )
        self._delivery = SinkDelivery(
            start.outlets,
            self._stream,
            self._database,
            self._retrier,
            on_change=self._plan_status,
            drain_seconds=start.drain_seconds,
            opens_local=start.opens_local,
        )
        self._resolver = NameResolver(start.resolver)
        #: Host names that are looked up: the number of the latest request, and the lookup.
        self._lookups: dict[str, tuple[int, asyncio.Task[None]]] = {}
        self._is_open = False
        #: Number of the latest ``SYNC``, and the reports of events that came with it.
        self._requested = 0
        self._reported: list[DroppedEvents] = []
        self._reported_faults: list[str] = []
        self._sync_requested = asyncio.Event()
        #: Number of the latest ``SYNC`` that was answered, and what no event reported then.
        self._sync = 0
        self._dropped: Sequence[DroppedEvents] = ()
        self._faults: Sequence[str] = ()
        self._planned: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Deliver events until the end."""
        try:
            async with asyncio.TaskGroup() as group:
                await self._deliver(group)
        except* OcsfNftError as found:
            error: BaseException = found
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            if self._is_open:
                self._link.send_json(Kind.CLOSED, _as_json(error))
            else:
                self._link.send_json(Kind.OPENED, [0, _as_json(error)])

    async def _deliver(self, group: asyncio.TaskGroup) -> None:
        async with self._delivery:
            self._is_open = True
            self._send_status()
            self._link.send_json(Kind.OPENED, [0, None])
            if self._handshake is not None:
                self._delivery.set_handshake(self._handshake)
            # Also during the last deliveries, since the service may end meanwhile.
            listening = group.create_task(self._listen(group))
            synchronizing = group.create_task(self._synchronize())
            await self._stop.wait()
            synchronizing.cancel()
            await asyncio.wait([synchronizing])
            with contextlib.suppress(DeliveryError):  # the disk is full: they are reported again
                await self._confirm()
        listening.cancel()
        for _, lookup in self._lookups.values():
            lookup.cancel()
        self._send_status()

    async def _listen(self, group: asyncio.TaskGroup) -> None:
        while (frame := await self._link.receive()) is not None:
            self._handle(frame, group)
        self._delivery.is_abandoned = True  # the service has ended
        self._stop.set()

    def _handle(self, frame: Frame, group: asyncio.TaskGroup) -> None:
        match frame.kind:
            case Kind.STORED:
                self._stream.advance(frame.json())
            case Kind.HANDSHAKE:
                self._delivery.set_handshake(frame.body)
            case Kind.SYNC:
                end, self._requested, reported, faults = frame.json()
                self._stream.advance(end)
                self._note_reported(reported, faults)
                self._sync_requested.set()
                self._send_status()  # at once, also if the disk is full
            case Kind.RESOLVE:
                number, name = frame.json()
                _, lookup = self._lookups.get(name, (0, None))
                lookup = lookup or group.create_task(self._resolve(name))
                self._lookups[name] = number, lookup
            case Kind.REPLACE:
                group.create_task(self._replace(*frame.unpickled()))
            case Kind.DRAIN:
                end, reported, faults = frame.json()
                self._stream.advance(end)
                self._note_reported(reported, faults)
                self._stop.set()
            case _:
                raise RuntimeError(f"unexpected frame: {frame.kind}")

    async def _synchronize(self) -> None:
        while True:
            await self._sync_requested.wait()
            self._sync_requested.clear()
            number = self._requested
            await self._confirm()
            while await self._retrier(self._database.sweep):  # noqa: ASYNC110 - it removes some
                await asyncio.sleep(0)  # other tasks get a turn
            self._dropped = await self._retrier(self._database.dropped_events)
            self._faults = await self._retrier(self._database.faults)
            self._sync = number
            self._send_status()

    def _note_reported(self, reported: Sequence[Sequence[Any]], faults: Sequence[str]) -> None:
        # The service has the cleaned names and texts.
        names = {clean(each.sink): each.sink for each in self._dropped}
        self._reported += [
            DroppedEvents(names.get(name, name), number) for name, number in reported
        ]
        texts = {clean(each): each for each in self._faults}
        self._reported_faults += [texts.get(text, text) for text in faults]

    async def _confirm(self) -> None:
        reported = list(self._reported)
        await self._retrier(lambda: self._database.confirm_reported(reported))
        del self._reported[: len(reported)]
        while self._reported_faults:
            await self._retrier(lambda: self._database.confirm_fault(self._reported_faults[0]))
            del self._reported_faults[0]

    async def _replace(self, number: int, outlets: Sequence[Outlet]) -> None:
        try:
            await self._delivery.replace(outlets)
        except OcsfNftError as error:
            self._link.send_json(Kind.OPENED, [number, _as_json(error)])
        else:
            self._send_status()
            self._link.send_json(Kind.OPENED, [number, None])
            # Only now: after a kill, the service may still have the old sinks.
            with contextlib.suppress(DeliveryError):  # the disk is full: the next start does it
                await self._delivery.forget_removed()

    async def _resolve(self, name: str) -> None:
        found = await self._resolver.resolve(name)
        number, _ = self._lookups.pop(name)
        for each in found.values():
            if "error" in each:
                each["error"] = clean(each["error"])
        self._link.send_json(Kind.RESOLVED, [number, name, found])

    def _plan_status(self) -> None:
        if self._planned is None:
            loop = asyncio.get_running_loop()
            self._planned = loop.call_later(_STATUS_SECONDS, self._send_status)

    def _send_status(self) -> None:
        if self._planned is not None:
            self._planned.cancel()
            self._planned = None
        if self._link.is_behind:  # the service is stopped, for example
            self._plan_status()
            return
        self._link.send_json(
            Kind.STATUS,
            {
                "sync": self._sync,
                "acknowledged": self._delivery.acknowledged,
                "sinks": [_cleaned(each.status()) for each in self._delivery.forwarders],
                "dropped": self._dropped,
                "faults": self._faults,
                "storage_fault": self._retrier.fault,
            },
        )


def _as_json(error: BaseException) -> dict[str, str]:
    return {"kind": type(error).__name__, "reason": clean(str(error))}


def _cleaned(status: dict[str, Any]) -> dict[str, Any]:
    return status | {"fault": None if status["fault"] is None else clean(status["fault"])}


class ChildLoop(asyncio.SelectorEventLoop):
    """Event loop in which each lookup of a receiver's name has a thread of its own.

    A lookup can't be cancelled, and takes as long as the name servers do not answer. In the threads
    that all sinks share, the lookups of some sinks would delay the others.
    """

    async def getaddrinfo(self, *arguments: Any, **options: Any) -> Any:
        """Look up a name in another thread; see :func:`socket.getaddrinfo`."""
        look_up = partial(socket.getaddrinfo, *arguments, **options)
        return await run_in_daemon_thread(look_up, "receiver-name")


async def _main(descriptor: int, code: str, *, is_filtered: bool) -> NoReturn:
    link = await Link.open(socket.socket(fileno=descriptor))
    status = await _run(link, code, is_filtered=is_filtered)
    await link.close(_CLOSE_SECONDS)
    # Without a wait for threads: a write to a pipe without a reader, or a name server, may block
    # one for ever.
    os._exit(status)


async def _run(link: Link, code: str, *, is_filtered: bool) -> int:
    if code != CODE:
        error = UsageError(OUTDATED)
        link.send_json(Kind.OPENED, [0, _as_json(error)])
        return 1
    frame = await link.receive()
    if frame is None or frame.kind is not Kind.START:  # the service has ended
        return 0
    start: Start = frame.unpickled()
    redaction.configure(start.redactor)
    delivery_log.use(link, start.log_level)
    _close_stderr()
    if not is_filtered:
        _log.info("the delivery process has no filter of system calls", reason=seccomp.UNKNOWN)
    try:
        _restrict_files(start)
        await DeliveryChild(link, start).run()
    except Exception:  # noqa: BLE001 - it is reported, and ends the process
        _log.exception("the delivery process has failed")
        return 1
    return 0


def _close_stderr() -> None:
    # From now on, the log goes over the link.
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, _STDERR)
    os.close(nothing)


def _restrict_files(start: Start) -> None:
    # SQLite makes temporary files where it may.
    os.environ["SQLITE_TMPDIR"] = str(start.sinks.parent)
    try:
        version = landlock.restrict(start.files)
    except (UnsupportedError, OSError) as error:
        reason = reason_of(error)
        _log.warning("the delivery process can open all files of its user", reason=reason)
        return
    if version == 0:
        _log.info(
            "the delivery process can open all files of its user",
            reason="the kernel has no Landlock, or a filter of system calls forbids it",
        )


def _use_own_priority() -> None:
    """Give up the service's priority, and its protection from the kernel's OOM killer."""
    with contextlib.suppress(PermissionError):  # the filter of a unit forbids the call
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    with contextlib.suppress(OSError):
        if int(_OOM.read_text("ascii")) < 0:
            _OOM.write_text("0", "ascii")


def main(descriptor: str, service: str, code: str) -> None:
    """Run the delivery process of the service with the process id ``service``.

    ``descriptor`` is the connected socket to the service, and ``code`` the service's :data:`CODE`.
    """
    for number in SERVICE_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SERVICE_SIGNALS)
    _use_own_priority()
    privileges.end_with_parent(int(service))
    privileges.keep_only(frozenset())
    is_filtered = seccomp.forbid_privileged_calls()
    malloc_trim.use_one_heap()
    with asyncio.Runner(loop_factory=ChildLoop) as runner:
        runner.run(_main(int(descriptor), code, is_filtered=is_filtered))
