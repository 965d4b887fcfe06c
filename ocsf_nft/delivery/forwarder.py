"""Task that delivers stored events to one sink, in order, and retries failed deliveries.

Each sink has its own forwarder, so a sink that is down delays no other sink. Refused events become
dead letters.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import KW_ONLY, asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from ocsf_nft.delivery.backoff import Backoff
from ocsf_nft.delivery.sink_db import RefusedEvent
from ocsf_nft.delivery.sinks.base import (
    DELIVERED,
    BatchResult,
    BatchSettings,
    Message,
    Refusal,
    Sink,
)
from ocsf_nft.errors import ClosedError, DeliveryError, RefusedError, reason_of
from ocsf_nft.state.retention import LAST

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from ocsf_nft.delivery.event_stream import EventStream
    from ocsf_nft.delivery.sink_db import DeadLetter, SinkDatabase
    from ocsf_nft.state.retry_until_writable import StorageRetrier
    from ocsf_nft.state.state_db import StoredEvent

T = TypeVar("T")

_log = structlog.get_logger()

#: Interval of the checks for dead letters with a requested retry.
_RETRY_CHECK_SECONDS: Final = 1.0
#: Pause after a batch, unless the next one is full: small batches cost the most.
_PAUSE_SECONDS: Final = 0.01
#: Timeouts of a batch before it is sent in halves.
_SLOW_TRIES: Final = 2
#: Time for a sink to close.
_CLOSE_SECONDS: Final = 5.0
#: Events converted before other tasks get a turn: about a millisecond of work.
_SLICE: Final = 32


@dataclass(slots=True)
class Progress:
    """Delivery progress of one sink: counts of events and failures, and the present state."""

    #: Number of delivered events.
    delivered: int = 0
    #: Number of refused events.
    refused: int = 0
    #: Number of failed attempts to deliver.
    failures: int = 0
    #: Number of dead letters: refused events that are stored now.
    dead: int = 0
    #: Reason why the sink is down; None while it works.
    fault: str | None = None
    #: Start of the latest outage, by :func:`time.monotonic`; 0 if there was none.
    since: float = 0.0


class _SlowError(DeliveryError):
    """Error: the delivery of a batch took longer than its timeout."""


class _StoppedError(Exception):
    """Signal that a stop of the forwarder was requested while its sink was down."""


@dataclass(eq=False, repr=False)
class Forwarder:
    """Task that delivers stored events to one sink, beginning after the last acknowledged event."""

    name: str
    sink: Sink
    #: Stored events, and the checkpoints.
    stream: EventStream
    database: SinkDatabase
    _: KW_ONLY
    #: Returns an event's JSON line in the sink's OCSF version, or None to omit the event.
    convert: Callable[[bytes], bytes | None] = lambda line: line
    batch_settings: BatchSettings
    #: Repeats an operation of the database after a failure.
    retrier: StorageRetrier
    #: The forwarder adds to these counts.
    progress: Progress = field(default_factory=Progress)
    on_advance: Callable[[str, int], None] = lambda _name, _number: None
    on_change: Callable[[], None] = lambda: None
    #: Number of the last event that needs no delivery any more.
    done: int = field(init=False, default=0)
    _is_open: bool = field(init=False, default=False)
    _is_handshake_sent: bool = field(init=False, default=False)
    _handshake: Message | None = field(init=False, default=None)
    _checked_at: float = field(init=False, default=0.0)
    _advanced_at: float = field(init=False, default=-math.inf)
    _advanced: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _hurry: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _stop_requested: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    async def open(self) -> None:
        """Open the sink; raises DeliveryError if that fails."""
        await self.sink.open()
        self._is_open = True
        self._is_handshake_sent = False

    async def close(self) -> None:
        """Close the sink, if it is open; a failure is only logged."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.sink.close()
        except Exception as error:  # noqa: BLE001 - as in _deliver_once
            _log.warning("a sink could not be closed", sink=self.name, reason=_cause(error))

    async def load_checkpoint(self) -> None:
        """Read the sink's checkpoint from the database into :attr:`done`.

        The checkpoint is an event number: the sink needs no event up to this number any
        more. Raises DeliveryError if the database can't be read.
        """
        self.done, _ = await self.retrier(lambda: self.database.checkpoint(self.name))

    def set_handshake(self, line: bytes) -> None:
        """Set the handshake, which is the first line to send each time the sink is opened."""
        self._handshake = Message("", line)

    def request_stop(self) -> None:
        """Request the end of :meth:`run`, and return at once.

        If the sink works, :meth:`run` first delivers its present batch. If the sink is
        down, the events stay in the store.
        """
        self._stop_requested.set()

    async def run(self) -> None:
        """Deliver events until cancelled or until a stop is requested; then close the sink.

        Raises ClosedError if the sink is closed permanently (a pipe without a reader),
        DeliveryError if a database can't be used.
        """
        try:
            self.done, batch_end = await self.retrier(lambda: self.database.checkpoint(self.name))
            await self._count_dead()
            if self._handshake is not None:  # its reader needs it even without any event
                await self._deliver(())
            if batch_end is not None and self.sink.repeats_batches:
                await self._forward(batch_end)
            while not self._stop_requested.is_set():
                await self._retry_dead_letters()
                if await self._wait():
                    limits = self.batch_settings
                    await self._forward(self.stream.end, events=limits.events, size=limits.bytes)
        except _StoppedError:
            pass  # the next forwarder delivers the rest
        finally:
            await self.close()

    @property
    def pending(self) -> int:
        """Return the number of stored events that still wait for delivery to the sink."""
        return max(0, self.stream.end - self.done)

    def status(self) -> dict[str, Any]:
        """Return the progress of the sink as JSON values."""
        progress = asdict(self.progress)
        del progress["since"]  # a time of this process's clock
        return {"name": self.name, "done": self.done, **progress}

    async def drain(self) -> None:
        """Wait until :meth:`run` has delivered all stored events, or stored them as dead letters.

        From this call on, :meth:`run` does not wait until a batch is full.
        """
        self._hurry.set()
        while self.done < self.stream.end:
            self._advanced.clear()
            await self._advanced.wait()

    async def _count_dead(self) -> None:
        self.progress.dead = await self.retrier(lambda: self.database.count_dead_letters(self.name))
        self.on_change()

    async def _wait(self) -> bool:
        """Wait until a batch is full or its time limit has passed; return False without any."""
        if self.stream.end <= self.done:
            # The caller then checks if a user has requested to send dead letters again.
            interval = _RETRY_CHECK_SECONDS if self.progress.dead else None
            await _wait_for_first(
                (self.stream.wait_for_event(self.done), self._stop_requested.wait()), interval
            )
        if self.stream.end <= self.done or self._stop_requested.is_set():
            return False
        pause = self._advanced_at + _PAUSE_SECONDS - time.monotonic()
        seconds = max(self.batch_settings.seconds, pause)
        if seconds > 0 and not self._hurry.is_set():
            full = self.stream.wait_for_event(self.done + self.batch_settings.events - 1)
            waits = (full, self._hurry.wait(), self._stop_requested.wait())
            await _wait_for_first(waits, seconds)
        return True

    async def _forward(self, end: int, *, events: int = LAST, size: int = LAST) -> None:
        """Deliver stored events up to the number ``end`` as one batch; store the checkpoint."""
        rows = await self.retrier(
            lambda: self.stream.read(self.done, end, events=events, size=size)
        )
        if not rows:  # the store has removed the events up to ``end``
            self._advance(end)
            return
        until = rows[-1].number
        refused = await self._send(rows, until)
        await self.retrier(lambda: self.database.acknowledge(self.name, until, refused))
        _log.debug(
            "batch acknowledged", sink=self.name, read=len(rows), refused=len(refused),
            until=until,
        )  # fmt: skip
        if refused:
            self.progress.refused += len(refused)
            await self._count_dead()
            _log.error(
                "events refused: see them with `ocsf-nft events --dead`",
                sink=self.name,
                number=len(refused),
                reason=refused[0].reason,
            )
        self._advance(until)

    def _advance(self, done: int) -> None:
        self.done = done
        self._advanced_at = time.monotonic()
        self._advanced.set()
        self.on_advance(self.name, done)

    async def _send(
        self, rows: Sequence[StoredEvent | DeadLetter], batch_end: int | None = None
    ) -> list[RefusedEvent]:
        """Convert and deliver events; return the refused ones. A retry has no ``batch_end``."""
        messages, refused = await self._converted(rows)
        if not messages:
            return refused
        if batch_end is not None and self.sink.repeats_batches:
            await self.retrier(lambda: self.database.begin_batch(self.name, batch_end))
        refusals = await self._deliver(messages)
        self.progress.delivered += len(messages) - len(refusals)
        lines = {row.uid: row.line for row in rows}
        return refused + [
            RefusedEvent(each.message.uid, lines[each.message.uid], each.reason)
            for each in refusals
        ]

    async def _converted(
        self, rows: Sequence[StoredEvent | DeadLetter]
    ) -> tuple[list[Message], list[RefusedEvent]]:
        """Return the messages to send, and the events that can't be converted."""
        messages: list[Message] = []
        refused: list[RefusedEvent] = []
        for number, row in enumerate(rows, 1):
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            try:
                line = self.convert(row.line)
            except Exception as error:  # noqa: BLE001 - such as for an event of another version
                reason = f"it can't be converted to the sink's OCSF version: {_cause(error)}"
                refused.append(RefusedEvent(row.uid, row.line, reason))
                continue
            if line is not None:
                messages.append(Message(row.uid, line))
        return messages, refused

    async def _retry_dead_letters(self) -> None:
        # Requested by ``ocsf-nft events --dead --retry``.
        if not self.progress.dead or time.monotonic() < self._checked_at + _RETRY_CHECK_SECONDS:
            return
        self._checked_at = time.monotonic()
        while letters := await self.retrier(
            lambda: self.database.dead_letters_to_retry(self.name, self.batch_settings.events)
        ):
            reasons = {each.uid: each.reason for each in await self._send(letters)}
            await self.retrier(partial(self.database.finish_retries, letters, reasons))
        await self._count_dead()  # retention may have removed some

    async def _deliver(self, messages: Sequence[Message]) -> list[Refusal]:
        """Deliver a batch, with retries; return the refused messages with the reasons.

        If the receiver refuses the whole batch, or repeatedly causes a timeout, the batch is sent
        in halves. Raises ClosedError if the sink is closed permanently. Raises _StoppedError if a
        stop is requested while the sink is down.
        """
        refused: list[Refusal] = []
        slow = 0
        backoff = Backoff(max_seconds=self.batch_settings.retry_seconds)
        while True:
            try:
                outcome = await self._deliver_once(messages)
            except RefusedError as error:
                self._recover()
                if len(messages) > 1:
                    return refused + await self._deliver_halves(messages)
                return refused + [Refusal(each, str(error)) for each in messages]
            except DeliveryError as error:
                self._fail(str(error))
                await self.close()
                if isinstance(error, ClosedError):
                    raise
                slow = slow + 1 if isinstance(error, _SlowError) else 0
                if slow >= _SLOW_TRIES and len(messages) > 1 and not self.sink.repeats_batches:
                    return refused + await self._deliver_halves(messages)
                requested_seconds = error.after_seconds
            else:
                refused += outcome.refused
                messages = outcome.again
                if not messages:
                    self._recover()
                    return refused
                self._fail(outcome.reason)
                requested_seconds = outcome.after_seconds
            await _wait_for_first(
                (self._stop_requested.wait(),), backoff.wait_seconds(requested_seconds)
            )
            if self._stop_requested.is_set():
                raise _StoppedError

    async def _deliver_halves(self, messages: Sequence[Message]) -> list[Refusal]:
        half = len(messages) // 2
        return await self._deliver(messages[:half]) + await self._deliver(messages[half:])

    async def _deliver_once(self, part: Sequence[Message]) -> BatchResult:
        try:
            async with asyncio.timeout(self.batch_settings.timeout_seconds):
                if not self._is_open:
                    await self.open()
                if self._handshake is not None and not self._is_handshake_sent:
                    await self.sink.deliver([self._handshake])
                    self._is_handshake_sent = True
                return await self.sink.deliver(part) if part else DELIVERED
        except TimeoutError as error:
            raise _SlowError(
                f"{self.name} did not accept a batch in {self.batch_settings.timeout_seconds} s"
            ) from error
        except DeliveryError:
            raise
        except OSError as error:
            raise DeliveryError(f"{self.name}: {error.strerror or error}") from error
        except Exception as error:
            # A defect of one sink, or of its library, must not end the monitoring of the sandboxes.
            _log.exception("a sink failed with an unexpected error", sink=self.name)
            raise DeliveryError(f"{self.name}: {_cause(error)}") from error

    def _fail(self, reason: str) -> None:
        self.progress.failures += 1
        if self.progress.fault is None:
            self.progress.since = time.monotonic()
            _log.error("sink down: events wait in the store", sink=self.name, reason=reason)
        self.progress.fault = reason
        self.on_change()

    def _recover(self) -> None:
        if self.progress.fault is not None:
            seconds = round(time.monotonic() - self.progress.since, 1)
            _log.warning("sink works again", sink=self.name, seconds=seconds)
            self.progress.fault = None
            self.on_change()


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {reason_of(error)}"


async def _wait_for_first(
    waits: Iterable[Coroutine[Any, Any, object]], seconds: float | None
) -> None:
    """Run coroutines until one of them ends or ``seconds`` have passed; then cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in waits]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
