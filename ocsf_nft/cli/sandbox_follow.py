"""Events of one sandbox of a running service as they come, and its state, until it ends."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ocsf_nft.cli.stored_events import Line, Started, Stopped, events_after, followed, newest
from ocsf_nft.control.answers import IncompleteError, NoServiceError
from ocsf_nft.control.http_call import call, sandbox_target
from ocsf_nft.errors import AbsentError, OcsfNftError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: Events in memory that were not shown yet: the service waits for a slow terminal.
_QUEUED: Final = 64
#: Pause between two questions for the state of the sandbox, and time for an answer.
_STATE_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class State:
    """Answer of the service about the sandbox."""

    view: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """End of the sandbox; it is the last item."""


Item: TypeAlias = "Line | Started | Stopped | State | Ended"


def items(control: Path, name: str, number: int, pause: float) -> Iterator[Item | None]:
    """Yield the state of a sandbox, its newest ``number`` events, and all that comes, in order.

    None comes at least every ``pause`` seconds. The iterator ends with :class:`Ended`, which comes
    after the last event. Raises AbsentError if the service has no such sandbox, and the errors of
    :func:`http_call.call`.
    """
    query = {"sandbox": name}
    yield State(call(control, "GET", sandbox_target(name)))
    # Before the reader's first event: also if it shows none, no event of the end is repeated.
    last = newest(control)
    reader = _Reader(followed(control, query, number))
    asked_at = time.monotonic()
    while True:
        for item in reader.take(pause):
            if isinstance(item, Line):
                last = item.uid
            yield item
        yield None
        if time.monotonic() - asked_at < _STATE_SECONDS:
            continue
        try:
            yield State(call(control, "GET", sandbox_target(name), seconds=_ANSWER_SECONDS))
        except (NoServiceError, IncompleteError):  # the reader notices it too
            pass
        except AbsentError:
            break
        asked_at = time.monotonic()
    # What the reader has is not used: these are all events since the last one that was shown.
    yield from events_after(control, query, last)
    yield Ended()


class _Reader:
    """Thread that reads events, since a read has no time limit."""

    def __init__(self, source: Iterator[Line | Started | Stopped]) -> None:
        self._source = source
        self._items: queue.Queue[Line | Started | Stopped | OcsfNftError] = queue.Queue(_QUEUED)
        # A daemon: the command ends while it waits for the service.
        threading.Thread(target=self._run, name="events", daemon=True).start()

    def take(self, seconds: float) -> Iterator[Line | Started | Stopped]:
        """Yield what was read, for at most ``seconds``; raise the error of the source."""
        until = time.monotonic() + seconds
        while (rest := until - time.monotonic()) > 0:
            try:
                item = self._items.get(timeout=rest)
            except queue.Empty:
                return
            if isinstance(item, OcsfNftError):
                raise item
            yield item

    def _run(self) -> None:
        try:
            for item in self._source:
                self._items.put(item)
        except OcsfNftError as error:
            self._items.put(error)
