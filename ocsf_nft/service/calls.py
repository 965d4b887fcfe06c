"""Calls that are completed even if their callers leave, and calls for a sandbox in order."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from ocsf_nft.errors import OcsfNftError, SourceError
from ocsf_nft.service.keyed_locks import KeyedLocks

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_log = structlog.get_logger()
T = TypeVar("T")


class ShieldedCalls:
    """Calls in tasks of their own: a cancelled caller does not cancel its call."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Return the result of a call, or raise its error."""
        task = asyncio.create_task(call)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.add_done_callback(_log_failure)
            raise
        return task.result()

    async def finish(self, seconds: float | None = None) -> None:
        """Wait until all calls are done; cancel those that take more than ``seconds``."""
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=seconds)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)


class Calls:
    """Calls by the name of their sandbox.

    Those for the same name run one after the other, those for different names at the same time.
    """

    def __init__(self) -> None:
        self._locks = KeyedLocks[str]()
        self._calls = ShieldedCalls()
        self._is_stopping = False

    async def run(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a call for a sandbox after the calls before; a caller that leaves does not end it.

        Raises SourceError after :meth:`stop`, and the errors of ``work``.
        """
        return await self._calls.run(self._in_turn(name, work))

    async def _in_turn(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with self._locks.hold(name):
            if self._is_stopping:
                raise SourceError("the service is stopping: call it again when it runs")
            return await work()

    async def stop(self) -> None:
        """Wait for the running calls; all later ones fail."""
        self._is_stopping = True
        await self._calls.finish()


def _log_failure(task: asyncio.Task[Any]) -> None:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, OcsfNftError):
        _log.warning("a call has failed, and its caller has left", reason=str(error))
    elif error is not None:
        _log.error("a call has failed, and its caller has left", exc_info=error)
