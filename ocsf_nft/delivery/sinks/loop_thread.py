"""Event loop in a separate thread, in which a sink (destination) runs its client library.

So a library that blocks its loop, or ignores a cancellation, does not block other code.
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

#: Maximum time that a cancelled task has to end.
_CANCEL_SECONDS: Final = 1.0


class LoopThread:
    """Thread that runs an event loop from :meth:`start` to :meth:`stop`; can be started again."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: _Loop | None = None
        self._ended: Future[None]

    @property
    def is_running(self) -> bool:
        """Return True after :meth:`start` and before :meth:`stop`."""
        return self._loop is not None

    def start(self) -> None:
        """Start the thread and its event loop."""
        self._loop = _Loop()
        self._ended = Future()
        threading.Thread(
            target=_run, args=(self._loop, self._ended), name=self._name, daemon=True
        ).start()

    async def run(self, job: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread and return its result.

        If the caller is cancelled, the coroutine is cancelled too, but the caller does not wait for
        its end. Raises the coroutine's error, or DeliveryError if the thread is not running.
        """
        if self._loop is None:
            job.close()
            raise DeliveryError(f"{self._name} is not connected")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(job, self._loop))

    async def stop(self) -> None:
        """Abort all connections, cancel all tasks and end the thread.

        Nothing is sent after this method has returned.
        """
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)
            await asyncio.shield(asyncio.wrap_future(self._ended))


class _Loop(asyncio.SelectorEventLoop):
    """Event loop that can abort all of its connections, because the client libraries can't."""

    def __init__(self) -> None:
        super().__init__()
        self._open_transports: weakref.WeakSet[asyncio.WriteTransport] = weakref.WeakSet()
        # Callers get the errors of their jobs. The errors of unfinished tasks have no reader.
        self.set_exception_handler(lambda _loop, _context: None)

    async def create_connection(self, *arguments: Any, **options: Any) -> Any:
        transport, protocol = await super().create_connection(*arguments, **options)
        self._open_transports.add(transport)
        return transport, protocol

    async def abort(self) -> None:
        for transport in tuple(self._open_transports):
            transport.abort()
        await asyncio.sleep(0)  # lets the transports notify their protocols
        # Some libraries leave tasks running.
        unfinished = asyncio.all_tasks() - {asyncio.current_task()}
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished, timeout=_CANCEL_SECONDS)


def _run(loop: _Loop, ended: Future[None]) -> None:
    try:
        loop.run_forever()
        loop.run_until_complete(loop.abort())
    finally:
        ended.set_result(None)
        # A running name lookup can't be cancelled: only this thread waits for it.
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
