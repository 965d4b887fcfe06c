"""One run of the delivery process: its start, its frames, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import structlog

from ocsf_nft.delivery.sinks.stdout import Stdout
from ocsf_nft.errors import ClosedError, DeliveryError, reason_of
from ocsf_nft.service import delivery_answers
from ocsf_nft.service.delivery_answers import MAX_BYTES, Status
from ocsf_nft.service.delivery_link import Kind, Link, LinkError
from ocsf_nft.service.delivery_start import CODE, SERVICE_SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocsf_nft.errors import OcsfNftError
    from ocsf_nft.service.delivery_answers import NameAnswer
    from ocsf_nft.service.delivery_link import Frame
    from ocsf_nft.service.delivery_start import Start
    from ocsf_nft.service.outlet import Outlet
    from ocsf_nft.state.dropped_events import DroppedEvents

_log = structlog.get_logger()

#: Program of the process. With the service's own search path, it imports the same modules.
#: structlog imports rich if it can, which needs 5 MB, and the process never uses it.
_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); sys.modules['rich'] = None; "
    "from ocsf_nft.service.delivery_child import main; main(*sys.argv[2:])"
)
#: Time for the process to open its local sinks.
_OPEN_SECONDS: Final = 30.0
#: Time for a killed process to end: it may wait for a disk that does not answer.
_KILL_SECONDS: Final = 10.0
#: Time for the answer to a request, and time without an answer after which the process hangs.
_SYNC_SECONDS: Final = 5.0
_HUNG_SECONDS: Final = 60.0
#: Time for reading the last frames of a process that has ended.
_LAST_SECONDS: Final = 1.0
#: Largest number and size of the frames in a second, and number of log records.
_MAX_FRAMES: Final = 10_000
_MAX_FRAMES_BYTES: Final = 32 << 20
_MAX_RECORDS: Final = 100
#: Frames that are handled before other tasks get a turn.
_SLICE: Final = 100
_STDOUT: Final = 1


class DeliveryRun:
    """Process that delivers events, from its start to its end."""

    def __init__(
        self,
        link: Link,
        process: subprocess.Popen[bytes],
        on_status: Callable[[Status], None],
        on_opened: Callable[[Sequence[Outlet]], None],
        on_resolved: Callable[[NameAnswer], None],
    ) -> None:
        """Create the run of a started process; see :meth:`spawn`."""
        self._link = link
        self._process = process
        self._on_status = on_status
        self._on_opened = on_opened
        self._on_resolved = on_resolved
        #: Sinks that are open.
        self._outlets: Sequence[Outlet] = ()
        #: When the process was started, by :func:`time.monotonic`.
        self.began_at = time.monotonic()
        #: Set when the process has ended.
        self.ended = asyncio.Event()
        #: When that was noticed, by :func:`time.monotonic`.
        self.ended_at = math.inf
        self._heard_at = self._asked_at = self.began_at
        #: Requests to open sinks that are not answered: the sinks, and the answer.
        self._requests: dict[int, tuple[Sequence[Outlet], asyncio.Future[OcsfNftError | None]]] = {}
        self._requested = 0
        #: Numbers of the latest ``SYNC``, and of the latest one that was answered.
        self._asked = self._answered = 0
        self._has_answer = asyncio.Event()
        self._budget = _Budget()

    @classmethod
    async def spawn(
        cls,
        on_status: Callable[[Status], None],
        on_opened: Callable[[Sequence[Outlet]], None],
        on_resolved: Callable[[NameAnswer], None],
    ) -> DeliveryRun:
        """Start a process, which then waits for :meth:`start`.

        ``on_status`` gets each report of the sinks' progress, ``on_opened`` the sinks that were
        opened, ``on_resolved`` each answer to :meth:`resolve`. Raises DeliveryError if the
        process can't be started.
        """
        try:
            with contextlib.ExitStack() as undo:
                ours, theirs = socket.socketpair()
                undo.callback(ours.close)
                with theirs:
                    process = _popen(theirs.fileno())
                undo.callback(process.wait)
                undo.callback(process.kill)
                descriptor = os.pidfd_open(process.pid)
                undo.callback(os.close, descriptor)
                link = await Link.open(ours, MAX_BYTES)
                undo.pop_all()
        except OSError as error:
            reason = reason_of(error)
            raise DeliveryError(f"the delivery process can't be started: {reason}") from error
        run = cls(link, process, on_status, on_opened, on_resolved)
        asyncio.get_running_loop().add_reader(descriptor, run._note_end, descriptor)
        return run

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        return self._process.pid

    @property
    def is_late(self) -> bool:
        """Return True if the process has sent nothing since a request some seconds ago."""
        return self._heard_at < self._asked_at < time.monotonic() - _SYNC_SECONDS

    def describe_end(self) -> str:
        """Return how the process has ended, for people."""
        code = self._process.returncode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    async def serve(self) -> None:
        """Handle the frames of the process until it closes the link.

        Raises ClosedError if the reader of standard output has closed it. Other errors of the
        process only end the process: it talks to the network, and must not end the service.
        """
        try:
            while (frame := await self._link.receive()) is not None:
                await self._handle(frame)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_SECONDS):
                    await self.ended.wait()
            if not self.ended.is_set():
                self.kill("it has closed its link")
        except ClosedError:
            raise
        except Exception as error:  # noqa: BLE001 - see above
            self.kill(str(error))

    async def start(self, start: Start) -> None:
        """Let the process begin; return when its local sinks are open.

        Raises the error of a local sink, or DeliveryError.
        """
        await self._open(start.outlets, Kind.START, start)

    async def replace(self, outlets: Sequence[Outlet]) -> None:
        """Replace all sinks; raises as :meth:`start`, and then the old sinks stay."""
        await self._open(outlets, Kind.REPLACE, (self._requested, tuple(outlets)))

    def set_handshake(self, handshake: bytes) -> None:
        """Set the first line of sinks that require it."""
        self._link.send(Kind.HANDSHAKE, handshake)

    def note_stored(self, end: int) -> None:
        """Send the number of the last stored event, unless the process reads too slowly."""
        if not self._link.is_behind:  # the next SYNC has it too
            self._link.send_json(Kind.STORED, end)

    async def synchronize(
        self, end: int, dropped: Sequence[DroppedEvents], faults: Sequence[str]
    ) -> bool:
        """Request a report of the sinks' progress; return True if it has come.

        ``end`` is the number of the last stored event. ``dropped`` and ``faults`` are those that
        events have reported.
        """
        self._asked += 1
        number, self._asked_at = self._asked, time.monotonic()
        self._link.send_json(Kind.SYNC, [end, number, dropped, faults])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SYNC_SECONDS):
                while self._answered < number and not self.ended.is_set():
                    self._has_answer.clear()
                    await self._has_answer.wait()
        return self._answered >= number

    def resolve(self, number: int, name: str) -> None:
        """Request the addresses of a host name; ``number`` comes back with the answer."""
        self._link.send_json(Kind.RESOLVE, [number, name])

    def kill_if_hung(self) -> None:
        """Kill the process if it has sent nothing for a minute although it was asked."""
        if time.monotonic() - self._heard_at > _HUNG_SECONDS:
            self.kill("it does not answer")

    def kill(self, reason: str) -> None:
        """Kill the process; ``reason`` is for the log."""
        _log.error("the delivery process is killed", reason=reason)
        self._process.kill()

    def drain(self, end: int, dropped: Sequence[DroppedEvents], faults: Sequence[str]) -> None:
        """Request the delivery of the last events, and then the end; see :meth:`synchronize`."""
        self._link.send_json(Kind.DRAIN, [end, dropped, faults])

    def end(self) -> None:
        """Let the process end at once."""
        self._link.end()

    async def close(self) -> None:
        """Kill the process if it still runs, and close the link."""
        if not self.ended.is_set():
            self._process.kill()
            try:
                async with asyncio.timeout(_KILL_SECONDS):
                    await self.ended.wait()
            except TimeoutError:
                _log.error("the delivery process does not end", pid=self.pid)
        await self._link.close()

    async def _handle(self, frame: Frame) -> None:
        self._heard_at = time.monotonic()
        self._budget.spend(len(frame.body))
        if self._budget.frames % _SLICE == 0:
            await asyncio.sleep(0)
        match frame.kind:
            case Kind.STATUS:
                status = delivery_answers.status(frame)
                self._on_status(status)
                self._answered = max(self._answered, min(status.synchronized, self._asked))
                self._has_answer.set()
            case Kind.OPENED:
                self._take_answer(*delivery_answers.answer(frame))
            case Kind.RESOLVED:
                self._on_resolved(delivery_answers.resolved(frame))
            case Kind.LOG:
                self._write_log(frame)
            case _:
                self._take_end(delivery_answers.closed(frame))

    def _take_end(self, error: OcsfNftError) -> None:
        has_output = any(isinstance(each.sink, Stdout) for each in self._outlets)
        if isinstance(error, ClosedError) and has_output and _is_output_closed():
            raise error
        if self._budget.spend_record() is not None:
            _log.error("the delivery process ends", reason=str(error))

    def _take_answer(self, number: int, error: OcsfNftError | None) -> None:
        if number not in self._requests:
            raise LinkError("the delivery process sent an answer without a request")
        outlets, answer = self._requests.pop(number)
        if error is None:  # also if nothing waits for the answer any more
            self._outlets = outlets
            self._on_opened(outlets)
        if not answer.done():
            answer.set_result(error)

    def _write_log(self, frame: Frame) -> None:
        level, message, values = delivery_answers.log_record(frame)
        if (left_out := self._budget.spend_record()) is not None:
            more = {"left_out": left_out} if left_out else {}
            getattr(_log, level)(message, process="delivery", **values, **more)

    async def _open(self, outlets: Sequence[Outlet], kind: Kind, request: object) -> None:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._requests[self._requested] = tuple(outlets), answer
        self._requested += 1
        self._link.send_object(kind, request)
        ended = asyncio.ensure_future(self.ended.wait())
        try:
            await asyncio.wait(
                {answer, ended}, timeout=_OPEN_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if ended.done():  # the answer may be among its last frames
                await asyncio.wait({answer}, timeout=_LAST_SECONDS)
        finally:
            ended.cancel()
        if answer.done():
            if (error := answer.result()) is not None:
                raise error
        elif self.ended.is_set():
            raise DeliveryError(f"the delivery process has ended with {self.describe_end()}")
        else:  # a later answer must not change the sinks
            self.kill("it has not opened its sinks")
            raise DeliveryError(
                f"the delivery process has not opened its sinks within {_OPEN_SECONDS:.0f} s"
            )

    def _note_end(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        self._process.wait()
        self.ended_at = time.monotonic()
        self.ended.set()
        self._has_answer.set()


class _Budget:
    """Numbers of frames, their bytes, and log records in the present second."""

    def __init__(self) -> None:
        self._second = 0
        self.frames = self._bytes = self._records = self._left_out = 0

    def spend(self, size: int) -> None:
        """Count a frame of ``size`` bytes; raises LinkError if there are too many."""
        if (second := int(time.monotonic())) != self._second:
            self._second = second
            self.frames = self._bytes = self._records = 0
        self.frames += 1
        self._bytes += size
        if self.frames > _MAX_FRAMES or self._bytes > _MAX_FRAMES_BYTES:
            raise LinkError("the delivery process sends too much")

    def spend_record(self) -> int | None:
        """Count a log record; return how many were left out before, None to leave this one out."""
        self._records += 1
        if self._records > _MAX_RECORDS:
            self._left_out += 1
            return None
        left_out, self._left_out = self._left_out, 0
        return left_out


def _popen(descriptor: int) -> subprocess.Popen[bytes]:
    arguments = [json.dumps(sys.path), str(descriptor), str(os.getpid()), CODE]
    flags = {
        "-I": sys.flags.isolated, "-E": sys.flags.ignore_environment, "-s": sys.flags.no_user_site
    }  # fmt: skip
    options = ["-P", *(option for option, is_set in flags.items() if is_set)]
    # The process inherits the mask, and ignores these signals before it removes them from it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SERVICE_SIGNALS)
    try:
        return subprocess.Popen(
            [sys.executable, *options, "-c", _PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=(descriptor,),
            start_new_session=True,  # it has no terminal
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_output_closed() -> bool:
    """Return True if nothing reads from this process's standard output any more."""
    poll = select.poll()
    poll.register(_STDOUT, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
