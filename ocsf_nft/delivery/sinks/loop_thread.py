"""A client library's event loop, in a thread of its own.

A library may have tasks that nobody else can end, swallow a cancellation, compress in the event
loop, or wait at its end for a receiver that says nothing more. Here it holds up nobody: who is
cancelled goes at once, and what is left undone ends with the loop.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

#: How long a task that was cancelled may take to notice.
_NOTICE_SECONDS: Final = 1.0


class Aside:
    """A thread that runs an event loop from :meth:`begin` to :meth:`end`, again and again."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: _Loop | None = None
        self._ended: Future[None]

    @property
    def is_begun(self) -> bool:
        """Whether there is a thread."""
        return self._loop is not None

    def begin(self) -> None:
        """Start the thread."""
        self._loop = _Loop()
        self._ended = Future()
        threading.Thread(
            target=_run, args=(self._loop, self._ended), name=self._name, daemon=True
        ).start()

    async def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work in the thread; cancelled when who waits for it is, without waiting for that.

        Raises what the work raises, and DeliveryError when there is no thread.
        """
        if self._loop is None:
            work.close()
            raise DeliveryError(f"{self._name} is not connected")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def end(self) -> None:
        """Cut all connections and cancel all tasks; nothing is sent once it returns."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)
            await asyncio.shield(asyncio.wrap_future(self._ended))


class _Loop(asyncio.SelectorEventLoop):
    """A loop that knows its connections, since the libraries have no way to cut theirs."""

    def __init__(self) -> None:
        super().__init__()
        self._cuttable: weakref.WeakSet[asyncio.WriteTransport] = weakref.WeakSet()
        # What goes wrong is told to who waits for it. Nobody waits for what is left undone.
        self.set_exception_handler(lambda _loop, _context: None)

    async def create_connection(self, *given: Any, **options: Any) -> Any:
        transport, protocol = await super().create_connection(*given, **options)
        self._cuttable.add(transport)
        return transport, protocol

    async def cut(self) -> None:
        """Cut all connections, then cancel all tasks."""
        for transport in tuple(self._cuttable):
            transport.abort()
        await asyncio.sleep(0)  # for the transports to tell whom they belong to
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_NOTICE_SECONDS)


def _run(loop: _Loop, ended: Future[None]) -> None:
    try:
        loop.run_forever()
        loop.run_until_complete(loop.cut())
    finally:
        ended.set_result(None)
        # A name that is being looked up can't be given up: the thread waits for it, alone.
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
