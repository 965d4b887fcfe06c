"""Reader of stored events for clients of the control API, beside the service that writes them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.state.archive import Archive

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from ocsf_nft.ocsf.event_filter import EventFilter

#: Limits of one slice: it is in memory until its client has received it. Filtering it takes a
#: thread about 2 ms, in which the event loop waits for parts of a millisecond.
_SLICE_EVENTS: Final = 100
_SLICE_BYTES: Final = 128 << 10
#: Pause between two checks for new events, while there are none.
_PAUSE_SECONDS: Final = 0.1
#: An event's own time is less than this after the time of its storage, unless the clock was set.
_CLOCK_MS: Final = 3_600_000


class _Slice(NamedTuple):
    #: Selected events, as JSON Lines.
    lines: bytes
    #: Their numbers.
    numbers: tuple[int, ...]
    #: Number of the last event that was read.
    last: int


class EventRequest(NamedTuple):
    """Events that a client requests."""

    select: EventFilter
    #: Whether new events are requested too.
    follow: bool
    #: Maximum number of stored events, which are the last ones; None is no limit.
    last: int | None = None
    #: ``metadata.uid`` of an event: only later ones. If it is stored no more, all events are later.
    after: str | None = None


class EventLog:
    """Stored events of a running service.

    ``path`` is the state database. ``end`` returns the number of the last stored event.
    """

    def __init__(self, path: Path, end: Callable[[], int]) -> None:
        self.path = path
        self._end = end

    async def start(self, request: EventRequest, is_over: Callable[[], bool]) -> int:
        """Return the number of the last event before all requested ones, to read beyond it.

        The search ends early when ``is_over`` returns True. Raises SourceError if the database
        can't be read.
        """
        if request.after is not None:
            return await asyncio.to_thread(self._number, request.after)
        first = await asyncio.to_thread(self._last_before, request.select.from_ms)
        return first if request.last is None else await self._before_last(first, request, is_over)

    async def _before_last(
        self, first: int, request: EventRequest, is_over: Callable[[], bool]
    ) -> int:
        """Return the number before the last ``request.last`` selected events beyond ``first``."""
        until, missing = self._end(), request.last or 0
        while missing and until > first and not is_over():
            begin = max(first, until - _SLICE_EVENTS)
            found = await self._selected(begin, until, request.select)
            if len(found) >= missing:
                return found[-missing] - 1
            missing -= len(found)
            until = begin
        return until

    async def _selected(self, begin: int, until: int, select: EventFilter) -> list[int]:
        """Return the numbers of the selected events beyond ``begin``, up to ``until``."""
        found: list[int] = []
        while begin < until:
            part = await asyncio.to_thread(self._slice, begin, until, select)
            found += part.numbers
            begin = part.last
        return found

    async def read(
        self, last: int, select: EventFilter, *, follow: bool, is_over: Callable[[], bool]
    ) -> AsyncGenerator[bytes, None]:
        """Yield the selected events beyond the number ``last`` as JSON Lines, in parts, in order.

        Without ``follow``, the last one is the last that is stored now. With ``follow``, new events
        follow until ``is_over`` returns True. Raises SourceError if the database can't be read.
        """
        until = self._end()
        while not is_over():
            if last < until:
                part = await asyncio.to_thread(self._slice, last, until, select)
                last = part.last
                if part.lines:
                    yield part.lines
            elif not follow:
                return
            elif (until := self._end()) <= last:
                await asyncio.sleep(_PAUSE_SECONDS)

    def _last_before(self, from_ms: int | None) -> int:
        with Archive(self.path) as archive:
            return archive.last_before(0 if from_ms is None else from_ms - _CLOCK_MS)

    def _number(self, uid: str) -> int:
        with Archive(self.path) as archive:
            return archive.number_of(uid)

    def _slice(self, last: int, until: int, select: EventFilter) -> _Slice:
        # Opened for each slice: the service may restore a deleted file meanwhile, and a client that
        # reads slowly must not hold a transaction open.
        with Archive(self.path) as archive:
            events = archive.read(last, until, events=_SLICE_EVENTS, size=_SLICE_BYTES)
        if not events:  # the others were removed, since they were too old or there was no room
            return _Slice(b"", (), until)
        selected = [each for each in events if select(each.line)]
        lines = b"".join(each.line + b"\n" for each in selected)
        return _Slice(lines, tuple(each.number for each in selected), events[-1].number)
