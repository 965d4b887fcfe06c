"""Answers of the control API that stream stored events, and new ones until the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import web

from ocsf_nft.control import problems
from ocsf_nft.control.query import event_query
from ocsf_nft.errors import OcsfNftError

if TYPE_CHECKING:
    from ocsf_nft.control.event_log import EventLog, EventRequest

_log = structlog.get_logger()

#: Streams at once. Each has one slice of events in memory.
MOST_STREAMS: Final = 16
#: Time for a client to receive a slice, unless it follows: then it may pause as long as it likes.
_SLICE_SECONDS: Final = 30.0


class EventStreams:
    """Streams of events to the clients of the control API."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._number = 0
        self._is_stopping = False

    async def stop(self, _: web.Application) -> None:
        """End the streams that follow, after the present slice."""
        self._is_stopping = True

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer a request for events; the query has the filter.

        Raises UsageError if the query is wrong, SourceError if the events can't be read.
        """
        requested = event_query(request)
        if self._number >= MOST_STREAMS:
            return problems.problem(
                503, f"{MOST_STREAMS} clients read events already: close one, or try again later"
            )
        self._number += 1
        try:
            return await self._answer(request, requested)
        finally:
            self._number -= 1

    async def _answer(self, request: web.Request, requested: EventRequest) -> web.StreamResponse:
        follow = requested.follow

        def is_over() -> bool:
            return self._is_over(request, follow)

        start = await self._events.start(requested, is_over)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        seconds = None if follow else _SLICE_SECONDS
        with contextlib.suppress(ConnectionError):  # the client has left
            await response.prepare(request)
            parts = self._events.read(start, requested.select, follow=follow, is_over=is_over)
            try:
                async with contextlib.aclosing(parts):
                    async for part in parts:
                        async with asyncio.timeout(seconds):
                            await response.write(part)
            except (OcsfNftError, TimeoutError) as error:
                # The status is sent already: only a missing end shows that events are missing.
                _log.warning("a stream of events was interrupted", reason=str(error) or "timeout")
                if request.transport is not None:
                    request.transport.abort()
        return response

    def _is_over(self, request: web.Request, follow: bool) -> bool:
        # Without follow, a stop of the server is an interruption, not an end.
        is_ended = follow and self._is_stopping
        return is_ended or request.transport is None or request.transport.is_closing()
