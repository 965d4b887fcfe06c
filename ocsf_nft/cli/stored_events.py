"""Stored events of state databases, or of a running service: the last ones, and new ones."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlencode

from ocsf_nft.cli import output
from ocsf_nft.control.answers import IncompleteError, NoServiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ocsf_nft.state.archive import Archive

_PAUSE_SECONDS: Final = 0.2
#: Pause between two attempts to connect to a service that has stopped.
_AGAIN_SECONDS: Final = 0.5


class Selection(Protocol):
    """Selected events, of either source."""

    def last(self, number: int | None) -> bool:
        """Show the newest events, in the order in which they were stored.

        ``number`` is the maximum number of events; None shows all. Return True if at least one
        event was shown.
        """
        ...

    def follow(self, number: int) -> None:
        """Show the newest ``number`` events, and then each new one; never returns."""
        ...


class StoreSelection:
    """Reader of several event stores; ``write`` shows the events that ``is_selected`` selects."""

    def __init__(
        self,
        archives: Sequence[Archive],
        is_selected: Callable[[bytes], bool],
        write: Callable[[Iterable[bytes]], bool],
    ) -> None:
        self._archives = archives
        self._is_selected = is_selected
        self._write = write
        #: The last event of each store that was read.
        self._last = [next(each.newest(), None) for each in archives]

    def last(self, number: int | None) -> bool:
        """Show the newest selected events; see :class:`Selection`.

        Events that were stored after this object was created are omitted; :meth:`follow` shows
        them.
        """
        if number is None:
            stored = heapq.merge(
                *(each.beyond(0, until) for each, until in self._read_until()),
                key=lambda event: event.stored_ms,
            )
            return self._write(event.line for event in stored if self._is_selected(event.line))
        newest = heapq.merge(
            *(each.newest(until) for each, until in self._read_until()),
            key=lambda event: -event.stored_ms,
        )
        found = list(
            islice((event.line for event in newest if self._is_selected(event.line)), number)
        )
        return self._write(reversed(found))

    def follow(self, number: int) -> None:
        """Show the newest selected events, and each new one when it is stored."""
        if number:
            self.last(number)
        while True:
            for index, archive in enumerate(self._archives):
                last = self._last[index]
                for event in archive.beyond(last.number if last else 0):
                    last = event
                    if self._is_selected(event.line):
                        self._write([event.line])
                # Only now: a store that was removed meanwhile is read completely.
                self._last[index] = archive.follow(last)
            time.sleep(_PAUSE_SECONDS)

    def _read_until(self) -> Iterator[tuple[Archive, int]]:
        for archive, last in zip(self._archives, self._last, strict=True):
            yield archive, last.number if last else 0


@dataclass(frozen=True, slots=True)
class Line:
    """Event of a service, as JSON."""

    event: bytes

    @property
    def uid(self) -> str:
        """Return the event's ``metadata.uid``."""
        import orjson

        return str(orjson.loads(self.event)["metadata"]["uid"])


@dataclass(frozen=True, slots=True)
class Stopped:
    """Stop of a service; the next item comes when a service listens at its socket again."""


@dataclass(frozen=True, slots=True)
class Started:
    """Start of a service after its stop."""


class ServiceSelection:
    """Reader of the events of a running service; ``write`` shows them.

    ``control`` is the service's socket, and ``query`` the parameters that select events.
    """

    def __init__(
        self, control: Path, query: Mapping[str, str], write: Callable[[Iterable[bytes]], bool]
    ) -> None:
        self._control = control
        self._query = query
        self._write = write

    def last(self, number: int | None) -> bool:
        """Show the newest selected events; see :class:`Selection`."""
        query = {**self._query} if number is None else {**self._query, "last": str(number)}
        return self._write(_lines(self._control, query))

    def follow(self, number: int) -> None:
        """Show the newest selected events, and new ones, also after a restart of the service."""
        for item in followed(self._control, self._query, number):
            match item:
                case Line(event):
                    self._write([event])
                case Stopped():
                    output.show("the service has stopped: waiting until it runs again")
                case Started():
                    output.show("the service runs again")


def followed(
    control: Path, query: Mapping[str, str], number: int
) -> Iterator[Line | Stopped | Started]:
    """Yield the newest ``number`` events of a service, and each new one when it is stored.

    Blocks; never ends. After a restart of the service, the events continue without a gap. Raises
    the errors of :func:`http_call.json_lines` if the service can't be used.
    """
    # Known before the first event: the service may stop before it has one that is selected.
    after = newest(control)
    request = {**query, "last": str(number)}
    while True:
        try:
            for each in _lines(control, {**request, "follow": "1"}):
                line = Line(each)
                after = line.uid
                yield line
        except IncompleteError:  # it was killed
            pass
        yield Stopped()
        _wait_for(control)
        yield Started()
        request = _request_after(query, after)


def newest(control: Path) -> str | None:
    """Return the ``metadata.uid`` of the newest event of a service; None if it has none."""
    return next((Line(each).uid for each in _lines(control, {"last": "1"})), None)


def events_after(control: Path, query: Mapping[str, str], uid: str | None) -> Iterator[Line]:
    """Yield the stored events after the one with ``uid``, or all if that is None."""
    return map(Line, _lines(control, _request_after(query, uid)))


def _request_after(query: Mapping[str, str], uid: str | None) -> dict[str, str]:
    return {**query} if uid is None else {**query, "after": uid}


def _wait_for(control: Path) -> None:
    """Wait until a service listens at a socket, and answers."""
    from ocsf_nft.control.http_call import call

    while True:
        time.sleep(_AGAIN_SECONDS)
        try:
            call(control, "GET", "/v1/status")
        except (NoServiceError, IncompleteError):
            continue
        return


def _lines(control: Path, query: Mapping[str, str]) -> Iterator[bytes]:
    from ocsf_nft.control.http_call import json_lines

    return json_lines(control, f"/v1/events?{urlencode(query)}")
