"""A forwarder: takes what is in the store to one sink, in order, for as long as it takes.

Each sink has its own, so that one that is down holds up nobody. A batch that fails is tried again
until it is taken, after a wait that doubles from try to try and is never quite the same. A batch
that the receiver refuses is halved until what is wrong with it stands alone: that event is a dead
letter then, and the others go on.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import structlog

from ocsf_nft.delivery.backoff import Backoff
from ocsf_nft.delivery.envelope import Message
from ocsf_nft.delivery.event_db import Refused
from ocsf_nft.delivery.sinks.base import DELIVERED, Refusal
from ocsf_nft.errors import ClosedError, DeliveryError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from ocsf_nft.delivery.batch_settings import Pace
    from ocsf_nft.delivery.event_db import Dead, Stored
    from ocsf_nft.delivery.retry_until_writable import Patience
    from ocsf_nft.delivery.sinks.base import Outcome, Sink
    from ocsf_nft.delivery.store import Store

_log = structlog.get_logger()

#: How often to look for dead letters that somebody wants to be tried again.
_LOOK_SECONDS: Final = 1.0
#: A batch that was not taken in time so often is sent in halves.
_SLOW_TRIES: Final = 2
#: How long a sink may take to close.
_CLOSE_SECONDS: Final = 5.0
#: Events told otherwise before other tasks get a turn: about a millisecond of work.
_SLICE: Final = 32


@dataclass(slots=True)
class Progress:
    """How a sink does: events that it took and refused, tries that failed, and what is wrong now.

    ``fault`` is why the last try failed, None when it did not; ``since`` when that began, by
    :func:`time.monotonic`. ``dead`` are the dead letters that there are now.
    """

    delivered: int = 0
    refused: int = 0
    failures: int = 0
    dead: int = 0
    fault: str | None = None
    since: float = 0.0


class _SlowError(DeliveryError):
    """A sink did not take a batch in the time that it may take."""


class _LeftError(Exception):
    """The forwarder was told to leave while its sink was down."""


@dataclass(slots=True)
class _Part:
    """What is left to deliver of a part of a batch, and what was refused of it by name."""

    rest: Sequence[Message]
    refused: list[Refusal] = field(default_factory=list)

    def halves(self) -> tuple[_Part, _Part]:
        """What is left in two parts, the second one first."""
        half = len(self.rest) // 2
        return _Part(self.rest[half:]), _Part(self.rest[:half])


class Forwarder:
    """Delivers from a store to a sink, from the sink's checkpoint on.

    ``told`` makes of an event's line the sink's own, in its version; None of what it does not
    want. The store is asked ``patiently``.
    """

    def __init__(  # noqa: PLR0913 - what a forwarder is made of
        self,
        name: str,
        sink: Sink,
        store: Store,
        *,
        told: Callable[[bytes], bytes | None] = lambda line: line,
        pace: Pace,
        patiently: Patience,
        progress: Progress | None = None,
    ) -> None:
        """``progress`` is that of a predecessor, which goes on."""
        self.name = name
        self.progress = progress or Progress()
        #: The number of the last event that is done with.
        self.done = 0
        self._sink = sink
        self._store = store
        self._told = told
        self._pace = pace
        self._patiently = patiently
        self._is_open = False
        self._moved = asyncio.Event()
        self._hurry = asyncio.Event()
        self._leaving = asyncio.Event()
        self._greeting: Message | None = None
        self._looked = 0.0

    async def open(self) -> None:
        """Open the sink now, not with the first batch; raises DeliveryError."""
        await self._sink.open()
        self._is_open = True
        self._is_greeted = False

    async def close(self) -> None:
        """Leave the sink, if it is open."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._sink.close()
        except Exception as error:  # noqa: BLE001 - nor must its mistake in closing, as below
            _log.warning("a sink could not be closed", sink=self.name, reason=repr(error))

    async def find_place(self) -> None:
        """Find what is done with before :meth:`run` does; raises DeliveryError."""
        self.done, _ = await self._patiently(lambda: self._store.checkpoint(self.name))

    def greet(self, line: bytes) -> None:
        """Let this line be the first that the sink gets, each time that it is opened."""
        self._greeting = Message("", line)

    def leave(self) -> None:
        """Let :meth:`run` end once what is being delivered has been."""
        self._leaving.set()

    async def run(self) -> None:
        """Deliver until cancelled, or told to leave.

        Raises ClosedError when the sink is gone for good, DeliveryError when the store can't be
        asked.
        """
        try:
            self.done, sending = await self._patiently(lambda: self._store.checkpoint(self.name))
            await self._count_dead()
            if self._greeting is not None:  # whoever waits for it may wait for no event
                await self._until_taken(_Part(()))
            if sending is not None and self._repeats:
                await self._forward(await self._read(until=sending), sending)
            while not self._leaving.is_set():
                await self._try_again()
                if await self._wait():
                    # Before the read: what is put meanwhile is not passed by.
                    end = self._store.end
                    await self._forward(await self._read(), end)
        except _LeftError:
            pass  # what was not taken is the next one's
        finally:
            await self.close()

    @property
    def waiting(self) -> int:
        """The events in the store that are not done with."""
        return max(0, self._store.end - self.done)

    async def drain(self) -> None:
        """Wait until the sink has all that is in the store, without waiting for fuller batches."""
        self._hurry.set()
        while self.done < self._store.end:
            self._moved.clear()
            await self._moved.wait()

    @property
    def _repeats(self) -> bool:
        return self._sink.repeats_batches

    async def _count_dead(self) -> None:
        self.progress.dead = await self._patiently(lambda: self._store.dead_number(self.name))

    async def _wait(self) -> bool:
        """Wait for a batch; whether there is one. There may be something else to look at."""
        if self._store.end <= self.done:
            look = _LOOK_SECONDS if self.progress.dead else None
            await _first((self._store.grown(self.done), self._leaving.wait()), look)
        if self._store.end <= self.done or self._leaving.is_set():
            return False
        if self._pace.seconds and not self._hurry.is_set():
            full = self._store.grown(self.done + self._pace.events - 1)
            waits = (full, self._hurry.wait(), self._leaving.wait())
            await _first(waits, self._pace.seconds)
        return True

    async def _read(self, until: int | None = None) -> list[Stored]:
        """The next batch, or all up to a number: a batch that was being sent before."""
        if until is not None:
            return await self._patiently(lambda: self._store.read_until(self.done, until))
        pace = self._pace
        return await self._patiently(
            lambda: self._store.read(self.done, events=pace.events, size=pace.bytes)
        )

    async def _forward(self, rows: Sequence[Stored], end: int) -> None:
        """Deliver a batch; where there is none, all up to ``end`` was removed before its time."""
        if not rows:
            self._move(end)
            return
        until = rows[-1].number
        messages, refused = await self._messages(rows)
        if messages:
            if self._repeats:
                await self._patiently(lambda: self._store.sending(self.name, until))
            unwanted = await self._deliver(messages)
            self.progress.delivered += len(messages) - len(unwanted)
            lines = {row.uid: row.line for row in rows}
            refused += [
                Refused(each.message.uid, lines[each.message.uid], each.reason) for each in unwanted
            ]
        await self._patiently(lambda: self._store.acknowledge(self.name, until, refused))
        if refused:
            await self._bewail(refused)
        self._move(until)

    def _move(self, done: int) -> None:
        self.done = done
        self._moved.set()

    async def _messages(self, rows: Sequence[Stored | Dead]) -> tuple[list[Message], list[Refused]]:
        """What the sink is to get, and what can't be told as it wants it."""
        messages: list[Message] = []
        refused: list[Refused] = []
        for number, row in enumerate(rows, 1):
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            try:
                line = self._told(row.line)
            except Exception as error:  # noqa: BLE001 - such as of another version's event
                reason = f"it can't be told in the sink's version: {error!r}"
                refused.append(Refused(row.uid, row.line, reason))
                continue
            if line is not None:
                messages.append(Message(row.uid, line))
        return messages, refused

    async def _bewail(self, refused: Sequence[Refused]) -> None:
        self.progress.refused += len(refused)
        await self._count_dead()
        _log.error(
            "events refused: see them with `ocsf-nft events --dead`",
            sink=self.name,
            number=len(refused),
            reason=refused[0].reason,
        )

    async def _try_again(self) -> None:
        """Send dead letters that somebody wants to be sent again; looks now and then."""
        if not self.progress.dead or time.monotonic() < self._looked + _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        while letters := await self._patiently(
            lambda: self._store.dead(self.name, events=self._pace.events)
        ):
            await self._send_again(letters)
        await self._count_dead()  # some may have made room

    async def _send_again(self, letters: Sequence[Dead]) -> None:
        messages, untold = await self._messages(letters)
        unwanted = await self._deliver(messages)
        reasons = {each.uid: each.reason for each in untold}
        reasons.update((each.message.uid, each.reason) for each in unwanted)
        refused = [(each, reasons[each.uid]) for each in letters if each.uid in reasons]
        delivered = [each for each in letters if each.uid not in reasons]
        await self._patiently(lambda: self._store.bury(delivered, refused))
        self.progress.delivered += len(messages) - len(unwanted)

    async def _deliver(self, messages: Sequence[Message]) -> list[Refusal]:
        """Deliver a batch, in parts where it is refused as a whole; what is refused in the end."""
        refused: list[Refusal] = []
        parts = deque([_Part(messages)])
        while parts:
            part = parts.popleft()
            try:
                await self._until_taken(part)
            except RefusedError as error:
                if len(part.rest) == 1:
                    refused.append(Refusal(part.rest[0], str(error)))
                else:
                    parts.extendleft(part.halves())
            except _SlowError:
                parts.extendleft(part.halves())
            refused += part.refused
        return refused

    async def _until_taken(self, part: _Part) -> None:
        """Try a part until nothing is left of it.

        Raises RefusedError when the receiver refuses what is left as a whole, ClosedError, and
        _SlowError when it never gets through with it in time, and less may do.
        """
        slow = 0
        backoff = Backoff(most_seconds=self._pace.retry_seconds)
        while True:
            try:
                outcome = await self._watched(part.rest)
                part.refused += outcome.refused
                part.rest = outcome.again
                if not part.rest:
                    break
                self._fail(outcome.reason)
                asked = outcome.after_seconds
            except (RefusedError, ClosedError):
                raise
            except DeliveryError as error:
                asked = error.after_seconds
                slow = slow + 1 if isinstance(error, _SlowError) else 0
                if slow >= _SLOW_TRIES and len(part.rest) > 1 and not self._repeats:
                    raise
            await _first((self._leaving.wait(),), backoff.wait_seconds(asked))
            if self._leaving.is_set():
                raise _LeftError
        self._recover()

    async def _watched(self, part: Sequence[Message]) -> Outcome:
        try:
            return await self._once(part)
        except RefusedError:
            self._recover()
            raise
        except DeliveryError as error:
            self._fail(str(error))
            await self.close()
            raise

    async def _once(self, part: Sequence[Message]) -> Outcome:
        try:
            async with asyncio.timeout(self._pace.timeout_seconds):
                if not self._is_open:
                    await self.open()
                if self._greeting is not None and not self._is_greeted:
                    await self._sink.deliver([self._greeting])
                    self._is_greeted = True
                return await self._sink.deliver(part) if part else DELIVERED
        except TimeoutError as error:
            raise _SlowError(
                f"{self.name} did not take a batch within {self._pace.timeout_seconds} s"
            ) from error
        except (DeliveryError, OSError) as error:
            if isinstance(error, DeliveryError):
                raise
            raise DeliveryError(f"{self.name}: {error.strerror or error}") from error
        except Exception as error:
            # One sink's mistake, or its library's, must not end the watch over the sandboxes.
            _log.exception("a sink failed in a way that it should not", sink=self.name)
            raise DeliveryError(f"{self.name}: {type(error).__name__}: {error}") from error

    def _fail(self, reason: str) -> None:
        self.progress.failures += 1
        if self.progress.fault is None:
            self.progress.since = time.monotonic()
            _log.error("sink down: events wait in the store", sink=self.name, reason=reason)
        self.progress.fault = reason

    def _recover(self) -> None:
        if self.progress.fault is not None:
            seconds = round(time.monotonic() - self.progress.since, 1)
            _log.warning("sink is back", sink=self.name, seconds=seconds)
            self.progress.fault = None


async def _first(waits: Iterable[Coroutine[Any, Any, object]], seconds: float | None) -> None:
    """Wait for the first of several, and no longer than that."""
    tasks = [asyncio.ensure_future(each) for each in waits]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
