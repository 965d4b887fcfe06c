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
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import structlog

from ocsf_nft import landlock, library_log, malloc_trim, privileges, redaction, seccomp
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
from ocsf_nft.service.delivery_link import Kind, Link, clean
from ocsf_nft.service.sink_delivery import SinkDelivery
from ocsf_nft.state.dropped_events import DroppedEvents
from ocsf_nft.state.retry_until_writable import StorageRetrier

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

    from ocsf_nft.delivery.name_resolver import ResolverFiles
    from ocsf_nft.landlock import Rule
    from ocsf_nft.redaction import Redactor
    from ocsf_nft.service.delivery_link import Frame
    from ocsf_nft.service.outlet import Outlet

_log = structlog.get_logger()

#: Longest time between a change of the sinks' progress and the report of it.
_STATUS_SECONDS: Final = 0.05
#: Signals for the service. systemd sends them to this process too.
SERVICE_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Time for the last frames at the end.
_CLOSE_SECONDS: Final = 1.0
_STDERR: Final = 2
_OOM: Final = Path("/proc/self/oom_score_adj")


def _code() -> str:
    status = Path(__file__).stat()
    return f"{status.st_ino}-{status.st_mtime_ns}"


#: Text that changes if another version of the program is installed. A service that runs meanwhile
#: has the old one.
CODE: Final = _code()
#: Sentence about such a service.
OUTDATED: Final = "another version of ocsf-nft was installed: restart the service"


def is_outdated() -> bool:
    """Return True if another version of the program was installed after the start of this one."""
    try:
        return _code() != CODE
    except OSError:  # the installation goes on
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Settings that the delivery process needs at its start."""

    outlets: Sequence[Outlet]
    #: Whether an earlier process of the same service has ended unexpectedly.
    is_again: bool
    #: Whether the start fails if a file or standard output can't be opened. Otherwise the process
    #: retries that, as for any other sink.
    opens_local: bool
    #: State database, a text that no other one has, and the number of its last event.
    events: Path
    identity: str
    end: int
    #: Database of the checkpoints, and the limits of its dead letters.
    sinks: Path
    max_bytes: int
    max_seconds: float
    #: First line of sinks that require it; None until the service is ready.
    handshake: bytes | None
    #: Time for the last events at the end.
    drain_seconds: float
    #: Lowest level of log records, of :mod:`logging`.
    log_level: int
    #: Files that configure the resolver of host names.
    resolver: ResolverFiles
    #: Redactor of the answers of receivers.
    redactor: Redactor
    #: Files that the process may open.
    files: frozenset[Rule]


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


class _LinkLogger:
    """Logger that sends records to the service, which writes them in its own form."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def msg(self, record: MutableMapping[str, Any]) -> None:
        values = {name: _plain(value) for name, value in record.items()}
        if threading.get_ident() == self._thread:
            self._send(values)
        else:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._send, values)

    debug = info = warning = error = critical = msg

    def _send(self, values: MutableMapping[str, Any]) -> None:
        if not self._link.is_behind:
            self._link.send_json(Kind.LOG, values)


def _plain(value: Any) -> Any:
    """Return a value that the service accepts: a number as it is, anything else as a short text."""
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int) and 0 <= value < 1 << 63:
        return value
    return clean(str(value))


def _log_over(link: Link, level: int) -> None:
    level = min(max(level, 0) // 10 * 10, 50)  # structlog knows no others
    logger = _LinkLogger(link)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _with_error,
            # As the only argument of the logger.
            lambda _, __, record: ((record,), {}),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: logger,
    )
    library_log.use()


def _with_error(_: object, __: str, values: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace ``exc_info`` in a log record by the exception as text, and its source line."""
    error = sys.exc_info()[1] if values.pop("exc_info", None) else None
    if error is not None:
        values["error"] = f"{type(error).__name__}: {reason_of(error)}"
        frame = traceback.extract_tb(error.__traceback__)[-1]
        values["at"] = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
    return values


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
    _log_over(link, start.log_level)
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
    asyncio.run(_main(int(descriptor), code, is_filtered=is_filtered))
