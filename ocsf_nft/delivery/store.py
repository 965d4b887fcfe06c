"""The store: every event once, until each sink has it, and for a while after that.

What is put is on the disk when :meth:`Store.put` returns, a power cut included. An event that is
put again (its ``metadata.uid`` tells) is no other one. Each sink has a checkpoint: the number of
the last event that it has acknowledged, or that is none of its own. What a sink will never take
is kept apart, with what was said of it (dead letters).

All work is done by one thread of its own, in turn, and all of it raises DeliveryError.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

from ocsf_nft.delivery.event_db import Shelf
from ocsf_nft.delivery.retention import LAST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    from ocsf_nft.delivery.event_db import Dead, Refused, Stored
    from ocsf_nft.delivery.retention import Forgotten

T = TypeVar("T")


class Store:
    """One file of events, for a run and its forwarders: see :class:`Shelf`."""

    def __init__(
        self,
        path: Path,
        *,
        most_bytes: int = 1 << 30,
        most_seconds: float = 30 * 86_400.0,
        drops: bool = False,
    ) -> None:
        self._shelf = Shelf(path, most_bytes=most_bytes, most_seconds=most_seconds, drops=drops)
        self._waiting: list[_Put] = []
        self._grown = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._loop: asyncio.AbstractEventLoop

    async def __aenter__(self) -> Self:
        """Open it; one that is damaged is set aside."""
        self._loop = asyncio.get_running_loop()
        try:
            await self._work(self._shelf.open)
        except BaseException:
            await self._shut()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        await self._shut()

    async def _shut(self) -> None:
        # To its end, whoever is cancelled: the file is the next one's then.
        closing = self._worker.submit(self._shelf.close)
        self._worker.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closing))

    @property
    def path(self) -> Path:
        """The file."""
        return self._shelf.path

    @property
    def end(self) -> int:
        """The number of the last event, 0 when there never was one."""
        return self._shelf.end

    @property
    def used_bytes(self) -> int:
        """What events take of the disk, as of the last transaction."""
        return self._shelf.used_bytes

    @property
    def most_bytes(self) -> int:
        """What they may take."""
        return self._shelf.most_bytes

    def fault(self) -> str | None:
        """What was the matter with the file, since this was asked last."""
        return self._shelf.fault()

    async def register(self, names: Iterable[str]) -> tuple[Forgotten, ...]:
        """Let these be the sinks, and no others.

        One that is new gets what comes from now on. Tells what those that are gone never had.
        """
        return await self._work(lambda: self._shelf.register(frozenset(names)))

    async def put(self, lines: Sequence[bytes], *, source: str = "", position: str = "") -> None:
        """Keep events, given as the JSON of each, and with them where their source is to go on.

        Several that wait at once are kept in one transaction. Where it raises, none is kept.
        """
        put = _Put(lines, (source, position) if source else None)
        self._waiting.append(put)
        try:
            await self._work(lambda: self._put(put))
        finally:
            # Of who was cancelled before the worker came to it.
            with contextlib.suppress(ValueError):
                self._waiting.remove(put)

    async def grown(self, beyond: int) -> None:
        """Wait until there is an event whose number is higher than this one."""
        while self.end <= beyond:
            await self._grown.wait()

    async def read(self, beyond: int, *, events: int, size: int) -> list[Stored]:
        """The next events after a number: so many, and so many bytes, but one at least."""
        return await self._work(lambda: self._shelf.read(beyond, LAST, events, size))

    async def read_until(self, beyond: int, until: int) -> list[Stored]:
        """All events after a number, up to another one, which is one of them."""
        return await self._work(lambda: self._shelf.read(beyond, until, LAST, LAST))

    async def checkpoint(self, sink: str) -> tuple[int, int | None]:
        """What a sink has acknowledged, and up to where it was being sent to; both are numbers."""
        return await self._work(lambda: self._shelf.checkpoint(sink))

    async def sending(self, sink: str, until: int) -> None:
        """Keep how far a batch reaches, before it is sent."""
        await self._work(lambda: self._shelf.sending(sink, until))

    async def acknowledge(self, sink: str, until: int, refused: Sequence[Refused] = ()) -> None:
        """A sink has all up to a number, but for what it refused."""
        await self._work(lambda: self._shelf.acknowledge(sink, until, refused))

    async def dead(self, sink: str, *, events: int) -> list[Dead]:
        """The first dead letters of a sink that are to be tried again."""
        return await self._work(lambda: self._shelf.dead(sink, events))

    async def dead_number(self, sink: str) -> int:
        """How many dead letters a sink has."""
        return await self._work(lambda: self._shelf.dead_number(sink))

    async def bury(self, delivered: Sequence[Dead], refused: Sequence[tuple[Dead, str]]) -> None:
        """What became of dead letters that were tried again; some may have made room meanwhile."""
        await self._work(lambda: self._shelf.bury(delivered, refused))

    async def sweep(self) -> None:
        """Remove what is too old, some at a time, in turn with others' work."""
        while await self._work(self._shelf.sweep):
            pass

    async def forgotten(self) -> tuple[Forgotten, ...]:
        """What sinks have not had of all that was removed, until that is :meth:`told`."""
        return await self._work(self._shelf.forgotten)

    async def told(self, forgotten: Sequence[Forgotten]) -> None:
        """It has been told of these, and need not be again."""
        await self._work(lambda: self._shelf.told(forgotten))

    async def position(self, source: str) -> str | None:
        """Where a source that is no sandbox's is to go on."""
        return await self._work(lambda: self._shelf.position(source))

    async def remove(self) -> bool:
        """Remove the file if no sink needs anything of it; whether it was. Then close the store."""
        return await self._work(self._shelf.remove)

    def _put(self, put: _Put) -> None:
        if put.is_kept:  # with an earlier one
            return
        waiting = tuple(self._waiting)
        self._shelf.put(
            [line for each in waiting for line in each.lines],
            [each.position for each in waiting if each.position is not None],
        )
        for each in waiting:
            each.is_kept = True
        # From here: who has put it may have been cancelled meanwhile.
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    async def _work(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)


@dataclass(slots=True, eq=False)
class _Put:
    """Events that wait to be kept, and the position of their source, by its name."""

    lines: Sequence[bytes]
    position: tuple[str, str] | None
    is_kept: bool = False
