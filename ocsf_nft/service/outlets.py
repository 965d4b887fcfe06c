"""Where events go: one sink, or several, each in its version of OCSF and with its classes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import orjson

from ocsf_nft.config import STDOUT
from ocsf_nft.delivery.sinks.jsonl import Jsonl
from ocsf_nft.errors import UsageError
from ocsf_nft.ocsf.events import CLASSES
from ocsf_nft.ocsf.versions import LATEST, line_at

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from ocsf_nft.config import SinkConfig
    from ocsf_nft.delivery.sinks.base import Sink

#: Events told otherwise before other tasks get a turn: about a millisecond of work.
_SLICE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlet:
    """A sink, the version that it wants, and the ``class_uid`` of what it wants."""

    sink: Sink
    version: str = LATEST
    classes: frozenset[int] = frozenset(CLASSES)

    async def deliver(self, events: Sequence[bytes]) -> None:
        """Deliver what the sink wants of events, as it wants it; raises DeliveryError."""
        if self.version != LATEST or self.classes != CLASSES.keys():
            events = await self._wanted(events)
        if events:
            await self.sink.deliver(events)

    async def _wanted(self, events: Sequence[bytes]) -> list[bytes]:
        wanted: list[bytes] = []
        for number, line in enumerate(events, 1):
            if orjson.loads(line)["class_uid"] in self.classes:
                wanted.append(line_at(line, self.version))
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        return wanted


class Outlets:
    """Several outlets as one sink: what it has delivered is in each of them."""

    def __init__(self, outlets: Sequence[Outlet]) -> None:
        self._outlets = tuple(outlets)
        self._open = contextlib.AsyncExitStack()

    @classmethod
    def of(cls, sinks: Sequence[SinkConfig]) -> Self:
        """Those of a configuration; raises UsageError where two of them are one file."""
        _hold_apart([each.path for each in sinks])
        return cls(
            [
                Outlet(
                    sink=Jsonl(None if each.path == STDOUT else Path(each.path)),
                    version=each.ocsf_version,
                    classes=each.class_uids,
                )
                for each in sinks
            ]
        )

    async def __aenter__(self) -> Self:
        """Open all; raises DeliveryError when one can't be."""
        async with contextlib.AsyncExitStack() as stack:
            for outlet in self._outlets:
                await stack.enter_async_context(outlet.sink)
            self._open = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close all."""
        await self._open.__aexit__(kind, error, traceback)

    async def deliver(self, events: Sequence[bytes]) -> None:
        """Deliver to all at once; raises DeliveryError as soon as one can't be delivered to.

        What another one is writing then is still written to its end.
        """
        work = [asyncio.ensure_future(each.deliver(events)) for each in self._outlets]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for each in work:
                each.cancel()
        for each in done:
            each.result()


def _hold_apart(paths: Sequence[str]) -> None:
    """Two sinks that write to one file would cut each other's lines."""
    named: dict[object, str] = {}
    for path in paths:
        file = _file(path)
        if file in named:
            raise UsageError(f"the sinks {named[file]} and {path} are one file: give each its own")
        named[file] = path


def _file(path: str) -> object:
    """What tells a file from all others, whatever it is called."""
    try:
        found = os.fstat(sys.stdout.fileno()) if path == STDOUT else Path(path).stat()
    except (OSError, ValueError):  # not there yet, or a standard output that is none
        return os.path.realpath(path)
    return found.st_dev, found.st_ino
